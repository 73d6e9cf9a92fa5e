"""A training job, what comes back from it, and what its losses must look like."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ValidationInfo, field_validator

from selfreward_lite.config.settings import Dpo, Lora, Section, Training
from selfreward_lite.system.files import hash_file

FIRST_MARGIN_LIMIT = 1e-4  # reward margin of the first step; more means another reference model
PROBE_STEPS = 5
FROZEN_STEPS = 5  # a loss that stays the same to the last digit for so many steps is not trained
# `step`, `steps` in all and the `values` that the trainer logged; or a `message`. Where rows are
# `left_out` for want of memory, with their number and the step that it goes on from, `begun_at`.
Report = Callable[[Mapping[str, Any]], None]


class Job(Section):
    """Everything that the training child needs.

    `adapter_in` is the adapter to continue from, None for a fresh one; in DPO it is the reference
    too. `rows` is a JSON-lines file of token ids: prompt_ids with completion_ids (SFT), or with
    chosen_ids and rejected_ids (DPO). The training fails if less than `min_moved_share` of the
    adapter's weights have moved after PROBE_STEPS. Once `until` is over it ends: with a model if
    half of it is done, else with a checkpoint and no model. `until` is on the clock of
    time.monotonic, which all processes of a machine share, and which stands still while it is
    suspended. A checkpoint is written every `checkpoint_minutes`, and the training resumes from one
    if its job is this one. `memory` limits torch to so many bytes of the GPU. More than one of
    `processes` train together, each on one of `devices` (as CUDA_VISIBLE_DEVICES), or on the CPU if
    that is None.
    """

    LARGEST: ClassVar = 2**63 - 1  # bytes, not a setting
    method: Literal["sft", "dpo"]
    model_dir: Path
    quantization: Literal["nf4", "none"]
    adapter_in: Path | None
    adapter_out: Path
    rows: Path
    row_count: int
    pad: int
    seed: int
    settings: Dpo | Training  # a Dpo if that is the method
    lora: Lora
    checkpoints: Path
    checkpoint_minutes: float = 10.0
    backend: Literal["auto", "unsloth", "transformers"] = "auto"
    min_moved_share: float = 0.9
    until: float | None = None
    memory: int | None = None
    processes: int = 1
    devices: str | None = None

    @property
    def is_out_of_time(self) -> bool:
        """Whether `until` is over."""
        return self.until is not None and time.monotonic() > self.until

    @field_validator("settings", mode="before")
    @classmethod
    def _parse_settings(cls, value: Any, info: ValidationInfo) -> Training:
        kind = Dpo if info.data.get("method") == "dpo" else Training
        if isinstance(value, Section) and type(value) is not kind:
            raise ValueError(f"{type(value).__name__} is not {kind.__name__}, as the method needs")
        return kind.model_validate(value)

    def digest(self) -> str:
        """A hash of all that the steps of this job depend on."""
        known = [
            self.method,
            self.quantization,
            hash_file(self.rows),
            self.adapter_in and hash_file(self.adapter_in / "adapter_model.safetensors"),
            self.seed,
            self.settings.model_dump(exclude={"micro_batch"}),  # it changes the padding only
            self.lora.model_dump(),
        ]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TrainingResult:
    """What a training did. A field is None if not measured, such as without rows or a GPU.

    `steps` of `steps_planned` were done. `rows` counts different rows, `skipped` the steps in which
    float16 overflowed. `begun_at` is the step that it resumed from. `micro_batch` and `peak_bytes`
    are those of one process. For want of memory, `left_out` rows longer than `max_length` tokens
    were not trained on.
    """

    steps: int
    rows: int
    moved_share: float  # of the adapter's weights
    first_margin: float
    tokens: int | None = None
    train_seconds: float | None = None
    load_seconds: float | None = None
    micro_batch: int | None = None
    begun_at: int | None = None
    skipped: int | None = None
    first_loss: float | None = None
    peak_bytes: float | None = None
    ended_early: bool | None = None
    steps_planned: int | None = None
    out_of_time: bool | None = None  # before half of it was done, so that there is no model
    left_out: int | None = None
    max_length: int | None = None
    processes: int | None = None
    backend: str = ""  # with versions
    number_format: str = ""
    loss: str = ""  # over what it is a mean

    def metrics(self) -> dict[str, float]:
        """The numbers that were measured, by the names of their metrics in a run's store."""
        known = asdict(self).items()
        return {
            f"training_{name}": float(value)
            for name, value in known
            if isinstance(value, int | float)
        }

    def facts(self) -> dict[str, str]:
        """How it was trained, in words."""
        known = asdict(self).items()
        return {name: value for name, value in known if isinstance(value, str)}


def find_loss_fault(losses: Sequence[float]) -> str | None:
    """What is wrong with a series of losses, None if nothing is.

    >>> find_loss_fault([0.69, 0.5]), find_loss_fault([0.69, 0.0]), find_loss_fault([0.69] * 5)
    (None, 'the loss is exactly 0', 'the loss stayed at 0.69 for 5 steps')
    """
    if not all(math.isfinite(loss) for loss in losses):
        return "the loss is not a number"
    if 0.0 in losses:
        return "the loss is exactly 0"
    for start in range(len(losses) - FROZEN_STEPS + 1):
        if len(set(losses[start : start + FROZEN_STEPS])) == 1:
            return f"the loss stayed at {losses[start]} for {FROZEN_STEPS} steps"
    return None
