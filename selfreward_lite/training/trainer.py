"""SFT and DPO of the adapter with TRL, in a child process, or in several that train together.

The reference of DPO is the model that made the data, M(t-1): training starts from its adapter, of
which TRL keeps a frozen copy named `ref`. At the first step policy and reference agree, so the
reward margin is 0 and the sigmoid term is ln 2 (arXiv 2407.19594 and 2401.10020 start DPO from the
model that labelled); anything else is refused.

An interrupted training resumes from its newest checkpoint and ends with the same weights: the order
of rows is fixed, and the learning rate depends on the step's number alone. That holds to the last
bit on a CPU, without dropout, with as many rows at once; a GPU may add in another order. Several
processes divide a step's rows, and decide everything together; their number may change.
"""

import gc
import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback, get_cosine_schedule_with_warmup, set_seed

from selfreward_lite.config.settings import Dpo, find_undivided
from selfreward_lite.models.hf_folder import read_config
from selfreward_lite.models.memory import count_weights
from selfreward_lite.system.errors import TrainingError
from selfreward_lite.system.files import sync_folder
from selfreward_lite.system.gpu import BF16, LARGE, OLDEST, explain_missing_gpu, list_gpus
from selfreward_lite.training import backends, checkpoints, group, launch
from selfreward_lite.training.backends import Backend
from selfreward_lite.training.checkpoints import Checkpoint, State, Weights
from selfreward_lite.training.job import (
    FIRST_MARGIN_LIMIT,
    PROBE_STEPS,
    Job,
    Report,
    TrainingResult,
    find_loss_fault,
)
from selfreward_lite.training.rows import (
    TOO_LONG_FOR_MEMORY,
    Row,
    arrange_rows,
    count_tokens,
    deal_rows,
    list_lengths,
    list_micro_batches,
    row_length,
)
from selfreward_lite.training.token_trainers import describe_loss, make_trainer

# Errors of CUDA, of the CPU allocator and of cuBLAS, which have no class of their own.
PLAIN_MEMORY_ERRORS = ("out of memory", "can't allocate memory", "alloc_failed")

# Where float16 begins to scale losses: at torch's 2^16 the first steps overflow and are skipped. It
# grows by itself.
FIRST_SCALE = 2.0**12

# Said before the first step, which looks like a hang else.
COMPILES = (
    "the first step may take five minutes or more: unsloth compiles kernels for this GPU; later "
    "steps are fast"
)

# The private parts of TRL, of transformers' Trainer and of accelerate that are used here were read
# in these versions.
READ_VERSIONS = {"trl": "1.14.2", "transformers": "5.17.0", "accelerate": "1.15.0"}


class Watcher(TrainerCallback):
    """Tries the longest rows, reports, keeps checkpoints, ends a training that went wrong."""

    def __init__(self, trainer: Any, job: Job, state: State, report: Report) -> None:
        self.trainer, self.job, self.state, self.report = trainer, job, state, report
        self.begun_at, self.out_of_time = state.step, False
        self.skipped = 0  # steps in which float16 overflowed, which changed nothing
        self.before = trainable_weights(trainer.model)
        self.saved = time.monotonic()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Run one step on the longest rows, without a trace: short memory should show at once."""
        trainer, args = self.trainer, self.trainer.args
        # Tokens of a row with padding, alone: in DPO, prompt and the longer completion.
        ordered = sorted(
            trainer.train_dataset,
            key=lambda row: row_length(row) if "prompt_ids" in row else len(row["input_ids"]),
        )
        longest = ordered[-args.per_device_train_batch_size :]
        # What later steps hold beside the rows: AdamW's moments, and gradients to add to.
        weights = [weight for _, weight in _named_trainable(trainer.model)]
        new = [weight for weight in weights if weight not in trainer.optimizer.state]
        moments = [torch.zeros_like(weight) for weight in (*new, *new)]
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        # Trainer's loop sets it a little later, and training_step reads it.
        trainer.current_gradient_accumulation_steps = 1
        counted = trainer.countdown.left
        (batch,), items = trainer.get_batch_samples(
            iter([trainer.data_collator(longest)]), 1, args.device
        )
        trainer.training_step(trainer.model_wrapped, batch, items)
        trainer.model.zero_grad()
        del moments
        trainer._metrics["train"].clear()  # these belong to no step
        trainer.countdown.left = counted

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = self.begun_at + state.global_step
        if self.trainer.accelerator.optimizer_step_was_skipped:
            self.skipped += 1
        elif step - self.skipped == PROBE_STEPS:
            moved = group.find_smallest(moved_share(self.before, self.trainer.model))
            if moved < self.job.min_moved_share:
                raise TrainingError(
                    f"{moved:.1%} of the adapter's weights moved in {PROBE_STEPS} steps, at least "
                    f"{self.job.min_moved_share:.0%} must; raise the learning rate"
                )
        if self.job.until is not None and group.is_any(self.job.is_out_of_time):
            control.should_training_stop = True
            self.out_of_time = 2 * step < self.begun_at + state.max_steps

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if self.out_of_time:  # less than half a training is no model; it resumes another time
            self._save()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        values = {
            name: float(value) for name, value in logs.items() if isinstance(value, int | float)
        }
        if "loss" not in values:
            return
        step, known = self.begun_at + state.global_step, self.state
        losses = [*known.losses, values["loss"]]
        if fault := find_loss_fault(losses):
            raise TrainingError(f"{fault} at step {step}; lower the learning rate")
        # float16 has a scaler, which leaves such a step out and lowers its scale.
        is_scaled = self.trainer.accelerator.scaler is not None
        if not is_scaled and not math.isfinite(values.get("grad_norm", 0.0)):
            raise TrainingError(
                f"the gradient is not a number at step {step}; lower the learning rate, or set "
                "backend=transformers if unsloth trains"
            )
        if not known.first and self.job.method == "dpo":
            rewards = [values[f"rewards/{name}"] for name in ("margins", "chosen", "rejected")]
            # written so that NaN is refused too
            if not all(abs(reward) <= FIRST_MARGIN_LIMIT for reward in rewards):
                raise TrainingError(
                    f"rewards {rewards} at the first step: the reference is not M(t-1)"
                )
        self.state = State(known.job, step, losses, known.first or values, {})
        self.report({"step": step, "steps": self.begun_at + state.max_steps, "values": values})
        is_due = time.monotonic() - self.saved >= 60 * self.job.checkpoint_minutes
        if is_due and state.global_step < state.max_steps:
            self._save()

    def _save(self) -> None:
        if group.rank():  # all processes hold the same
            return
        scaler, model = self.trainer.accelerator.scaler, self.trainer.model
        state = replace(self.state, scaler=scaler.state_dict() if scaler else {})
        moments = {  # AdamW's two, and its step count, of every trainable weight
            f"{name}.{part}": value
            for name, weight in _named_trainable(model)
            for part, value in self.trainer.optimizer.state[weight].items()
        }
        checkpoints.save(self.job.checkpoints, Checkpoint(state, trainable_weights(model), moments))
        self.saved = time.monotonic()


def train(job: Job, report: Report, backend: Backend) -> TrainingResult:
    """Train, write the adapter, and return what was done.

    Without rows the adapter is a fresh one, and the model the base. Where memory does not hold
    `micro_batch` rows at once, fewer are tried, in the same batch; where it does not hold one, the
    longest rows are left out (see `list_lengths`). Raises TrainingError where the result, or the
    job, must not be used.

    Several processes are started anew for each attempt, and this one keeps off the GPUs.
    """
    _refuse_slow_cpu(job.model_dir)
    if not job.row_count:
        dtype = _say_how(backend, report)
        set_seed(job.seed)
        save_adapter(backends.load_model(backend, job, dtype), job.adapter_out)
        return TrainingResult(0, 0, 0.0, 0.0, tokens=0, train_seconds=0.0)
    settings = job.settings
    if fault := find_undivided(job.method, settings, job.processes):
        raise TrainingError(fault)
    if job.processes == 1:
        _say_how(backend, report)
    rows = _read_rows(job)
    jobs = _list_jobs(job, rows)
    sizes = list(list_micro_batches(settings.batch // job.processes, settings.micro_batch))
    tries = [(jobs[0], size) for size in sizes] + [(one, sizes[-1]) for one in jobs[1:]]
    for one, size in tries:
        length = one.settings.max_length
        if left_out := len(rows) - len(_fitting(rows, length)):
            said = f"{left_out} of {len(rows)} rows are left out, {TOO_LONG_FOR_MEMORY}: those of "
            begun_at = _steps_done(one) or 0
            message = f"{said}more than {length} tokens"
            report({"message": message, "left_out": left_out, "begun_at": begun_at})
        result = _try(one, size, report, backend)
        if result is not None:
            return replace(result, left_out=left_out)
    raise TrainingError(
        f"not even one row of up to {length} tokens fits into memory, and shorter ones are less "
        f"than half of all; free memory of the GPU, lower {job.method}.max_length to train on "
        "those alone, or use a smaller model"
    )


def _say_how(backend: Backend, report: Report) -> torch.dtype:
    """Report what trains; returns the type that it computes in."""
    dtype = _compute_dtype()
    report({"message": f"{backend.description}, in {_name(dtype)}"})
    return dtype


def _read_rows(job: Job) -> list[Row]:
    rows = [json.loads(line) for line in job.rows.read_bytes().splitlines()]
    if len(rows) != job.row_count:
        raise TrainingError(f"{job.rows} holds {len(rows)} rows of {job.row_count}")
    return rows


def _fitting(rows: list[Row], max_length: int) -> list[Row]:
    return [row for row in rows if row_length(row) <= max_length]


def _list_jobs(job: Job, rows: list[Row]) -> list[Job]:
    """The job as it is, and with fewer rows where memory is short, in the order to try them.

    A training that resumes keeps to the rows with which it began.
    """
    jobs = [
        job.model_copy(update={"settings": job.settings.model_copy(update={"max_length": length})})
        for length in list_lengths(rows, job.settings.max_length)
    ]
    begun = [index for index, one in enumerate(jobs) if _steps_done(one) is not None]
    return jobs[begun[0] :] if begun else jobs


def _steps_done(job: Job) -> int | None:
    """The step of a job's newest checkpoint."""
    found = checkpoints.find_newest(job.checkpoints, job.digest())
    return None if found is None else found.state.step


def _try(job: Job, micro_batch: int, report: Report, backend: Backend) -> TrainingResult | None:
    """The training with so many rows on the device at once; None where memory is too short.

    Memory that runs out in the middle may have gone to another program. So the last way to train on
    all these rows is tried again for as long as it gets further.
    """
    furthest = reached = 0

    def note(said: Mapping[str, Any]) -> None:
        nonlocal reached
        reached = said.get("step", reached)
        report(said)

    while True:
        try:
            if job.processes > 1:
                return launch.train_together(job, micro_batch, note)
            return train_once(job, micro_batch, note, backend)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        gc.collect()  # what the exception's frames held
        torch.cuda.empty_cache()
        short = f"no memory for {micro_batch} of the longest rows at once"
        report({"message": f"no memory left after step {reached}" if reached else short})
        if micro_batch > 1 or reached <= furthest:
            return None
        furthest, reached = reached, 0


def _refuse_slow_cpu(model_dir: Path) -> None:
    """Raise TrainingError for a large model on the CPU of a machine whose GPU torch does not see.

    It would train for days, without a word.
    """
    if torch.cuda.is_available():
        return
    reason = explain_missing_gpu()
    if gpus := list_gpus():
        reason = f"torch {torch.__version__} does not see {gpus[0].name} (driver {gpus[0].driver})"
    weights = count_weights(read_config(model_dir))
    if reason and weights >= LARGE:
        raise TrainingError(
            f"{reason}; {weights / 1e9:.1f} billion weights would train on the CPU for days: "
            "`python -m selfreward_lite doctor` says how to fix it"
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error is one of memory, of a GPU or not."""
    is_known = isinstance(error, torch.OutOfMemoryError)
    return is_known or any(text in str(error).casefold() for text in PLAIN_MEMORY_ERRORS)


def train_once(job: Job, micro_batch: int, report: Report, backend: Backend) -> TrainingResult:
    """`train`, with so many rows on the device at once; in each of the processes, if several."""
    started = time.monotonic()
    _prepare_process(job, report, backend)
    settings, digest = job.settings, job.digest()
    rows = _fitting(_read_rows(job), settings.max_length)
    order = arrange_rows(rows, settings.epochs, settings.batch, job.seed)
    checkpoint = checkpoints.find_newest(job.checkpoints, digest)
    state = checkpoint.state if checkpoint else State(digest, 0, [], {}, {})
    left = order[state.step * settings.batch :]
    dealt = deal_rows(left, settings.batch, micro_batch, group.rank(), group.count())
    model = backends.load_model(backend, job, _compute_dtype())
    trainer = make_trainer(model, job, dealt, micro_batch, _compute_dtype())
    if (held := len(trainer.train_dataset)) != len(dealt.rows):
        raise TrainingError(f"the trainer holds {held} rows of {len(dealt.rows)}")
    if job.method == "dpo" and "ref" not in trainer.model.peft_config:
        raise TrainingError(
            "the trainer made no copy of M(t-1) as reference; its reference would be the base"
        )
    # In bfloat16 usual steps round to nothing: 5 at 1e-6 moved 0.4 % of the weights.
    for _, weight in _named_trainable(trainer.model):
        weight.data = weight.data.float()
    if job.adapter_in is not None:  # TRL rounded `default`; the frozen `ref` it left as it was
        backends.restore_adapter(trainer.model, job.adapter_in)
    if isinstance(settings, Dpo) and settings.precompute_reference:
        _precompute_reference(trainer, dealt.rows)
    watcher = Watcher(trainer, job, state, report)
    _set_optimizer(trainer, job, math.ceil(len(order) / settings.batch), state.step)
    if checkpoint:
        _restore_checkpoint(trainer, checkpoint)
        report({"message": f"resumes from step {state.step}"})
    elif scaler := trainer.accelerator.scaler:
        scaler.load_state_dict({**scaler.state_dict(), "scale": FIRST_SCALE})
    trainer.add_callback(watcher)
    _vary_dropout(job)
    if _compiles(backend):
        report({"message": COMPILES})
    loaded = time.monotonic()
    trainer.train()
    done = watcher.state
    end = done.step * settings.batch
    result = TrainingResult(
        steps=done.step,
        rows=len({id(row) for row in order[:end]}),
        moved_share=moved_share(watcher.before, trainer.model),
        first_margin=done.first["rewards/margins"] if job.method == "dpo" else 0.0,
        tokens=sum(map(count_tokens, order[state.step * settings.batch : end])),
        train_seconds=time.monotonic() - loaded,
        load_seconds=loaded - started,
        micro_batch=micro_batch,
        begun_at=state.step,
        skipped=watcher.skipped,
        first_loss=done.first.get("loss", math.nan),
        peak_bytes=_measure_peak(),
        ended_early=end < len(order),
        steps_planned=math.ceil(len(order) / settings.batch),
        out_of_time=watcher.out_of_time,
        max_length=settings.max_length,
        processes=group.count(),
        backend=backend.description,
        number_format=_name(_compute_dtype()),
        loss=describe_loss(trainer),
    )
    if not watcher.out_of_time and group.rank() == 0:
        save_adapter(trainer.model, job.adapter_out)
    return result


def _prepare_process(job: Job, report: Report, backend: Backend) -> None:
    """Seed it; set the limit of torch's memory, and begin to measure that."""
    set_seed(job.seed)
    if group.count() > 1:
        _say_how(backend, report)
    if not torch.cuda.is_available():
        return
    torch.cuda.reset_peak_memory_stats()  # an attempt before may have filled the GPU
    if job.memory is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, job.memory / total))


def _compiles(backend: Backend) -> bool:
    """Whether the first step compiles kernels, which takes minutes in every training."""
    return backend.name == "unsloth" and torch.cuda.is_available()


def _vary_dropout(job: Job) -> None:
    """Seed all processes but the first anew, so that they do not drop the same."""
    if group.rank():
        set_seed(job.seed + group.rank())


def _measure_peak() -> float | None:
    """Bytes of the GPU that torch held at most, on the GPU where it held most; None without one."""
    if not torch.cuda.is_available():
        return None
    return group.find_largest(float(torch.cuda.max_memory_reserved()))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def trainable_weights(model: torch.nn.Module) -> Weights:
    """Copies of the trainable weights by name."""
    return {name: weight.detach().clone() for name, weight in _named_trainable(model)}


def _named_trainable(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def moved_share(before: Weights, model: torch.nn.Module) -> float:
    """The share of trainable weights, in [0, 1], that are finite and differ from `before`."""
    after = dict(_named_trainable(model))
    moved = sum(
        int(((after[name] != weight) & after[name].isfinite()).sum())
        for name, weight in before.items()
    )
    return moved / sum(weight.numel() for weight in before.values())


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter `default` alone, synced; raises TrainingError if it is not finite."""
    for name, weight in _named_trainable(model):
        if not torch.isfinite(weight).all():
            raise TrainingError(f"{name} is not finite after training; lower the learning rate")
    model.save_pretrained(str(folder), selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    for file in folder.iterdir():
        file.chmod(0o644)
    sync_folder(folder)  # a power cut must not leave half an adapter


def _set_optimizer(trainer: Any, job: Job, steps: int, done: int) -> None:
    """AdamW as TRL would make it, and a cosine over all `steps`, where `done` of them left it."""
    rate, weights = job.settings.learning_rate, [one for _, one in _named_trainable(trainer.model)]
    # A fused step skips a float16 overflow by itself, and accelerate 1.15 does not report it.
    fused = trainer.accelerator.scaler is None
    trainer.optimizer = torch.optim.AdamW(
        [{"params": weights, "initial_lr": rate}], lr=rate, weight_decay=0.0, fused=fused
    )
    trainer.lr_scheduler = get_cosine_schedule_with_warmup(
        trainer.optimizer, int(job.settings.warmup * steps), steps, last_epoch=done - 1
    )


def _restore_checkpoint(trainer: Any, checkpoint: Checkpoint) -> None:
    """Put adapter, optimizer and gradient scale back where a checkpoint left them."""
    for name, weight in _named_trainable(trainer.model):
        weight.data.copy_(checkpoint.adapter[name])
        trainer.optimizer.state[weight] = {
            part: checkpoint.optimizer[f"{name}.{part}"].to(weight.device)
            for part in ("step", "exp_avg", "exp_avg_sq")
        }
    if trainer.accelerator.scaler and checkpoint.state.scaler:
        trainer.accelerator.scaler.load_state_dict(checkpoint.state.scaler)


def _precompute_reference(trainer: Any, rows: list[Row]) -> None:
    """Give every row the reference's log probabilities, each different row read once.

    TRL's own way would do it before the adapter's weights are restored.
    """
    # Prepared as in training: in mixed precision the same weights give other numbers without it.
    model = trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True).eval()
    unique = list({id(row): row for row in rows}.values())
    size = trainer.args.per_device_train_batch_size
    found = {}
    for start in range(0, len(unique), size):
        part = unique[start : start + size]
        with torch.no_grad():
            chosen, rejected = trainer.compute_ref_log_probs(
                model, trainer._prepare_inputs(trainer.data_collator(part))
            )
        for row, good, bad in zip(part, chosen.tolist(), rejected.tolist(), strict=True):
            found[id(row)] = {**row, "ref_chosen_logps": good, "ref_rejected_logps": bad}
    model.train()
    trainer.train_dataset = Dataset.from_list([found[id(row)] for row in rows])
    trainer.precompute_ref_logps = True


def _compute_dtype() -> torch.dtype:
    """float32 on a CPU, bfloat16 if all GPUs have compute capability 8, else float16 (see BF16)."""
    if not torch.cuda.is_available():
        return torch.float32
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST:
        raise TrainingError(
            f"compute capability {capability} is too old: {OLDEST} is needed; use another GPU"
        )
    return torch.float16 if group.is_any(capability < BF16) else torch.bfloat16
