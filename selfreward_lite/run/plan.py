"""What a run needs before it starts: hours, GPU memory, disk, download.

Hours are amounts (from the table of stages) times costs a piece: estimated from a GPU's data
sheet (`speed`), or measured in the run's own stages. Hours assume average text lengths; disk
counts every text at its longest, so that no run fills the disk.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from selfreward_lite.config.settings import Sampling, Settings
from selfreward_lite.data import hub
from selfreward_lite.data.store import Store
from selfreward_lite.method import canaries
from selfreward_lite.models import memory
from selfreward_lite.models.gguf_folder import find_shape
from selfreward_lite.models.hf_folder import BASES, SHAPES, ModelShape, read_config
from selfreward_lite.models.memory import (
    count_adapter_weights,
    count_linear_weights,
    count_weights,
    estimate_base,
)
from selfreward_lite.run.speed import (
    DPO_OPERATIONS,
    GPU_SPEEDS,
    SFT_OPERATIONS,
    estimate_costs,
    gpu_key,
)
from selfreward_lite.run.stages import (
    ANSWERS,
    EFT_DRAWN,
    Costs,
    assume_lengths,
    count_task_answers,
    seconds_by_stage,
)
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import Json, free_bytes
from selfreward_lite.system.gpu import list_gpus

TOKEN_BYTES = 4.5  # bytes of text a token, on the long side for English
RECORD_BYTES = 400  # ids, numbers and index entries of one record
ADAPTER_BYTES = 8  # on disk: a weight in float32 in the PEFT folder, and in the GGUF
CHECKPOINT_BYTES = 24  # a weight with AdamW's moments, in two checkpoints: the newest and the last
ID_BYTES = 6  # of a token id in a trainer's rows
LOG_BYTES = 8_000_000  # SQLite's write-ahead log, and the logs of trainers and exporters
# A complete run of a preset that needs no GPU, where it was measured (docs/results.md).
CPU_TIMES = {"tiny": "5 minutes on two CPU cores"}


# -- costs that were measured ----------------------------------------------------------------------


def measure_costs(store: Store, settings: Settings) -> Costs:
    """Costs from the stages that a run has done, each as it was done last.

    A stage not done yet is priced like the stage nearest to it, by assumed lengths. Raises
    LookupError before the seed stage is over.
    """
    newest = store.newest()
    if newest is None:
        raise LookupError(f"{store.folder} has measured nothing yet")
    ended = [row for row in store.stages() if row.ended]
    if not settings.seed_stage.trains:  # M0 was not asked: the base's texts are copied
        copied = ("eval_responses", "eval_judgments")
        base = {f"base_{name}": name for name in copied}
        ended = [
            row._replace(stage=base.get(row.stage, row.stage))
            for row in ended
            if row.iteration or row.stage not in copied
        ]
    judges, lengths = settings.judge.count, assume_lengths(settings)
    pieces = {
        "responses": settings.responses.count,
        "judgments": judges,
        "battles": judges * (judges - 1),
        "eval_judgments": settings.evaluation.judgments,
    }
    spent = {
        row.stage: row.seconds / (row.done * pieces.get(row.stage, 1))
        for row in sorted(ended)
        if row.done
    }
    response = spent.get("responses", spent["eval_responses"])
    judgment = spent.get("judgments", spent["eval_judgments"])
    if settings.seed_stage.trains:
        sft = _token_cost(store, 0, settings)
    else:  # M0 was not trained: like a token of a judgment
        judging = [row.seconds for row in ended if row.stage == "eval_judgments"]
        ranked = settings.seed_stage.eval_prompts * ANSWERS * settings.evaluation.judgments
        sft = max(judging) / (ranked * lengths.judged)
    return {
        "candidate": spent.get("candidates", response * lengths.candidate / lengths.response),
        "response": response,
        "judgment": judgment,
        "battle": spent.get("battles", judgment * lengths.battle / lengths.judgment),
        "sft": sft,
        "dpo": _token_cost(store, newest, settings)
        if newest
        else sft * DPO_OPERATIONS / SFT_OPERATIONS,
        "start": store.metrics(newest).get("training_load_seconds") or 0.0,
        "base": spent["base"],
        "export": spent["export"],
    }


def _token_cost(store: Store, iteration: int, settings: Settings) -> float:
    """Seconds of a token trained on: counted by the trainer, or else assumed.

    Where the number of processes has changed since, as many times fewer or more are assumed.
    """
    known = store.metrics(iteration)
    seconds = known["training_train_seconds"]
    if seconds is None:
        raise LookupError(f"{store.folder} does not say how long M{iteration} was trained")
    texts = 2 if iteration else 1  # a pair's row has two
    rows = known.get("training_rows_given") or 0.0
    tokens = known.get("training_tokens") or rows * texts * assume_lengths(settings).judged
    then = known.get("training_processes") or 1.0
    return seconds / max(1.0, tokens) * then / settings.training.processes


def affordable_prompts(settings: Settings, iteration: int, costs: Costs, budget: float) -> int:
    """How many prompts an iteration can have to be done in `budget` seconds; at most those set."""
    one, two = (
        sum(
            seconds_by_stage(
                settings.with_values("prompts", count=count), iteration, costs
            ).values()
        )
        for count in (1, 2)  # a training begins with the first prompt
    )
    count = 1 + math.floor((budget - one) / (two - one))
    return max(0, min(settings.prompts.count, count))


# -- a complete run --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """Seconds by iteration and stage (empty: unknown GPU); bytes of GPU memory (empty: no GPU)."""

    card: str | None
    source: str | None
    seconds: dict[int, dict[str, float]]
    memory: dict[str, int]

    def hours(self, iteration: int) -> float | None:
        """Hours of the seed stage (0) or of an iteration; None where nothing is known."""
        return sum(self.seconds.get(iteration, {}).values()) / 3600 or None

    def to_json(self) -> Json:
        """The form that is stored with a run and printed: a stage is "M1 training"."""
        seconds = {
            f"M{iteration} {stage}": spent
            for iteration, stages in self.seconds.items()
            for stage, spent in stages.items()
        }
        return {**vars(self), "seconds": seconds}


def predict(settings: Settings, shape: ModelShape, card: str | None) -> Prediction:
    """What to expect of a complete run on a GPU, stored before it starts and never changed."""
    key = gpu_key(card) if card else None
    peaks = memory.estimate_peaks(settings, shape).items()
    peak = {stage: sum(parts.values()) for stage, parts in peaks} if card else {}
    if key is None:
        return Prediction(card, None, {}, peak)
    costs = estimate_costs(settings, shape, GPU_SPEEDS[key])
    seconds = {
        iteration: seconds_by_stage(settings, iteration, costs)
        for iteration in range(settings.iterations + 1)
    }
    return Prediction(card, f"estimate for {key}", seconds, peak)


@dataclass(frozen=True)
class Estimate:
    """What a run needs on this machine: time, GPU memory by part, disk and download in bytes.

    `room` is the GPU's memory, None without a GPU; `free` is what the disk has.
    """

    shape: ModelShape
    prediction: Prediction
    peaks: dict[str, dict[str, int]]
    room: float | None
    disk: dict[str, int]
    free: int
    download: int

    @property
    def most(self) -> int:
        """Bytes of GPU memory in the stage that takes most."""
        return memory.largest_peak(self.peaks)


def estimate(settings: Settings, card: str | None, runs_dir: Path) -> Estimate:
    """What a run with these settings needs, on the GPU named `card` or on the one in this machine.

    Raises UserError for a `card` of which nothing is known.
    """
    name, room, gpus = card, None, list_gpus()
    if card is not None:
        if (key := gpu_key(card)) is None:
            raise UserError(
                f"--card {card}: no figures of it; choose one of {', '.join(GPU_SPEEDS)}"
            )
        room = GPU_SPEEDS[key].memory
    elif gpus:
        name, room = gpus[0].name, gpus[0].free
    shape = find_base_shape(settings.model.base)
    return Estimate(
        shape,
        predict(settings, shape, name),
        memory.estimate_peaks(settings, shape),
        room,
        disk_needs(settings, shape),
        free_bytes(runs_dir),
        _download(settings, shape),
    )


def find_base_shape(base: str) -> ModelShape:
    """The shape of a base: of its folder here, of the table, or of its config.json on the hub."""
    if base == hub.PACKAGED:
        return SHAPES["135m"]
    repository = hub.find_missing(base, "model")
    if repository is None:
        return find_shape(base)
    if repository.file is not None:
        raise UserError(
            f"{repository} is not on this machine, and a GGUF is planned by the file itself; "
            "`run` downloads it"
        )
    if repository.id in BASES:
        return SHAPES[BASES[repository.id]]
    return read_config(hub.fetch_config(repository))


def _download(settings: Settings, shape: ModelShape) -> int:
    """Bytes of a base and of OASST1 that are not here yet, roughly."""
    size = 0.0
    if repository := hub.find_missing(settings.model.base, "model"):
        linear = count_linear_weights(shape)
        packed = shape.packed or repository.id in BASES
        size += linear * (memory.NF4_BYTES if packed else 2) + 2 * (count_weights(shape) - linear)
    if hub.find_missing(settings.seed_stage.ranked, "dataset"):
        size += 41.6e6  # OASST1's two Parquet files, by the hub's page
    return int(size)


# -- disk ------------------------------------------------------------------------------------------


def disk_needs(
    settings: Settings, shape: ModelShape, newest: int | None = None, *, base_written: bool = False
) -> dict[str, int]:
    """Bytes that a run still needs: `base`, `adapters`, `records`, `working files`.

    `newest` is the number of the newest model that it has.
    """
    iterations, seed_stage = max(0, settings.iterations - (newest or 0)), newest is None
    adapter = count_adapter_weights(shape, settings.lora.rank)
    prompts, seed, asked = settings.prompts.count, settings.seed_stage, settings.evaluation
    judge, judgment = settings.judge, _record_bytes(settings.judge.draw)
    # What one iteration trains on: texts at their longest, battles of all judgments.
    responses = prompts * settings.responses.count
    battles = prompts * judge.count * (judge.count - 1)
    trained_on = (
        responses * _record_bytes(settings.responses.draw)
        + responses * judge.count * judgment
        + battles * _record_bytes(settings.meta_judge.draw)
    )
    # What one model answers and judges when measured; four ranked answers a prompt.
    judged = (
        seed.eval_prompts * 4 * asked.judgments
        + 2 * asked.outside_prompts * asked.outside_judgments
        + len(canaries.load_hostile_texts(canaries.CANARY)) * asked.canary_judgments
    )
    answered = asked.prompts + count_task_answers(settings)
    measured = answered * _record_bytes(asked.draw) + judged * judgment
    records = iterations * (trained_on + measured)
    if seed_stage:
        # Twice the examples wanted are judged, since not all agree; base and M0 are both measured.
        records += EFT_DRAWN * seed.train_examples * seed.attempts * judgment + 2 * measured
    rows = 2 * prompts if iterations else seed.train_examples
    longest = max(settings.sft.max_length, 2 * settings.dpo.max_length)
    working = LOG_BYTES + rows * longest * ID_BYTES + adapter * CHECKPOINT_BYTES
    return {
        "base": 0 if base_written else int(estimate_base(settings.model, shape)),
        "adapters": (iterations + seed_stage) * adapter * ADAPTER_BYTES,
        "records": int(records),
        "working files": working if iterations or seed_stage else 0,
    }


def _record_bytes(draw: Sampling) -> float:
    """Bytes of a record with the longest text that is drawn."""
    return RECORD_BYTES + TOKEN_BYTES * draw.max_tokens
