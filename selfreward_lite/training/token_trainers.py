"""TRL's trainers on rows of token ids. A step is the same however its rows are split.

The rows of a step may lie in several processes, whose gradients torch averages. So each process
gives its share of the step's loss times their number. unsloth may have replaced what both trainers
inherit from.
"""

from collections import deque
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from peft import PeftModel
from transformers import AutoTokenizer, PrinterCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.models.utils import _ForwardRedirection

from selfreward_lite.config.settings import Dpo
from selfreward_lite.training import group
from selfreward_lite.training.job import Job
from selfreward_lite.training.rows import DealtRows

Tensors = dict[str, torch.Tensor]
IGNORED = -100
OF_ROWS = ("rewards/", "logps/")  # how figures that TRL logs begin, if they are means over rows


class Countdown:
    """Which of a process's micro-batches count: the first `left`, one after the other."""

    def __init__(self) -> None:
        self.left = 0
        self._under_way: deque[bool] = deque()

    def begin_step(self, batches: list[Tensors]) -> list[Tensors]:
        """Those of a step's micro-batches that count."""
        counted = batches[: self.left]
        self.left -= len(counted)
        self._under_way = deque(place < len(counted) for place in range(len(batches)))
        return counted

    def pass_one(self) -> bool:
        """Whether the next micro-batch of the step counts; one that is no part of a step does."""
        return not self._under_way or self._under_way.popleft()


class TokenDPOTrainer(DPOTrainer):
    """TRL's DPO on token ids. A step is the same however its rows are split into micro-batches.

    The sigmoid term is the mean over a step's rows, the SFT term that over the tokens of all its
    chosen completions. TRL takes both means over a micro-batch, and Trainer the mean of those: rows
    of a short micro-batch and tokens of short rows would count more.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        # TRL's head that never holds all logits. As an argument it asks for the package
        # liger-kernel, of which it uses nothing.
        self.use_liger_kernel = True
        # What TRL makes with that argument: the head as a part of torch's wrapper of the model, so
        # that gradients are averaged.
        self._forward_redirection = _ForwardRedirection()
        self._weights = dict(zip(self.loss_types, self.loss_weights, strict=True))
        self._step = (0.0, 0.0)  # rows of the step, tokens of its chosen completions
        self.countdown = Countdown()
        gather = self.accelerator.gather
        # TRL gathers the figures of rows to log, for which all processes would need as many rows.
        self.accelerator.gather = lambda figures: figures if figures.dim() else gather(figures)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """The rows as they are: TRL would read `<|eot_id|>` in a message as special."""
        return dataset

    def get_train_dataloader(self) -> Any:
        """All rows of the data set, which are those of this process."""
        return _deal_no_further(super().get_train_dataloader())

    def get_batch_samples(self, *args: Any) -> tuple[list[Tensors], Any]:
        """The micro-batches of a step, which are counted."""
        batches, items = super().get_batch_samples(*args)
        counts = [_count_chosen(batch) for batch in self.countdown.begin_step(batches)]
        rows, tokens = group.add_up(
            [sum(row for row, _ in counts), sum(token for _, token in counts)]
        )
        self._step = (rows, tokens)
        return batches, items

    def compute_loss(self, model: Any, inputs: Tensors, *args: Any, **named: Any) -> Any:
        """The micro-batch's share of the step's loss, times the number of all micro-batches.

        Trainer and torch divide by that number, and add up.
        """
        parts, processes = self.current_gradient_accumulation_steps, group.count()
        (rows, tokens), (step_rows, step_tokens) = _count_chosen(inputs), self._step
        if not self.countdown.pass_one():
            rows = tokens = 0
        by_rows = parts * rows / step_rows
        shares = {"sigmoid": processes * by_rows, "sft": processes * parts * tokens / step_tokens}
        self.loss_weights = [weight * shares[kind] for kind, weight in self._weights.items()]
        loss = super().compute_loss(model, inputs, *args, **named)
        # TRL logs their mean over micro-batches.
        for name, values in self._metrics["train"].items():
            if name.startswith(OF_ROWS):
                values[-1] *= by_rows
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a step's figures, with those of rows of all processes."""
        figures = self._metrics["train"]
        names = sorted(name for name in figures if name.startswith(OF_ROWS))
        if names and group.count() > 1:
            means = group.add_up([sum(figures[name]) / len(figures[name]) for name in names])
            for name, mean in zip(names, means, strict=True):
                figures[name] = [mean]
        super().log(logs, start_time)


class TokenSFTTrainer(SFTTrainer):
    """TRL's SFT on token ids. A step's loss is the mean over the tokens of all its completions.

    Trainer counts these tokens for that. Where it does not (it depends on how a backend wraps the
    model), a micro-batch's loss is its own mean, which is weighed here by its share of the tokens.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._tokens = 0.0  # of the step's completions, where nobody else counts them
        self.is_counted = True  # by Trainer
        self.countdown = Countdown()

    def get_train_dataloader(self) -> Any:
        """All rows of the data set, which are those of this process."""
        return _deal_no_further(super().get_train_dataloader())

    def get_batch_samples(self, *args: Any) -> tuple[list[Tensors], Any]:
        """The micro-batches of a step, whose tokens are counted."""
        batches, items = super().get_batch_samples(*args)
        self.is_counted = items is not None
        counted = self.countdown.begin_step(batches)
        self._tokens = group.add_up([sum(map(_count_labels, counted))])[0]
        if isinstance(items, torch.Tensor) and group.count() > 1:
            items = torch.full_like(items, int(self._tokens))  # Trainer counts all rows
        return batches, items

    def compute_loss(self, model: Any, inputs: Tensors, *args: Any, **named: Any) -> Any:
        """The micro-batch's share of the step's loss, times the micro-batches if not counted."""
        is_counted, tokens = self.countdown.pass_one(), _count_labels(inputs)
        loss = super().compute_loss(model, inputs, *args, **named)
        if self.is_counted:
            return loss if is_counted else loss * 0.0
        parts = self.current_gradient_accumulation_steps * group.count()
        return loss * (is_counted * parts * tokens / self._tokens)


def _count_labels(inputs: Tensors) -> int:
    """Tokens of a micro-batch that are learned."""
    return int((inputs["labels"][:, 1:] != IGNORED).sum())


def _count_chosen(inputs: Tensors) -> tuple[int, int]:
    """Rows of a micro-batch, and tokens of their chosen completions, which are its first half."""
    chosen = inputs["completion_mask"].chunk(2)[0]
    return len(chosen), int(chosen[:, 1:].sum())


def _deal_no_further(loader: Any) -> Any:
    """The loader with all its rows: accelerate would deal them among the processes once more."""
    shard = loader.batch_sampler
    if isinstance(shard, BatchSamplerShard):
        shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
    return loader


def make_trainer(
    model: PeftModel, job: Job, dealt: DealtRows, micro_batch: int, dtype: torch.dtype
) -> Any:
    """TRL's trainer of a job, with so many rows on the device at once; without an optimizer."""
    settings, on_gpu, rows = job.settings, torch.cuda.is_available(), dealt.rows
    # Options of both trainers; dropout, optimizer and learning rate are set elsewhere.
    options: dict[str, Any] = {
        "output_dir": str(job.adapter_out.parent / "trainer"),
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": settings.batch // (micro_batch * group.count()),
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "max_length": settings.max_length,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "logging_nan_inf_filter": False,  # it would log a loss of 0 in place of NaN
        "seed": job.seed,
        "disable_tqdm": True,
        "use_cpu": not on_gpu,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "gradient_checkpointing": on_gpu,
        "dataloader_pin_memory": on_gpu,
        "ddp_find_unused_parameters": False,
    }
    tokenizer = AutoTokenizer.from_pretrained(job.model_dir)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(job.pad)
    kind: Any
    arguments: Any
    if isinstance(settings, Dpo):
        options |= {"beta": settings.beta, "loss_type": ["sigmoid"]}
        if settings.anchor > 0:
            options |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, settings.anchor]}
        # No ref_model: TRL copies the adapter, which is M(t−1) now, and freezes the copy as `ref`.
        kind, arguments = TokenDPOTrainer, DPOConfig(**options)
    else:
        rows = [
            {
                "input_ids": row["prompt_ids"] + row["completion_ids"],
                "labels": [IGNORED] * len(row["prompt_ids"]) + row["completion_ids"],
            }
            for row in rows
        ]
        options |= {"dataset_kwargs": {"skip_prepare_dataset": True}}
        kind, arguments = TokenSFTTrainer, SFTConfig(**options, remove_unused_columns=False)
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.countdown.left = dealt.counted
    if group.rank():  # one process prints what is logged
        trainer.remove_callback(PrinterCallback)
    return trainer


def describe_loss(trainer: Any) -> str:
    """Over what a step's loss is a mean."""
    if isinstance(trainer, TokenDPOTrainer):
        return "mean over a step's pairs, its SFT term over their chosen tokens"
    by = "the trainer" if trainer.is_counted else "selfreward_lite"
    return f"mean over a step's tokens, counted by {by}"
