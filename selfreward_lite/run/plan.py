"""What a run needs before it is begun: hours a stage, disk; and how many prompts fit the hours that there are.

    counts      settings → how often each stage asks, and how much is trained on
    Costs       seconds a piece: estimated from a card's figures, or measured in the run's own stages
    seconds     counts × costs, stage by stage, named as in the store, so that what was predicted stands beside what came

Knows: the arithmetic. Does not know: clocks, cards that are there. Disk counts every record at its longest, so that a run that
passes does not fill the disk in its third night; hours count texts at the lengths that are assumed of them.
"""

# What a run will need on this machine, before anything starts, as one value: hours, card memory, disk, download.
#
# Knows: which shape a base has, which card is there, what is on this disk. Does not know: the arithmetic (`plan`, `memory`), or how
# it is shown.

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub
from selfreward_lite.models import memory
from selfreward_lite.models.hf_folder import BASES, SHAPES, Llama, read_config
from selfreward_lite.models.memory import adapter_weights, base_size, linear_weights, peaks, weights
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import free_bytes
from selfreward_lite.system.gpu import list_gpus

if TYPE_CHECKING:
    from selfreward_lite.data.store import Store

TOKEN_BYTES = 4.5  # bytes of text a token, on the long side for English
RECORD_BYTES = 400  # ids, numbers and index entries of one record
ADAPTER_BYTES = 8  # a weight in float32 in the PEFT folder, and in the GGUF
CHECKPOINT_BYTES = (
    24  # a weight with AdamW's moments, in the checkpoint that is written and the one before it
)
ID_BYTES = 6  # of a token id in a trainer's rows
LOG_BYTES = 8_000_000  # SQLite's write-ahead log, and what trainers and exporters say
CANARIES = 50

# What is assumed of texts, until a run has shown what they are. Shares of the length limits; tokens.
RESPONSE_SHARE = 0.4  # Llama-3-8B-Instruct answers AlpacaEval in 1,899 characters (arXiv 2407.19594), about 420 tokens
JUDGMENT_SHARE = 0.5  # a hundred words and a score
BATTLE_SHARE = 0.5
PROMPT_TOKENS = 60
JUDGE_TOKENS = {
    "judge": 400,
    "meta_judge": 400,
    "compare": 150,
    "new_prompts": 400,
}  # of a question, apart from what it is about
PAIR_SHARE = (
    0.6  # of the prompts give a response pair: half of them tie (a peer's published judge logs)
)
JUDGMENT_PAIR_SHARE = 0.8
ANSWERS = 2.85  # ranked answers a prompt of OASST1 (arXiv 2401.10020)
EFT_DRAWN = 2.0  # ranked answers judged for every EFT example that is kept
CANDIDATES = 1.5  # asked for, for every prompt that is kept


@dataclass(frozen=True)
class Counts:
    """How much a stage does: so many candidates, responses, judgments, battles, files, or tokens that are trained on."""

    iteration: int
    stage: str
    kind: str  # a field of Costs
    amount: float


@dataclass(frozen=True)
class StageCosts:
    """Seconds of one candidate, response, judgment, battle, token trained on by SFT or DPO, export of the base or an adapter."""

    candidate: float
    response: float
    judgment: float
    battle: float
    sft: float
    dpo: float
    base: float
    export: float
    source: str


@dataclass(frozen=True)
class Rates:
    """Seconds of a token that is generated among as many sequences as a run has, of one that is read, of one in DPO."""

    token: float
    read: float
    dpo: float


@dataclass(frozen=True)
class Speeds:
    """What a card is said to do: bytes of memory, bytes a second from it, 16-bit operations a second of its matrix units."""

    memory: float
    bandwidth: float
    operations: float


# By what is in the card's name; the vendor's figures (dense, 16 bits in, 32 bits summed; a T4 sums in 16 bits).
KNOWN = {
    "T4": Speeds(15e9, 320e9, 65e12),
    "RTX 3060": Speeds(12e9, 360e9, 25.6e12),
    "RTX 3090": Speeds(24e9, 936e9, 71e12),
    "RTX 4090": Speeds(24e9, 1008e9, 165e12),
    "A100": Speeds(40e9, 1555e9, 312e12),
    "H100": Speeds(80e9, 3350e9, 989e12),
    "H200": Speeds(141e9, 4800e9, 989e12),
}

# Shares of those figures that are reached: guesses, of the size that public measurements of llama.cpp and QLoRA show.
READ_SHARE, STEP_SHARE, PREFILL_SHARE, TRAIN_SHARE = 0.7, 0.35, 0.5, 0.3
BASE_SECONDS = 40e-9  # a weight of the base, on two CPU cores: reading, unpacking, writing (30 here, a lead: LOG.md)

# An adapter's export is checked on a few prompts and judgments, with it and without, by llama.cpp on two CPU cores, a guess.
CHECKED_PROMPTS, CHECKED_JUDGMENTS, CPU_OPERATIONS = 4, 1, 60e9  # the last a second

# Floating-point operations a weight and token: 2 forward, 2 backward (no gradients of frozen weights), 2 forward again
# (checkpointing); DPO's reference goes forward too.
SFT_OPERATIONS, DPO_OPERATIONS = 6, 8


def counts(settings: Settings, iterations: range, *, seed_stage: bool) -> list[Counts]:
    """Return what the seed stage and these iterations do, in their order, for the stages that take time."""
    found = _seed_counts(settings) if seed_stage else []
    for iteration in iterations:
        found += _iteration_counts(settings, iteration, settings.prompts.count)
    return found


def estimated(settings: Settings, llama: Llama, speeds: Speeds, name: str) -> StageCosts:
    """Return costs on a card, from its figures: a step reads weights and cache once and computes for every sequence."""
    size, parallel = weights(llama), settings.engine.parallel
    texts = _lengths(settings)
    cells = min(
        settings.engine.context,
        parallel * (PROMPT_TOKENS + JUDGE_TOKENS["judge"] + texts["response"]),
    )
    cell = llama.layers * llama.kv_heads * llama.head_dim * 4
    step = max(
        (base_size(settings.model, llama) + cells * cell) / (READ_SHARE * speeds.bandwidth),
        2 * size * parallel / (STEP_SHARE * speeds.operations),
    )
    trained = DPO_OPERATIONS * linear_weights(llama) / (TRAIN_SHARE * speeds.operations)
    rates = Rates(
        token=step / parallel, read=2 * size / (PREFILL_SHARE * speeds.operations), dpo=trained
    )
    return costs_from_rates(settings, llama, rates, f"estimate for {name}")


def costs_from_rates(settings: Settings, llama: Llama, rates: Rates, source: str) -> StageCosts:
    """Return costs from what a card does in a second, however that is known."""
    texts, size = _lengths(settings), weights(llama)
    token, read = rates.token, rates.read
    shared = texts["response"] + PROMPT_TOKENS
    checked = 2 * (CHECKED_PROMPTS * PROMPT_TOKENS + CHECKED_JUDGMENTS * _judge_row(settings))
    return StageCosts(
        candidate=texts["candidate"] * token + JUDGE_TOKENS["new_prompts"] * read,
        response=texts["response"] * token + PROMPT_TOKENS / settings.responses.count * read,
        judgment=texts["judgment"] * token
        + (JUDGE_TOKENS["judge"] + shared) / settings.judge.count * read,
        battle=texts["battle"] * token
        + (2 * texts["judgment"] + shared / settings.judge.count) * read,
        sft=rates.dpo * SFT_OPERATIONS / DPO_OPERATIONS,
        dpo=rates.dpo,
        base=BASE_SECONDS * size,
        export=checked * 2 * size / CPU_OPERATIONS,
        source=source,
    )


def gpu_key(name: str) -> str | None:
    """Return which of the cards of the table a card's name means; of a laptop's, which is slower than its namesake, none.

    >>> gpu_key("NVIDIA GeForce RTX 3090 Ti"), gpu_key("NVIDIA RTX A1000"), gpu_key("NVIDIA GeForce RTX 4090 Laptop GPU")
    ('RTX 3090', None, None)
    """
    if "Laptop" in name or "Max-Q" in name:
        return None
    return next((key for key in KNOWN if re.search(rf"\b{key}\b", name)), None)


def predicted(settings: Settings, llama: Llama, card: str | None) -> dict[str, Any]:
    """Return what is to be expected of a whole run on a card: seconds a stage (none for a card without figures, or no card), and
    bytes of its memory a stage. Kept with the run before it begins, and not touched afterwards."""
    name = gpu_key(card) if card else None
    found = counts(settings, range(1, settings.iterations + 1), seed_stage=True)
    peak = {stage: sum(parts.values()) for stage, parts in peaks(settings, llama).items()}
    if name is None:
        return {"card": card, "source": None, "seconds": {}, "memory": peak if card else {}}
    costs = estimated(settings, llama, KNOWN[name], name)
    return {"card": card, "source": costs.source, "seconds": seconds(found, costs), "memory": peak}


def measured(store: Store, settings: Settings) -> StageCosts:
    """Return costs from the stages that a run has done.

    What it has not done yet follows from what is nearest to it, by the lengths that are assumed of both. Raises LookupError
    where its seed stage is not over: there is nothing to go by.
    """
    spent = {
        (t, stage): seconds / items
        for t, stage, items, _, seconds, ended in store.stages()
        if ended and items
    }
    newest = store.newest()
    if newest is None:
        raise LookupError(f"{store.folder} has measured nothing yet")

    def latest(*stages: tuple[str, float]) -> float:
        """Seconds of a piece: the first of these stages that there is, where it was done last; with the pieces in an item."""
        for stage, pieces in stages:
            for t in range(newest + 1, -1, -1):
                if (t, stage) in spent:
                    return spent[t, stage] / pieces
        raise LookupError(f"{store.folder} has none of {stages}")

    responses, judges = settings.responses.count, settings.judge.count
    texts = _lengths(settings)
    shorter, quicker = texts["response"] / texts["candidate"], texts["judgment"] / texts["battle"]
    trained = {
        t: store.metrics(t)["training_train_seconds"] / max(1.0, _tokens(store, t, settings))
        for t in range(newest + 1)
    }
    if not settings.seed_stage.trains:
        trained[0] = _untrained(store, settings)
    judged = settings.evaluation.judgments
    return StageCosts(
        candidate=latest(
            ("candidates", 1), ("responses", responses * shorter), ("eval_responses", shorter)
        ),
        response=latest(("responses", responses), ("eval_responses", 1)),
        judgment=latest(("judgments", judges), ("eval_judgments", judged)),
        battle=latest(
            ("battles", judges * (judges - 1)),
            ("judgments", judges * quicker),
            ("eval_judgments", judged * quicker),
        ),
        sft=trained[0],
        dpo=trained[newest] if newest else trained[0] * DPO_OPERATIONS / SFT_OPERATIONS,
        base=latest(("base", 1)),
        export=latest(("export", 1)),
        source="measured in this run",
    )


def _untrained(store: Store, settings: Settings) -> float:
    """Seconds of a token of SFT where M0 was not trained: as often as a judgment's token, since nothing is nearer to it."""
    spent = [
        seconds
        for t, stage, _, _, seconds, ended in store.stages()
        if ended and stage == "eval_judgments"
    ]
    judged = (
        settings.seed_stage.eval_prompts
        * ANSWERS
        * settings.evaluation.judgments
        * _judge_row(settings)
    )
    return max(spent, default=0.0) / judged


def seconds(found: list[Counts], costs: StageCosts) -> dict[str, float]:
    """Return the seconds of every stage, named "M<t> <stage>"."""
    prices = asdict(costs)
    return {f"M{one.iteration} {one.stage}": one.amount * prices[one.kind] for one in found}


def affordable(settings: Settings, iteration: int, costs: StageCosts, budget: float) -> int:
    """Return how many prompts an iteration can have so that all of it is done in `budget` seconds; at most those wanted."""
    fixed, one = (
        sum(seconds(_iteration_counts(settings, iteration, count), costs).values())
        for count in (0, 1)
    )
    return max(0, min(settings.prompts.count, math.floor((budget - fixed) / (one - fixed))))


def disk(
    settings: Settings, llama: Llama, iterations: int, *, seed_stage: bool, base_written: bool
) -> dict[str, int]:
    """Return the bytes that a run still needs, by what needs them: `base`, `adapters`, `records`, `working files`.

    `iterations` are those still to do; `seed_stage` says whether that is too.
    """
    base = 0.0 if base_written else base_size(settings.model, llama)
    adapter = adapter_weights(llama, settings.lora.rank)
    adapters = (iterations + seed_stage) * adapter * ADAPTER_BYTES
    records = iterations * (_records(settings) + _evaluation(settings))
    if seed_stage:
        # twice the examples wanted are judged, since not all agree; the base and M0 are both measured
        drawn = EFT_DRAWN * settings.seed_stage.train_examples * settings.seed_stage.attempts
        records += drawn * _judgment(settings) + 2 * _evaluation(settings)
    longest = max(settings.sft.max_length, 2 * settings.dpo.max_length)
    rows = max(
        settings.seed_stage.train_examples * (iterations < 1),
        2 * settings.prompts.count * (iterations > 0),
    )
    working = (
        LOG_BYTES + rows * longest * ID_BYTES + adapter * CHECKPOINT_BYTES
        if iterations or seed_stage
        else 0
    )
    return {
        "base": int(base),
        "adapters": int(adapters),
        "records": int(records),
        "working files": int(working),
    }


# -- how often ------------------------------------------------------------------------------------------------------------


def _seed_counts(settings: Settings) -> list[Counts]:
    wanted, judged = settings.seed_stage, _judge_row(settings)
    drawn = EFT_DRAWN * wanted.train_examples * wanted.attempts
    answered = PROMPT_TOKENS + _lengths(settings)["response"]
    trained = settings.sft.epochs * (
        wanted.train_examples * judged + wanted.ift_examples * answered
    )
    return [
        Counts(0, "base", "base", 1),
        *_asked_of(settings, 0, "base_"),
        Counts(0, "eft_judgments", "judgment", drawn),
        Counts(0, "training", "sft", trained),
        *_measuring(settings, 0),
    ]


def _iteration_counts(settings: Settings, iteration: int, prompts: int) -> list[Counts]:
    responses = prompts * settings.responses.count
    judges = settings.for_iteration(iteration).judgment_pairs
    battles = prompts * settings.judge.count * (settings.judge.count - 1) if judges else 0
    candidates = 0.0 if settings.prompts.file else CANDIDATES * prompts
    pairs = PAIR_SHARE * 2 * (PROMPT_TOKENS + _lengths(settings)["response"])
    if judges:
        pairs += JUDGMENT_PAIR_SHARE * 2 * _judge_row(settings)
    return [
        Counts(iteration, "candidates", "candidate", candidates),
        Counts(iteration, "responses", "response", responses),
        Counts(iteration, "judgments", "judgment", responses * settings.judge.count),
        Counts(iteration, "battles", "battle", battles),
        Counts(iteration, "training", "dpo", settings.dpo.epochs * prompts * pairs),
        *_measuring(settings, iteration),
    ]


def _measuring(settings: Settings, iteration: int) -> list[Counts]:
    """A new model's adapter is exported, and the model measured."""
    asked = settings.evaluation
    outside = asked.outside_prompts * asked.outside_judgments
    found = [
        Counts(iteration, "export", "export", 1),
        *_asked_of(settings, iteration, ""),
        Counts(iteration, "canary_judgments", "judgment", CANARIES * asked.canary_judgments),
        Counts(iteration, "outside_judgments", "judgment", outside),
    ]
    if iteration:
        found.append(Counts(iteration, "self_judgments", "judgment", outside))
        found.append(Counts(iteration, "comparisons", "battle", 2 * asked.prompts))
    return found


def _asked_of(settings: Settings, iteration: int, prefix: str) -> list[Counts]:
    judged = settings.seed_stage.eval_prompts * ANSWERS * settings.evaluation.judgments
    return [
        Counts(iteration, f"{prefix}eval_responses", "response", settings.evaluation.prompts),
        Counts(iteration, f"{prefix}eval_judgments", "judgment", judged),
    ]


def _lengths(settings: Settings) -> dict[str, float]:
    """Tokens that are assumed of each kind of text."""
    return {
        "candidate": 0.2 * settings.prompts.draw.max_tokens,
        "response": RESPONSE_SHARE * settings.responses.draw.max_tokens,
        "judgment": JUDGMENT_SHARE * settings.judge.draw.max_tokens,
        "battle": BATTLE_SHARE * settings.meta_judge.draw.max_tokens,
    }


def _judge_row(settings: Settings) -> float:
    """Tokens of a judgment with its question."""
    texts = _lengths(settings)
    return JUDGE_TOKENS["judge"] + PROMPT_TOKENS + texts["response"] + texts["judgment"]


def _tokens(store: Store, iteration: int, settings: Settings) -> float:
    """Tokens that were trained on: those that were counted, or else those that are assumed."""
    known = store.metrics(iteration).get("training_tokens")
    rows = store.metrics(iteration).get("training_rows_given") or 0.0
    return known or rows * (_judge_row(settings) if not iteration else 2 * _judge_row(settings))


# -- disk -----------------------------------------------------------------------------------------------------------------


def _records(settings: Settings) -> float:
    """Bytes of what one iteration trains on: every response and judgment at its longest, battles among all judgments."""
    responses = settings.prompts.count * settings.responses.count
    battles = settings.prompts.count * settings.judge.count * (settings.judge.count - 1)
    return (
        responses * (RECORD_BYTES + TOKEN_BYTES * settings.responses.draw.max_tokens)
        + responses * settings.judge.count * _judgment(settings)
        + battles * (RECORD_BYTES + TOKEN_BYTES * settings.meta_judge.draw.max_tokens)
    )


def _evaluation(settings: Settings) -> float:
    """Bytes of what one model answers and judges to be measured; four ranked answers a prompt."""
    asked = settings.evaluation
    judged = (
        settings.seed_stage.eval_prompts * 4 * asked.judgments
        + 2 * asked.outside_prompts * asked.outside_judgments
    )
    judged += CANARIES * asked.canary_judgments
    return asked.prompts * (
        RECORD_BYTES + TOKEN_BYTES * asked.draw.max_tokens
    ) + judged * _judgment(settings)


def _judgment(settings: Settings) -> float:
    return RECORD_BYTES + TOKEN_BYTES * settings.judge.draw.max_tokens


@dataclass(frozen=True)
class Estimate:
    """Seconds and card memory a stage, disk by what needs it, in bytes; what the disk has free, what is to be downloaded.

    `seconds` is empty where nothing is known of the card, or there is none; `room` is the card's memory, None without one.
    """

    llama: Llama
    card: str | None
    source: str | None
    seconds: dict[str, float]
    peaks: dict[str, dict[str, int]]
    room: float | None
    disk: dict[str, int]
    free: int
    download: int

    @property
    def most(self) -> int:
        """Bytes of the card that the hungriest stage takes."""
        return memory.most(self.peaks)

    def hours(self, iteration: int) -> float | None:
        """Hours of the seed stage (0) or of an iteration; None where nothing is known."""
        return (
            sum(
                spent for stage, spent in self.seconds.items() if stage.startswith(f"M{iteration} ")
            )
            / 3600
            or None
        )


def forecast(settings: Settings, card: str | None, runs_dir: Path) -> Estimate:
    """Return what a run with these settings will need, on a named `card` or on the one that is there.

    Raises UserError for a card of which nothing is known.
    """
    if card is not None and gpu_key(card) is None:
        raise UserError(f"--card {card}: no figures of it; choose one of {', '.join(KNOWN)}")
    llama, there = _shape(settings.model.base), list_gpus()
    name = card or (there[0].name if there else None)
    expected = predicted(settings, llama, name)
    known = KNOWN[key].memory if (key := gpu_key(name or "")) else None
    return Estimate(
        llama,
        name,
        expected["source"],
        expected["seconds"],
        memory.peaks(settings, llama),
        known if card or not there else float(there[0].free),
        disk(settings, llama, settings.iterations, seed_stage=True, base_written=False),
        free_bytes(runs_dir),
        _download(settings, llama),
    )


def _shape(base: str) -> Llama:
    """The shape of a base that is here, or is known by name, or can be asked for."""
    repository = hub.parse_repository(base)
    if repository is None or hub.is_downloaded(repository, "model"):
        return read_config(hub.find_model_folder(base))
    if repository.id in BASES:
        return SHAPES[BASES[repository.id]]
    return read_config(hub.fetch_config(repository))


def _download(settings: Settings, llama: Llama) -> int:
    """Bytes of a base and of OASST1 that are not here yet, roughly."""
    size, repository = 0.0, hub.parse_repository(settings.model.base)
    if repository and not hub.is_downloaded(repository, "model"):
        linear = memory.linear_weights(llama)
        size += linear * memory.NF4_BYTES + 2 * (memory.weights(llama) - linear)
    ranked = hub.parse_repository(settings.seed_stage.ranked)
    if ranked and not hub.is_downloaded(ranked, "dataset"):
        size += 41.6e6  # OASST1's two Parquet files, by the hub's page
    return int(size)
