"""Settings of training, and of the processes that train; `settings.py` has all others."""

from math import isqrt
from typing import Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from selfreward_lite.config.section import Count, Section


class Lora(Section):
    rank: Count = 16
    """rank of the adapter's matrices"""
    alpha: Count = 16
    """scale: the adapter's effect is times alpha / rank"""
    dropout: float = Field(0.0, ge=0, lt=1)
    """0, so that the margin of the first DPO step is exactly 0"""


class Training(Section):
    learning_rate: PositiveFloat
    """highest learning rate, after the warm-up"""
    epochs: PositiveFloat
    """times that every example is seen"""
    batch: Count = 32
    """examples per optimizer step; MR: 32"""
    micro_batch: Count = 2
    """examples on the device at once; divides batch. Where memory is short, fewer are taken; may
    change in a run
    """
    max_length: int = Field(ge=8)
    """tokens of prompt and completion; longer examples are left out and counted. Where memory is
    short for one, so are the longest, up to half of all; may be lowered in a run, for trainings
    that have not begun
    """
    warmup: float = Field(0.1, ge=0, lt=1)
    """share of steps with a rising rate; then a cosine decay"""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} does not divide batch {self.batch}")
        return self


class Dpo(Training):
    beta: PositiveFloat = 0.1
    """DPO's beta; SR, MR: 0.1"""
    anchor: NonNegativeFloat = 0.0
    """weight of the SFT term on chosen completions; 0 = as in the papers"""
    precompute_reference: bool = False
    """compute the reference's log probabilities once, before training; faster from the second epoch
    on
    """


class TrainingProcesses(Section):
    processes: Count = 1
    """processes that train together, each on a GPU of its own; without a GPU, on the CPU. A step
    stays what it is: they divide its batch among them, and the adapter is the same but for
    rounding. More than 1 needs backend transformers (auto takes it). May change in a run
    ([your-gpu.md](your-gpu.md#several-gpus))
    """


def find_undivided(name: str, settings: Training, processes: int) -> str | None:
    """Why processes cannot share a batch in whole micro-batches, and what works; None if they can.

    >>> find_undivided("dpo", Training(learning_rate=1, epochs=1, batch=8, max_length=99), 2)
    >>> find_undivided("dpo", Training(learning_rate=1, epochs=1, batch=8, max_length=99), 8)
    'training.processes=8 do not divide dpo.batch 8 into micro-batches of 2: set \
training.processes to 1, 2 or 4, or dpo.micro_batch to 1'
    """
    batch, micro_batch = settings.batch, settings.micro_batch
    if batch % (processes * micro_batch) == 0:
        return None
    text = (
        f"training.processes={processes} do not divide {name}.batch {batch} into micro-batches of "
        f"{micro_batch}: set training.processes to {_list_divisors(batch // micro_batch)}"
    )
    if batch % processes == 0:
        text += f", or {name}.micro_batch to {_list_divisors(batch // processes)}"
    return text


def _list_divisors(number: int) -> str:
    low = [one for one in range(1, isqrt(number) + 1) if number % one == 0]
    *others, last = map(str, sorted({*low, *(number // one for one in low)}))
    return f"{', '.join(others)} or {last}" if others else last
