"""A run as one JSON document and as tables of text for terminal, page, app and notebook.

Only reads the store. Numbers in the document are rounded to four digits; None means not measured.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple, TypedDict

from selfreward_lite.data import queries
from selfreward_lite.data.ranked import HUMAN, RankedPrompt, split_ranked
from selfreward_lite.data.records import (
    BASE,
    Battle,
    Comparison,
    Judgment,
    JudgmentPair,
    ModelId,
    Prompt,
    Response,
    ResponsePair,
)
from selfreward_lite.data.rows import describe_counts
from selfreward_lite.data.store import NO_TIME, TIME_IS_UP, StageRow, Store
from selfreward_lite.method.judgments import SCORE_TOLERANCE, score_responses
from selfreward_lite.method.metrics import measure_longer
from selfreward_lite.method.statistics import mean_or_none, nan_to_none
from selfreward_lite.models.memory import DRIVER
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import format_bytes

MEASURED = (
    "exact_score",
    "exact_score_error",
    "exact_score_trained_kinds",
    "exact_score_trained_kinds_error",
    "exact_score_unseen_kinds",
    "exact_score_unseen_kinds_error",
    "answer_right",
    "answer_right_error",
    "win_rate_vs_seed",
    "win_rate_vs_seed_error",
    "judge_pair_accuracy",
    "judge_pair_accuracy_error",
    "longer_pair_accuracy",
    "longer_pair_accuracy_error",
    "judge_read_share",
    "judge_written_share",
    "judge_first_share",
    "judge_forced_share",
    "mean_response_tokens",
    "self_score",
    "outside_score",
    "canary_score",
    "honest_bad_score",
    "greedy_agreement",
)

# More metrics of a judge (arXiv 2401.10020, section 3.2) and of the data, for tables with room.
MORE = (
    "judge_pair_accuracy_without_ties",
    "longer_pair_accuracy_without_ties",
    "judge_five_best",
    "judge_exact_match",
    "longer_exact_match",
    "judge_spearman",
    "longer_spearman",
    "judge_kendall",
    "longer_kendall",
    "judge_tie_rate",
    "judge_top_share",
)
OF_DATA = (
    "pair_yield",
    "tie_rate",
    "unread_rate",
    "forced_rate",
    "battle_forced_rate",
    "comparison_forced_rate",
    "response_pairs",
    "judgment_pairs",
)

# Sizes of the seed data in arXiv 2401.10020 (version 3, section 3.1).
TRAINED = (("eft_examples", "EFT examples", "1,630"), ("ift_examples", "IFT examples", "3,200"))

DECISIONS = {True: "passed", False: "refused", None: "off"}
ModelFigures = dict[str, float | None]


class RunSummary(TypedDict):
    """A run as one JSON document; `iterations` holds one row a model, M0 first."""

    run: str
    preset: str
    seconds: float
    base: ModelFigures
    iterations: list[ModelFigures]
    refused: dict[str, dict[str, str]]


class Table(NamedTuple):
    """A table of text; every row is as long as the head."""

    head: list[str]
    rows: list[list[str]]

    def to_markdown(self) -> str:
        """The table as Markdown, for model cards."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summarize_run(store: Store) -> RunSummary:
    """Return counts and measurements of every model. Raises UserError if there is no run yet."""
    settings = store.fact("settings")
    if settings is None:
        raise UserError(
            f"{store.folder} holds no run yet; start it with `run --name {store.folder.name}`"
        )
    base = load_metrics(store, BASE)
    return {
        "run": store.folder.name,
        "preset": settings["preset"],
        "seconds": round(sum(row.seconds for row in store.stages()), 1),
        "base": {name: _round(base[name]) for name in MEASURED if base.get(name) is not None},
        "iterations": [
            _summarize_iteration(store, iteration) for iteration in range(store.next_model())
        ],
        "refused": {
            ModelId(t).name: refused for t in store.models() if (refused := store.refusals(t))
        },
    }


def load_metrics(store: Store, model: int) -> ModelFigures:
    """Return what was measured of a model, and what follows from it.

    Runs of older versions did not store what "pick the longer answer" reaches; it is computed from
    their ranked answers. They did not store who wrote a score either, which stays unknown.
    """
    known = store.metrics(model)
    read, written = known.get("judge_read_share"), known.get("judge_written_share")
    if read is not None and written is not None:
        known["judge_forced_share"] = read - written
    is_old = "judge_pair_accuracy" in known and "longer_kendall" not in known
    if is_old and store.is_done(0, "ranked"):
        longer = measure_longer(queries.load_split(store, store.settings()).evaluation)
        known |= {name: nan_to_none(value) for name, value in longer.items()}
    return known


def title(name: str) -> str:
    """Return a measurement's name as tables and plots have it.

    >>> title("judge_pair_accuracy"), title("longer_pair_accuracy")
    ('judge pair accuracy', 'pick the longer: pair accuracy')
    """
    return re.sub("^longer ", "pick the longer: ", name.replace("_", " "))


def _summarize_iteration(store: Store, iteration: int) -> ModelFigures:
    """The training data of M(t), counted, and the measurements of M(t)."""
    author = ModelId(iteration - 1).name if iteration else HUMAN
    judgments = load_training_judgments(store, iteration)
    unread = sum(judgment.score is None for judgment in judgments)
    sources = Counter(judgment.source for judgment in judgments if judgment.score is not None)
    battles = store.made_by(Battle, iteration - 1, iteration) if iteration else []
    battles_forced = sum(battle.source == "forced" for battle in battles)
    compared = store.records(Comparison, iteration=iteration)
    verdicts_forced = sum(one.forced for one in compared)  # of two each, one for each order
    source = {"iteration": iteration} if iteration else {"origin": "ranked"}
    prompts = store.count(Prompt, **source)
    pairs = store.count(ResponsePair, iteration=iteration)
    metrics = load_metrics(store, iteration)
    seconds = [row.seconds for row in store.stages() if row.iteration == iteration]
    return {
        "iteration": iteration,
        "prompts": prompts,
        "responses": store.count(Response, iteration=iteration, model=author),
        "judgments": len(judgments),
        "judgments_unread": unread,
        "judgments_forced": sources["forced"],
        "judgments_first": sources["first"],
        "battles": len(battles),
        "battles_forced": battles_forced,
        "response_pairs": pairs,
        "judgment_pairs": store.count(JudgmentPair, iteration=iteration),
        "pair_yield": _round(pairs / prompts) if iteration and prompts else None,
        "tie_rate": _round(measure_tie_rate(store, iteration, judgments)) if iteration else None,
        "unread_rate": _round(unread / len(judgments)) if judgments else None,
        "forced_rate": _round(sources["forced"] / len(judgments)) if judgments else None,
        "battle_forced_rate": _round(battles_forced / len(battles)) if battles else None,
        "comparison_forced_rate": _round(verdicts_forced / (2 * len(compared)))
        if compared
        else None,
        **{name: _round(metrics.get(name)) for name in MEASURED},
        "seconds": round(sum(seconds), 1),
    }


def load_training_judgments(store: Store, iteration: int) -> list[Judgment]:
    """Return the judgments that M(t) was trained on, without those made for evaluation."""
    judgments = store.made_by(Judgment, iteration - 1, iteration)
    if iteration:
        items = store.done_items(iteration, "judgments")
        return [one for one in judgments if one.response_id in items]
    prompts = store.done_items(0, "eft_judgments")
    items = {one.id for one in store.records(Response, iteration=0) if one.prompt_id in prompts}
    tried = range(store.settings().seed_stage.attempts)  # the first look has others
    return [one for one in judgments if one.response_id in items and one.index in tried]


def measure_tie_rate(store: Store, iteration: int, judged: Sequence[Judgment]) -> float | None:
    """Return the share of response pairs of one prompt with equal scores; None without pairs."""
    # Unlike a pair, a tie needs one judgment that could be read.
    every_read: dict[str, float] = {"min_read_share": 0.0, "min_read": 1}
    scores = score_responses(judged, store.settings().with_values("judge", **every_read))
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for response in store.made_by(Response, iteration - 1, iteration):
        if (score := scores.get(response.id)) is not None:
            by_prompt[response.prompt_id].append(score)
    return mean_or_none(
        abs(a - b) <= SCORE_TOLERANCE
        for means in by_prompt.values()
        for a, b in combinations(means, 2)
    )


# -- tables --------------------------------------------------------------------------------------


def build_run_table(rows: Sequence[ModelFigures]) -> Table:
    """Return counts and measurements, a column a model; without measurements that no model has."""
    names = [name for name in (rows[0] if rows else ()) if name != "iteration"]
    columns = {ModelId(number).name: row for number, row in enumerate(rows)}
    return _build_model_table(
        names, columns, lambda row, name: "–" if row[name] is None else str(row[name])
    )


def build_exact_table(summary: RunSummary) -> Table:
    """Return exact scores with standard errors, a column a model, the base first.

    No rows where nothing has constraints that a program checks.
    """
    models = {"base": summary["base"]}
    models |= {ModelId(number).name: row for number, row in enumerate(summary["iterations"])}
    names = {
        "all": "exact_score",
        "trained kinds": "exact_score_trained_kinds",
        "unseen kinds": "exact_score_unseen_kinds",
        "all constraints kept": "answer_right",
        "win rate against M0": "win_rate_vs_seed",
    }
    if all(row.get("exact_score_trained_kinds") is None for row in models.values()):
        names = {}
    rows = [
        [shown, *(_format_score(row, name) for row in models.values())]
        for shown, name in names.items()
        if any(row.get(name) is not None for row in models.values())
    ]
    return Table(["exact score, 0 to 5", *models], rows)


def _format_score(row: ModelFigures, name: str) -> str:
    value, error = row.get(name), row.get(f"{name}_error")
    if value is None:
        return "–"
    return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"


def build_measurement_table(store: Store, summary: RunSummary) -> Table:
    """Return all measurements with standard errors, the base first, a column a model."""
    rows = {BASE: summary["base"]} if summary["base"] else {}
    rows |= {ModelId(number): row for number, row in enumerate(summary["iterations"])}
    columns = {
        model.name: row
        | {name: value for name, value in load_metrics(store, model).items() if name in MORE}
        for model, row in rows.items()
    }
    names = [name for name in (*MEASURED, *MORE, *OF_DATA) if not name.endswith("_error")]
    return _build_model_table(names, columns, _format_cell)


def _build_model_table(
    names: Iterable[str],
    columns: Mapping[str, ModelFigures],
    format_cell: Callable[[ModelFigures, str], str],
) -> Table:
    """A row a figure, without those that no model has; a column a model."""
    figures = columns.values()
    rows = [
        [title(name), *(format_cell(row, name) for row in figures)]
        for name in names
        if any(row.get(name) is not None for row in figures)
    ]
    return Table(["", *columns], rows)


def build_gate_table(store: Store) -> Table:
    """Return what every gate decided about every model, and why."""
    rows = [
        [ModelId(t).name, gate.replace("_", " "), DECISIONS[passed], reason]
        for t in store.models()
        for gate, (passed, reason) in store.gates(t).items()
    ]
    return Table(["model", "gate", "", "reason"], rows)


def build_stage_table(stages: Iterable[StageRow]) -> Table:
    """Return every stage: items done ("…": unfinished), seconds, rate, what was dropped and why."""
    rows = [
        [
            row.model,
            row.stage.replace("_", " "),
            f"{row.done:,} of {row.total:,}" + ("" if row.ended else " …"),
            f"{row.seconds:,.1f}",
            "" if row.rate is None else f"{row.rate:,.1f}",
            describe_counts(row.drops),
        ]
        for row in stages
    ]
    return Table(["model", "stage", "done", "seconds", "per second", "left out, and why"], rows)


def build_seed_table(store: Store) -> Table:
    """Return the sizes of the seed data beside the paper's; no rows before the data is read."""
    head = ["seed data", "here", "arXiv 2401.10020"]
    if not store.is_done(0, "ranked"):
        return Table(head, [])
    settings, metrics = store.settings(), store.metrics(0)
    answers = Counter(one.prompt_id for one in store.records(Response, model=HUMAN))
    ranked = [RankedPrompt(one, ()) for one in store.records(Prompt, origin="ranked")]
    evaluation = split_ranked(ranked, settings).evaluation
    counts: list[tuple[str, float, str]] = [
        ("first-turn prompts with two ranked answers", len(answers), "–"),
        ("evaluation prompts", len(evaluation), "about 190"),
        ("ranked answers to them", sum(answers[one.prompt.id] for one in evaluation), "541"),
        *((what, metrics[name] or 0, paper) for name, what, paper in TRAINED if name in metrics),
    ]
    return Table(head, [[what, f"{count:,.0f}", paper] for what, count, paper in counts])


def sum_stage_seconds(store: Store) -> dict[str, float]:
    """Return the working seconds of each stage, summed over iterations, longest first."""
    spent: dict[str, float] = defaultdict(float)
    for row in store.stages():
        spent[row.stage] += row.seconds
    return dict(sorted(spent.items(), key=lambda entry: -entry[1]))


def build_time_table(store: Store) -> Table:
    """Return the seconds of each stage and their share, longest first."""
    spent = sum_stage_seconds(store)
    total = max(sum(spent.values()), 1e-9)
    rows = [
        [stage.replace("_", " "), f"{took:.1f}", f"{took / total:.0%}"]
        for stage, took in spent.items()
    ]
    return Table(["where the seconds went", "seconds", "share"], rows)


def compare_predictions(store: Store) -> list[tuple[str, float, float]]:
    """Return name, predicted and spent seconds of every finished stage that had a prediction."""
    predicted = (store.fact("plan") or {}).get("seconds", {})
    return [
        (name, predicted[name], row.seconds)
        for row in store.stages()
        if row.ended and (name := f"{row.model} {row.stage}") in predicted
    ]


def build_prediction_table(store: Store) -> Table:
    """Return predicted and spent hours of every finished stage that had a prediction."""
    rows = [
        [
            stage,
            f"{predicted / 3600:.2f}",
            f"{spent / 3600:.2f}",
            f"{spent / max(predicted, 1e-9):.2f}",
        ]
        for stage, predicted, spent in compare_predictions(store)
    ]
    return Table(["predicted before it began", "hours", "spent", "spent / predicted"], rows)


def build_memory_table(store: Store) -> Table:
    """Return predicted and peak GPU memory, without the driver's; no rows without a GPU.

    torch does not count what the driver holds. Only trainings record a peak.
    """
    first, *later = (
        store.metrics(model).get("training_peak_bytes") or 0 for model in store.models()
    )
    known = {  # what the driver holds, and the peak
        "SFT": (DRIVER["training"], first),
        "DPO": (DRIVER["training"], max(later, default=0)),
        "asking (llama.cpp)": (DRIVER["engine"], 0),
    }
    rows = []
    for stage, size in (store.fact("plan") or {}).get("memory", {}).items():
        driver, peak = known[stage]
        predicted = format_bytes(size - int(driver))
        rows.append([stage, predicted, format_bytes(int(peak)) if peak else "–"])
    return Table(["GPU memory", "predicted", "at its peak"], rows)


def build_training_table(store: Store) -> Table:
    """Return how each model was trained, and on how much less for want of memory.

    Runs of older versions stored nothing of it: no rows.
    """
    head = ["trained", "by", "number format", "loss", "rows at once", "longest", "left out"]
    rows = []
    for model in map(ModelId, store.models()):
        facts, known = store.fact(f"training {model.name}") or {}, store.metrics(model)
        left_out = known.get("training_left_out")
        words = [facts.get(name) or "–" for name in ("backend", "number_format", "loss")]
        sizes = [known.get(f"training_{name}") for name in ("micro_batch", "max_length")]
        if facts.get("backend") or left_out:
            counts = ["–" if size is None else f"{size:,.0f}" for size in sizes]
            short = f"{left_out:,.0f} for want of memory" if left_out else "0"
            rows.append([model.name, *words, *counts, short])
    return Table(head, rows)


def build_hours_table(store: Store) -> Table:
    """Return what `--hours` cut of each model, and how it ended the last command, if it did."""
    rows = []
    wanted, stages = store.settings().prompts.count, store.stages()
    for model in map(ModelId, store.models()):
        cut: list[tuple[str, float, float | None]] = []
        fitted = store.fact(f"prompts {model.name}")
        if fitted is not None and fitted < wanted:
            cut.append(("prompts", fitted, wanted))
        cut += [
            (row.stage.replace("_", " "), row.total - left_out, row.total)
            for row in stages
            if row.model == model.name and (left_out := row.drops.get(NO_TIME))
        ]
        known = store.metrics(model)
        if known.get("training_ended_early"):
            steps = known.get("training_steps") or 0
            cut.append(("training steps", steps, known.get("training_steps_planned")))
        rows += [
            [model.name, what, f"{kept:,.0f}", "–" if of is None else f"{of:,.0f}"]
            for what, kept, of in cut
        ]
    if reason := store.fact(TIME_IS_UP):
        rows.append([ModelId(store.next_model()).name, reason, "–", "–"])
    return Table(["cut by --hours", "", "kept", "of"], rows)


def build_example_table(store: Store, count: int) -> Table:
    """Return the first held-out prompts that M0 and the newest model answer differently."""
    newest = store.newest() or 0
    before, after = (
        {one.prompt_id: one.text for one in store.made_by(Response, model)} for model in (0, newest)
    )
    prompts = store.records(Prompt, origin="held_out") or store.records(Prompt, origin="ranked")
    rows = [
        [one.text, before[one.id], after[one.id]]
        for one in prompts
        if one.id in before and one.id in after and before[one.id] != after[one.id]
    ]
    return Table(["held-out prompt", "M0", ModelId(newest).name], rows[:count])


def indent_text(text: str) -> str:
    """Return a text as an indented block of Markdown, in which nothing is markup."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _format_cell(row: ModelFigures, name: str) -> str:
    value, error = row.get(name), row.get(f"{name}_error")
    if value is None:
        return "–"
    return f"{value:.3f} ± {error:.3f}" if error else f"{value:,.3f}".rstrip("0").rstrip(".")


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
