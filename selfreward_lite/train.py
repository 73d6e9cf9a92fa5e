"""SFT and DPO of the adapter with TRL, PEFT and bitsandbytes. Runs in a child process, as a task of the workshop.

Knows: how a 4-bit base and its adapter are loaded, trained and saved. Does not know: records, stages, scores.

The reference of DPO is the model that made the data, M(t−1): the trainer is given the trainable adapter of M(t−1), of
which TRL keeps a frozen copy named `ref`. At the first step, then, policy and reference agree, the reward margin is 0
and the sigmoid term is ln 2 (arXiv 2407.19594 and 2401.10020 start DPO from the model that labelled); anything else
is refused.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from transformers import AutoTokenizer, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from selfreward_lite import nf4
from selfreward_lite.errors import TrainingError
from selfreward_lite.training_job import FIRST_MARGIN_LIMIT, PROBE_STEPS, Job, Row, arranged, frozen_or_broken

IGNORED = -100
Say = Callable[[dict[str, Any]], None]


class TokenisedDPOTrainer(DPOTrainer):
    """TRL's trainer for rows that are token ids already.

    TRL would render messages with the tokenizer, which reads `<|eot_id|>` inside a message as the end of a turn.
    """

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


class Reporter(TrainerCallback):
    """Passes on what the trainer logs, and ends a training whose loss or first margin is wrong."""

    def __init__(self, report: Say, job: Job, before: dict[str, torch.Tensor]) -> None:
        self.report, self.job, self.before = report, job, before
        self.is_dpo, self.steps, self.first, self.losses = job.method == "dpo", 0, {}, []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == PROBE_STEPS:
            moved = moved_share(self.before, model)
            if moved < self.job.min_moved_share:
                raise TrainingError(
                    f"{moved:.1%} of the adapter's weights moved in {PROBE_STEPS} steps, at least {self.job.min_moved_share:.0%} "
                    "must; raise the learning rate"
                )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        values = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
        if "loss" not in values:
            return
        self.losses.append(values["loss"])
        if fault := frozen_or_broken(self.losses):
            raise TrainingError(f"{fault} at step {state.global_step}; lower the learning rate")
        if not self.first:
            self.first = values
            rewards = [values[f"rewards/{name}"] for name in ("margins", "chosen", "rejected")] if self.is_dpo else []
            if not all(abs(reward) <= FIRST_MARGIN_LIMIT for reward in rewards):  # so that NaN is refused too
                raise TrainingError(f"rewards {rewards} at the first step: the reference is not M(t-1)")
        self.steps = state.global_step
        self.report({"step": state.global_step, "steps": state.max_steps, "values": values})


def train(job: Job, report: Say) -> dict[str, float]:
    """Train, write the adapter, and return the closing facts (steps, seconds, share of weights moved, …).

    `report` is given `step`, `steps` and `values` as training goes on. Raises TrainingError where the result, or what
    went in, must not be used.
    """
    started = time.monotonic()
    set_seed(job.seed)
    rows = _read_rows(job)
    order = arranged(rows, job.settings["epochs"], job.settings["batch"], job.seed)
    model = load_adapter(load_base(job.model_dir, job.quantisation), job)
    trainer = (_dpo_trainer if job.method == "dpo" else _sft_trainer)(model, job, order)
    if len(trainer.train_dataset) != len(order):
        raise TrainingError(f"the trainer holds {len(trainer.train_dataset)} rows of {len(order)}")
    if job.method == "dpo" and "ref" not in trainer.model.peft_config:
        raise TrainingError("the trainer made no copy of M(t-1) as reference; its reference would be the base")
    _as_float32(trainer.model)
    if job.adapter_in is not None:
        restore(trainer.model, job.adapter_in)
    before = trainable(trainer.model)
    reporter = Reporter(report, job, before)
    trainer.add_callback(reporter)
    loaded = time.monotonic()
    trainer.train()
    facts = {
        "steps": reporter.steps, "rows": len({id(row) for row in order[: reporter.steps * job.settings["batch"]]}),
        "moved_share": moved_share(before, trainer.model),
        "load_seconds": loaded - started, "train_seconds": time.monotonic() - loaded,
        "first_loss": reporter.first.get("loss", math.nan),
        "first_margin": reporter.first["rewards/margins"] if job.method == "dpo" else 0.0,
    }
    save_adapter(trainer.model, Path(job.adapter_out))
    return facts


def load_base(model_dir: str, quantisation: str) -> torch.nn.Module:
    """Load the base, on the card if there is one; `quantisation` is "nf4" or "none"."""
    return nf4.load(model_dir, quantisation, _compute_dtype(), on_card=torch.cuda.is_available())


def load_adapter(base: torch.nn.Module, job: Job) -> PeftModel:
    """Return the base with the trainable adapter `default`: that of `job.adapter_in`, or a fresh one."""
    if job.adapter_in is not None:
        model = PeftModel.from_pretrained(base, job.adapter_in, is_trainable=True)
    else:
        model = get_peft_model(base, LoraConfig(
            r=job.lora["rank"], lora_alpha=job.lora["alpha"], lora_dropout=job.lora["dropout"],
            target_modules="all-linear", task_type="CAUSAL_LM",
        ))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError("no weight of the adapter is trainable")
    return model


def restore(model: PeftModel, adapter_in: str) -> None:
    """Put the adapter's weights back as they were saved: TRL rounds those of a 4-bit model to bfloat16."""
    weights = load_peft_weights(adapter_in, device="cpu")
    result = set_peft_model_state_dict(model, weights, adapter_name="default")
    if result.unexpected_keys or len(weights) != len(trainable(model)):
        raise TrainingError(f"{adapter_in} does not fit the model: {result.unexpected_keys or 'other layers'}")


def trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the trainable weights by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def moved_share(before: dict[str, torch.Tensor], model: torch.nn.Module) -> float:
    """Return the share of trainable weights, in [0, 1], that differ from `before`."""
    after = trainable(model)
    moved = sum(int((after[name] != weight).sum()) for name, weight in before.items())
    return moved / sum(weight.numel() for weight in before.values())


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter `default` alone, to the disk itself. Raises TrainingError if a weight is not finite."""
    for name, weight in trainable(model).items():
        if not torch.isfinite(weight).all():
            raise TrainingError(f"{name} is not finite after training; lower the learning rate")
    model.save_pretrained(str(folder), selected_adapters=["default"], safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    for file in folder.iterdir():
        file.chmod(0o644)
    for path in (*folder.iterdir(), folder):  # a power cut must not leave a finished training with half an adapter
        opened = os.open(path, os.O_RDONLY)
        os.fsync(opened)
        os.close(opened)


def _dpo_trainer(model: PeftModel, job: Job, rows: list[Row]) -> DPOTrainer:
    settings = job.settings
    anchored = settings["anchor"] > 0
    arguments = DPOConfig(
        **_common(job, rows), beta=settings["beta"],
        loss_type=["sigmoid", "sft"] if anchored else ["sigmoid"],
        loss_weights=[1.0, settings["anchor"]] if anchored else None,
    )
    return TokenisedDPOTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=_tokenizer(job)
    )


def _sft_trainer(model: PeftModel, job: Job, rows: list[Row]) -> SFTTrainer:
    whole = [
        {
            "input_ids": row["prompt_ids"] + row["completion_ids"],
            "labels": [IGNORED] * len(row["prompt_ids"]) + row["completion_ids"],
        }
        for row in rows
    ]
    arguments = SFTConfig(**_common(job, rows), dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False)
    return SFTTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(whole), processing_class=_tokenizer(job))


def _common(job: Job, rows: list[Row]) -> dict[str, Any]:
    """What both trainers are told; `rows` stand in the order of training. Dropout is in the adapter's own settings."""
    settings, on_card = job.settings, torch.cuda.is_available()
    steps = math.ceil(len(rows) / settings["batch"])
    return {
        "output_dir": str(Path(job.adapter_out).parent / "trainer"),
        "per_device_train_batch_size": settings["micro_batch"],
        "gradient_accumulation_steps": settings["batch"] // settings["micro_batch"],
        "learning_rate": settings["learning_rate"], "num_train_epochs": 1, "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "cosine", "warmup_steps": int(settings["warmup"] * steps),
        "max_length": settings["max_length"], "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "logging_nan_inf_filter": False,  # it would log a loss of 0 in place of NaN
        "seed": job.seed, "data_seed": job.seed, "disable_tqdm": True, "use_cpu": not on_card,
        "bf16": on_card and _compute_dtype() == torch.bfloat16, "fp16": on_card and _compute_dtype() == torch.float16,
        "gradient_checkpointing": on_card and job.gradient_checkpointing, "dataloader_pin_memory": on_card,
    }


def _compute_dtype() -> torch.dtype:
    """float32 on a CPU; bfloat16 from compute capability 8, float16 below (a T4 claims bfloat16 but is slow and wrong)."""
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def _as_float32(model: torch.nn.Module) -> None:
    """In bfloat16, steps of a usual size round to nothing: after 5 steps at 1e-6, 0.4 % of the weights had moved."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def _tokenizer(job: Job) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(job.model_dir)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(job.pad)
    return tokenizer


def _read_rows(job: Job) -> list[Row]:
    with open(job.rows, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    if len(rows) != job.row_count:
        raise TrainingError(f"{job.rows} holds {len(rows)} rows of {job.row_count}")
    return rows
