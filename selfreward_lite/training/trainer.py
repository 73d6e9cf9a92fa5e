"""SFT and DPO of the adapter with TRL. Runs in a child process, as a task of the workshop.

Knows: how a trainer is told, watched, interrupted, and given less at once where memory is short. Does not know: which library
holds the model (`backends`), records, stages, scores.

The reference of DPO is the model that made the data, M(t−1): the trainer is given the trainable adapter of M(t−1), of
which TRL keeps a frozen copy named `ref`. At the first step, then, policy and reference agree, the reward margin is 0
and the sigmoid term is ln 2 (arXiv 2407.19594 and 2401.10020 start DPO from the model that labelled); anything else
is refused.

A training that was interrupted goes on from its newest checkpoint and ends with the weights that it would have ended with:
rows stand in their order beforehand, and the learning rate depends on the step's number alone. To the last bit that holds on a
CPU, without dropout, with as many rows at once as before; a card may add up in another order.
"""

from __future__ import annotations

import gc
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoTokenizer, TrainerCallback, get_cosine_schedule_with_warmup, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from selfreward_lite.system.errors import TrainingError
from selfreward_lite.system.gpu import BF16, OLDEST
from selfreward_lite.training import backends, checkpoints
from selfreward_lite.training.backends import Backend
from selfreward_lite.training.checkpoints import Checkpoint, State
from selfreward_lite.training.job import FIRST_MARGIN_LIMIT, PROBE_STEPS, Job, frozen_or_broken
from selfreward_lite.training.rows import Row, arranged, length, micro_batches, tokens

IGNORED = -100
NO_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed")

# Where float16 begins to scale losses: at torch's 2^16 the first steps overflow, and are left out. It grows by itself.
FIRST_SCALE = 2.0**12
Say = Callable[[dict[str, Any]], None]
Weights = dict[str, torch.Tensor]


class TokenisedDPOTrainer(DPOTrainer):
    """TRL's trainer for rows that are token ids already.

    TRL would render messages with the tokenizer, which reads `<|eot_id|>` inside a message as the end of a turn.
    """

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


class Watcher(TrainerCallback):
    """Tries the longest rows first, passes on what the trainer logs, keeps checkpoints, and ends a training that went wrong."""

    def __init__(self, trainer: Any, job: Job, state: State, report: Say) -> None:
        self.trainer, self.job, self.state, self.report = trainer, job, state, report
        self.begun_at, self.out_of_time = state.step, False
        self.skipped = 0  # steps that float16 had no numbers for, which changed nothing
        self.before = trainable(trainer.model)
        self.saved = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One forward and backward over the longest rows: memory that is short is better short now than in an hour."""
        rows = self.trainer.train_dataset
        longest = sorted(range(len(rows)), key=lambda place: _padded(rows[place]))
        batch = self.trainer.data_collator(
            [rows[place] for place in longest[-args.per_device_train_batch_size :]]
        )
        self.trainer.current_gradient_accumulation_steps = (
            args.gradient_accumulation_steps
        )  # set by the loop, a little later
        self.trainer.training_step(self.trainer.model_wrapped, batch)
        self.trainer.model.zero_grad()
        self.trainer._metrics["train"].clear()  # what it measured belongs to no step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer.accelerator.optimizer_step_was_skipped:
            self.skipped += 1
        elif self.begun_at + state.global_step - self.skipped == PROBE_STEPS:
            moved = moved_share(self.before, self.trainer.model)
            if moved < self.job.min_moved_share:
                raise TrainingError(
                    f"{moved:.1%} of the adapter's weights moved in {PROBE_STEPS} steps, at least {self.job.min_moved_share:.0%} "
                    "must; raise the learning rate"
                )
        if self.job.until is not None and time.time() > self.job.until:
            control.should_training_stop = True
            self.out_of_time = (
                2 * (self.begun_at + state.global_step) < self.begun_at + state.max_steps
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if (
            self.out_of_time
        ):  # less than half a training is no model; it is gone on with another time
            self._save()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        values = {
            name: float(value)
            for name, value in (logs or {}).items()
            if isinstance(value, int | float)
        }
        if "loss" not in values:
            return
        step, known = self.begun_at + state.global_step, self.state
        losses, first = [*known.losses, values["loss"]], known.first or values
        if fault := frozen_or_broken(losses):
            raise TrainingError(f"{fault} at step {step}; lower the learning rate")
        if not known.first:
            rewards = (
                [first[f"rewards/{name}"] for name in ("margins", "chosen", "rejected")]
                if self.job.method == "dpo"
                else []
            )
            if not all(
                abs(reward) <= FIRST_MARGIN_LIMIT for reward in rewards
            ):  # so that NaN is refused too
                raise TrainingError(
                    f"rewards {rewards} at the first step: the reference is not M(t-1)"
                )
        self.state = State(known.job, step, losses, first, {})
        self.report({"step": step, "steps": self.begun_at + state.max_steps, "values": values})
        if (
            time.monotonic() - self.saved >= 60 * self.job.checkpoint_minutes
            and state.global_step < state.max_steps
        ):
            self._save()

    def _save(self) -> None:
        scaler = self.trainer.accelerator.scaler
        state = State(**{**vars(self.state), "scaler": scaler.state_dict() if scaler else {}})
        moments = _moments(self.trainer.optimizer, self.trainer.model)
        checkpoints.save(
            Path(self.job.checkpoints), Checkpoint(state, trainable(self.trainer.model), moments)
        )
        self.saved = time.monotonic()


def train(job: Job, report: Say, backend: Backend) -> dict[str, float]:
    """Train, write the adapter, and return the closing facts (steps, seconds, share of weights moved, …).

    Without any row the adapter is a fresh one, and the model the base.

    `report` is given `step`, `steps` and `values` as training goes on, or `words`. Where the memory does not hold
    `micro_batch` rows at once, fewer are put there, and the batch stays what it is. Raises TrainingError where the result, or
    what went in, must not be used.
    """
    report({"words": f"{backend.words}, in {str(_compute_dtype()).removeprefix('torch.')}"})
    if not job.row_count:
        set_seed(job.seed)
        save_adapter(
            backends.load(backend, job, _compute_dtype()), Path(job.adapter_out)
        )  # a fresh one changes nothing
        return dict.fromkeys(
            ("steps", "rows", "moved_share", "first_margin", "tokens", "train_seconds"), 0.0
        )
    for size in micro_batches(job.settings["batch"], job.settings["micro_batch"]):
        try:
            return _train(job, size, report, backend)
        except RuntimeError as error:  # torch.OutOfMemoryError is one; cuBLAS, bitsandbytes and CUDA itself have others
            if not any(words in str(error).casefold() for words in NO_MEMORY):
                raise
            report({"words": f"no memory for {size} of the longest rows at once"})
        gc.collect()  # what an exception's frames held
        torch.cuda.empty_cache()
    raise TrainingError(
        f"not even one row of up to {job.settings['max_length']} tokens fits the memory; lower {job.method}.max_length, free "
        "memory of the card, or take a smaller model"
    )


def _train(job: Job, micro_batch: int, report: Say, backend: Backend) -> dict[str, float]:
    """`train`, with so many rows on the device at once."""
    started = time.monotonic()
    if torch.cuda.is_available():
        if job.memory is not None:
            torch.cuda.set_per_process_memory_fraction(
                min(1.0, job.memory / torch.cuda.get_device_properties(0).total_memory)
            )
        torch.cuda.reset_peak_memory_stats()  # an attempt before this one may have filled the card
    set_seed(job.seed)
    rows = _read_rows(job)
    order = arranged(rows, job.settings["epochs"], job.settings["batch"], job.seed)
    kept = checkpoints.newest(Path(job.checkpoints), job.digest())
    state = kept.state if kept else State(job.digest(), 0, [], {}, {})
    model = backends.load(backend, job, _compute_dtype())
    left = order[state.step * job.settings["batch"] :]
    trainer = (_dpo_trainer if job.method == "dpo" else _sft_trainer)(model, job, left, micro_batch)
    if len(trainer.train_dataset) != len(left):
        raise TrainingError(f"the trainer holds {len(trainer.train_dataset)} rows of {len(left)}")
    if job.method == "dpo" and "ref" not in trainer.model.peft_config:
        raise TrainingError(
            "the trainer made no copy of M(t-1) as reference; its reference would be the base"
        )
    _as_float32(trainer.model)
    if job.adapter_in is not None:
        backends.restore(trainer.model, job.adapter_in)
    if job.settings.get("precompute_reference"):
        trainer.train_dataset = _with_reference(trainer, left, micro_batch)
        trainer.precompute_ref_logps = True
    watcher = Watcher(trainer, job, state, report)
    _give_optimizer(trainer, job, math.ceil(len(order) / job.settings["batch"]), state.step)
    if kept:
        _go_on(trainer, kept)
        report({"words": f"goes on from step {state.step}"})
    elif scaler := trainer.accelerator.scaler:
        scaler.load_state_dict({**scaler.state_dict(), "scale": FIRST_SCALE})
    trainer.add_callback(watcher)
    loaded = time.monotonic()
    trainer.train()
    done = watcher.state
    facts = {
        "steps": done.step,
        "rows": len({id(row) for row in order[: done.step * job.settings["batch"]]}),
        "moved_share": moved_share(watcher.before, trainer.model),
        "micro_batch": micro_batch,
        "begun_at": state.step,
        "tokens": sum(
            map(
                tokens,
                order[state.step * job.settings["batch"] : done.step * job.settings["batch"]],
            )
        ),
        "out_of_time": float(watcher.out_of_time),
        "ended_early": float(done.step * job.settings["batch"] < len(order)),
        "load_seconds": loaded - started,
        "train_seconds": time.monotonic() - loaded,
        "skipped": float(watcher.skipped),
        "first_loss": done.first.get("loss", math.nan),
        "first_margin": done.first["rewards/margins"] if job.method == "dpo" else 0.0,
    }
    if torch.cuda.is_available():
        facts["peak_bytes"] = float(torch.cuda.max_memory_reserved())
    if not watcher.out_of_time:
        save_adapter(trainer.model, Path(job.adapter_out))
    return facts


def _padded(row: Row) -> int:
    """Tokens that a row is padded to, alone in its batch: with DPO, prompt and the longer completion."""
    return length(row) if "prompt_ids" in row else len(row["input_ids"])


def trainable(model: torch.nn.Module) -> Weights:
    """Return copies of the trainable weights by name."""
    return {
        name: weight.detach().clone()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def moved_share(before: Weights, model: torch.nn.Module) -> float:
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
    for path in (
        *folder.iterdir(),
        folder,
    ):  # a power cut must not leave a finished training with half an adapter
        opened = os.open(path, os.O_RDONLY)
        os.fsync(opened)
        os.close(opened)


def _give_optimizer(trainer: Any, job: Job, steps: int, done: int) -> None:
    """AdamW as TRL would make it, and a cosine over all `steps`, begun where `done` of them left it."""
    rate, settings = job.settings["learning_rate"], job.settings
    weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    # A fused step decides by itself whether float16 overflowed, and nobody hears of it (accelerate 1.15).
    fused = trainer.accelerator.scaler is None
    trainer.optimizer = torch.optim.AdamW(
        weights, lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=fused
    )
    for group in trainer.optimizer.param_groups:
        group["initial_lr"] = rate
    trainer.lr_scheduler = get_cosine_schedule_with_warmup(
        trainer.optimizer, int(settings["warmup"] * steps), steps, last_epoch=done - 1
    )


def _moments(optimizer: Any, model: torch.nn.Module) -> Weights:
    """AdamW's two moments and step count of every trainable weight, named after it."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    return {
        f"{name}.{part}": value
        for name, weight in named
        for part, value in optimizer.state[weight].items()
    }


def _go_on(trainer: Any, kept: Checkpoint) -> None:
    """Put adapter, optimizer and gradient scale back where a checkpoint left them."""
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad:
            weight.data.copy_(kept.adapter[name])
            parts = ("step", "exp_avg", "exp_avg_sq")
            trainer.optimizer.state[weight] = {
                part: kept.optimizer[f"{name}.{part}"].to(weight.device) for part in parts
            }
    if trainer.accelerator.scaler and kept.state.scaler:
        trainer.accelerator.scaler.load_state_dict(kept.state.scaler)


def _dpo_trainer(model: PeftModel, job: Job, rows: list[Row], micro_batch: int) -> DPOTrainer:
    settings = job.settings
    anchored = settings["anchor"] > 0
    arguments = DPOConfig(
        **_common(job, micro_batch),
        beta=settings["beta"],
        loss_type=["sigmoid", "sft"] if anchored else ["sigmoid"],
        loss_weights=[1.0, settings["anchor"]] if anchored else None,
    )
    return TokenisedDPOTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(job),
    )


def _with_reference(trainer: DPOTrainer, rows: list[Row], size: int) -> Dataset:
    """The rows with what the reference gives them, each read once; TRL's own way would do it before the adapter is as saved."""
    unique = list({id(row): row for row in rows}.values())
    # Prepared as training will find it: in mixed precision the same weights give other numbers without it.
    model = trainer.accelerator.prepare(trainer.model).eval()
    found: dict[int, tuple[float, float]] = {}
    for start in range(0, len(unique), size):
        batch = unique[start : start + size]
        inputs = trainer._prepare_inputs(trainer.data_collator(batch))
        with torch.no_grad():
            chosen, rejected = trainer.compute_ref_log_probs(model, inputs)
        found |= {
            id(row): pair
            for row, pair in zip(
                batch, zip(chosen.tolist(), rejected.tolist(), strict=True), strict=True
            )
        }
    model.train()
    return Dataset.from_list(
        [
            row | {"ref_chosen_logps": found[id(row)][0], "ref_rejected_logps": found[id(row)][1]}
            for row in rows
        ]
    )


def _sft_trainer(model: PeftModel, job: Job, rows: list[Row], micro_batch: int) -> SFTTrainer:
    whole = [
        {
            "input_ids": row["prompt_ids"] + row["completion_ids"],
            "labels": [IGNORED] * len(row["prompt_ids"]) + row["completion_ids"],
        }
        for row in rows
    ]
    arguments = SFTConfig(
        **_common(job, micro_batch),
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(whole),
        processing_class=_tokenizer(job),
    )


def _common(job: Job, micro_batch: int) -> dict[str, Any]:
    """What both trainers are told. Dropout is in the adapter's own settings; optimizer and learning rate are given apart."""
    settings, on_card, dtype = job.settings, torch.cuda.is_available(), _compute_dtype()
    return {
        "output_dir": str(Path(job.adapter_out).parent / "trainer"),
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": settings["batch"] // micro_batch,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "max_length": settings["max_length"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "logging_nan_inf_filter": False,  # it would log a loss of 0 in place of NaN
        "seed": job.seed,
        "data_seed": job.seed,
        "disable_tqdm": True,
        "use_cpu": not on_card,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "gradient_checkpointing": on_card,
        "dataloader_pin_memory": on_card,
    }


def _compute_dtype() -> torch.dtype:
    """float32 on a CPU; bfloat16 from compute capability 8, float16 below (a T4 claims bfloat16 but is slow and wrong)."""
    if not torch.cuda.is_available():
        return torch.float32
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST:
        raise TrainingError(
            f"compute capability {capability} is too old: {OLDEST} is needed; take another card"
        )
    return torch.bfloat16 if capability >= BF16 else torch.float16


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
