"""TRL's trainers on rows of token ids. A step is the same however its rows are split.

As in TRL, both are for one process; unsloth may have replaced what they inherit from.
"""

from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from selfreward_lite.config.settings import Dpo
from selfreward_lite.training.job import Job
from selfreward_lite.training.rows import Row

Tensors = dict[str, torch.Tensor]
IGNORED = -100


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
        self._weights = dict(zip(self.loss_types, self.loss_weights, strict=True))
        self._step = (0, 0)  # rows of the step, tokens of its chosen completions

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """The rows as they are: TRL would read `<|eot_id|>` in a message as special."""
        return dataset

    def get_batch_samples(self, *args: Any) -> tuple[list[Tensors], Any]:
        """The micro-batches of a step, which are counted."""
        batches, items = super().get_batch_samples(*args)
        rows, tokens = zip(*map(_count_chosen, batches), strict=True)
        self._step = (sum(rows), sum(tokens))
        return batches, items

    def compute_loss(self, model: Any, inputs: Tensors, *args: Any, **named: Any) -> Any:
        """The micro-batch's share of the step's loss, times the number of micro-batches.

        Trainer divides by that number, and adds up.
        """
        parts = self.current_gradient_accumulation_steps
        (rows, tokens), (step_rows, step_tokens) = _count_chosen(inputs), self._step
        by_rows = parts * rows / step_rows
        shares = {"sigmoid": by_rows, "sft": parts * tokens / step_tokens}
        self.loss_weights = [weight * shares[kind] for kind, weight in self._weights.items()]
        loss = super().compute_loss(model, inputs, *args, **named)
        # TRL logs their mean over micro-batches.
        for name, values in self._metrics["train"].items():
            if name.startswith(("rewards/", "logps/")):
                values[-1] *= by_rows
        return loss


class TokenSFTTrainer(SFTTrainer):
    """TRL's SFT on token ids. A step's loss is the mean over the tokens of all its completions.

    Trainer counts these tokens for that. Where it does not (it depends on how a backend wraps the
    model), a micro-batch's loss is its own mean, which is weighed here by its share of the tokens.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._tokens = 0  # of the step's completions, where nobody else counts them
        self.is_counted = True  # by Trainer

    def get_batch_samples(self, *args: Any) -> tuple[list[Tensors], Any]:
        """The micro-batches of a step, whose tokens are counted."""
        batches, items = super().get_batch_samples(*args)
        self.is_counted = items is not None
        self._tokens = sum(map(_count_labels, batches))
        return batches, items

    def compute_loss(self, model: Any, inputs: Tensors, *args: Any, **named: Any) -> Any:
        """The micro-batch's share of the step's loss, times the micro-batches if not counted."""
        tokens = _count_labels(inputs)
        loss = super().compute_loss(model, inputs, *args, **named)
        if self.is_counted:
            return loss
        return loss * (self.current_gradient_accumulation_steps * tokens / self._tokens)


def _count_labels(inputs: Tensors) -> int:
    """Tokens of a micro-batch that are learned."""
    return int((inputs["labels"][:, 1:] != IGNORED).sum())


def _count_chosen(inputs: Tensors) -> tuple[int, int]:
    """Rows of a micro-batch, and tokens of their chosen completions, which are its first half."""
    chosen = inputs["completion_mask"].chunk(2)[0]
    return len(chosen), int(chosen[:, 1:].sum())


def make_trainer(
    model: PeftModel, job: Job, rows: list[Row], micro_batch: int, dtype: torch.dtype
) -> Any:
    """TRL's trainer of a job, with so many rows on the device at once; without an optimizer."""
    settings, on_gpu = job.settings, torch.cuda.is_available()
    # Options of both trainers; dropout, optimizer and learning rate are set elsewhere.
    options: dict[str, Any] = {
        "output_dir": str(job.adapter_out.parent / "trainer"),
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": settings.batch // micro_batch,
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
    return kind(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def describe_loss(trainer: Any) -> str:
    """Over what a step's loss is a mean."""
    if isinstance(trainer, TokenDPOTrainer):
        return "mean over a step's pairs, its SFT term over their chosen tokens"
    by = "the trainer" if trainer.is_counted else "selfreward_lite"
    return f"mean over a step's tokens, counted by {by}"
