"""How models do on open task sets: in words first, then as tables.

Read from the run's own store, if its iterations asked, and from what `evaluate tasks` kept beside
it. Answers from different places are never mixed: they may have been asked for differently.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfreward_lite.data import task_sets
from selfreward_lite.data.database import FILE
from selfreward_lite.data.records import BASE, ModelId, TaskAnswer
from selfreward_lite.data.store import Store
from selfreward_lite.data.task_sets import SETS
from selfreward_lite.method.statistics import Change, format_with_error, nan_to_none
from selfreward_lite.method.task_card import METRICS, Metric, SetChange, TaskCard, build_card
from selfreward_lite.report.summary import Table
from selfreward_lite.system.files import Json

MEANINGS: dict[Metric, str] = {
    "strict": "prompts, strict",
    "loose": "prompts, loose",
    "instructions_strict": "instructions, strict",
    "instructions_loose": "instructions, loose",
    "right": "last number right",
}


@dataclass(frozen=True)
class TaskReport:
    """A card in words and tables: `words` of the last model, `notes` on what was not counted.

    `verdicts` has every comparison by the accuracy that decides, `changes` by every accuracy.
    """

    about: str
    words: list[str]
    scores: Table
    verdicts: Table
    changes: Table
    notes: list[str]


def last_written(folder: Path) -> float:
    """Return when `evaluate` last ended a stage for a run, in seconds since 1970; 0 for never."""
    found = (folder / "evaluation").glob(f"*/{FILE}")
    return max((path.stat().st_mtime for path in found), default=0.0)


def load_reports(store: Store, newest: int | None = None) -> list[TaskReport]:
    """Return the card of the run's iterations, then those of `evaluate tasks`, the newest last.

    Models after M<newest> are left out (None: none is).
    """
    found = [_load_report(store, "in the run", newest)]
    paths = (store.folder / "evaluation").glob(f"*/{FILE}")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        with Store.read(path.parent) as notes:
            found.append(_load_report(notes, "by the command evaluate tasks", newest))
    return [report for report in found if report is not None]


def _load_report(store: Store, where: str, newest: int | None) -> TaskReport | None:
    """The card of one store, None if it has no answers to task sets."""
    asked = store.fact(task_sets.FACT)
    if asked is None:
        return None
    samples = asked["samples"]
    answers = [one for one in store.records(TaskAnswer) if one.index < samples[one.task_set]]
    last = max((one.iteration for one in answers), default=0) if newest is None else newest
    models = [ModelId(number).name for number in range(BASE, last + 1)]
    card = build_card(answers, models)
    return describe_card(card, asked, where) if card.scores else None


def describe_card(card: TaskCard, asked: Mapping[str, Any], where: str) -> TaskReport:
    """Return a card as words and tables; `asked` is what `AskedTasks.describe` returned."""
    return TaskReport(
        f"Asked {where}: {_describe_draw(asked)}.",
        _describe_changes(card.changes),
        _build_score_table(card),
        _build_change_table(card.changes, only_first=True),
        _build_change_table(card.changes),
        _describe_left_out(card, asked),
    )


def card_to_json(card: TaskCard) -> Json:
    """Return a card as JSON: accuracies and errors by set and model, and changes with verdicts."""
    scores: Json = {}
    for one in card.scores:
        figures: Json = {"prompts": one.prompts, "answers": one.answers, "cut": one.cut}
        for metric, (mean, error) in one.accuracies.items():
            figures |= {metric: nan_to_none(mean), f"{metric}_error": nan_to_none(error)}
        scores.setdefault(one.set, {})[one.model] = figures
    changes = [
        {
            "set": one.set,
            "model": one.model,
            "against": one.against,
            "verdict": one.verdict,
            **{
                metric: {name: nan_to_none(value) for name, value in vars(change).items()}
                for metric, change in one.changes.items()
            },
        }
        for one in card.changes
    ]
    return {"scores": scores, "changes": changes}


# -- words -----------------------------------------------------------------------------------------


def _describe_draw(asked: Mapping[str, Any]) -> str:
    """How answers were drawn: "4 answers a prompt at temperature 0.7 and top-p 0.95, …"."""
    longest = f"at most {asked['max_tokens']:,} tokens each"
    if asked["temperature"] == 0:
        return f"one answer a prompt, greedy, {longest}"
    by_count: dict[int, list[str]] = {}
    for name, samples in asked["samples"].items():
        by_count.setdefault(samples, []).append(SETS[name].title)
    count = " or ".join(
        ("one answer" if samples == 1 else f"{samples} answers")
        + (f" ({', '.join(titles)})" if len(by_count) > 1 else "")
        for samples, titles in by_count.items()
    )
    drawn = f"temperature {asked['temperature']} and top-p {asked['top_p']}"
    return f"{count} a prompt at {drawn}, {longest}"


def _describe_changes(changes: Sequence[SetChange]) -> list[str]:
    """The last model of each set against the others it was compared with, a line each."""
    last = {one.set: one.model for one in changes}
    return [_describe_change(one) for one in changes if one.model == last[one.set]]


def _describe_change(one: SetChange) -> str:
    change, title = one.first, SETS[one.set].title
    counted = f"{change.prompts} prompts"
    interval = describe_interval(change)
    if one.verdict != "no difference seen":
        return (
            f"{title}: {one.model} is {one.verdict} than {one.against}, by "
            f"{abs(100 * change.mean):.1f} points ({interval}; {counted})"
        )
    return (
        f"{title}: no difference seen between {one.model} and {one.against} "
        f"({format_points(change.mean)} points, {interval}; {counted}); "
        f"{describe_smallest(change)}"
    )


def format_change(change: Change) -> str:
    """Return a change with its 95 % interval, in points, as a table cell."""
    low, high = format_points(change.low), format_points(change.high)
    return f"{format_points(change.mean)} ({low} to {high})"


def describe_interval(change: Change) -> str:
    """Return the 95 % interval of a change in words, or why there is none."""
    if math.isnan(change.low):
        return f"changed prompts: {change.changed}, too few for an interval"
    return f"95 % interval {format_points(change.low)} to {format_points(change.high)}"


def describe_smallest(change: Change) -> str:
    """Return in words the smallest change that would have been seen."""
    if math.isnan(change.smallest):
        return "with so few prompts, no change would have been seen"
    return f"a change of {100 * change.smallest:.1f} points would have been seen four times in five"


def format_points(share: float) -> str:
    """Return a difference of shares in points: "+1.5", "−2.0"; "–" for NaN."""
    if math.isnan(share):
        return "–"
    return f"{100 * share:+.1f}".replace("-", "\u2212")


def _describe_left_out(card: TaskCard, asked: Mapping[str, Any]) -> list[str]:
    """What could not be scored, by set and instruction, and checks that ended with an error."""
    notes = []
    for name, reasons in asked["left_out"].items():
        if reasons:
            named = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            notes.append(
                f"{SETS[name].title}: {sum(reasons.values())} prompts are left out, as a program "
                f"cannot score them offline ({named}); its figures are not those of the whole set"
            )
    notes += [
        f"{SETS[one.set].title}, {one.model}: {one.faults} checks ended with an error and count as "
        "not followed"
        for one in card.scores
        if one.faults
    ]
    return notes


# -- tables ----------------------------------------------------------------------------------------


def _build_score_table(card: TaskCard) -> Table:
    """Accuracies with standard errors over prompts, and cut answers; a column a model."""
    models = [*dict.fromkeys(one.model for one in card.scores)]
    rows = []
    for name in dict.fromkeys(one.set for one in card.scores):
        known = {one.model: one for one in card.scores if one.set == name}
        title = SETS[name].title
        for metric in METRICS[name]:
            cells = [
                format_with_error(known[model].accuracies[metric]) if model in known else "–"
                for model in models
            ]
            rows.append([title, MEANINGS[metric], *cells])
        counts = [f"{known[model].prompts:,}" if model in known else "–" for model in models]
        cut = [f"{known[model].cut:.1%}" if model in known else "–" for model in models]
        rows += [[title, "prompts answered", *counts], [title, "answers cut by the limit", *cut]]
    return Table(["set", "accuracy", *models], rows)


def _build_change_table(changes: Sequence[SetChange], *, only_first: bool = False) -> Table:
    """Every comparison by every metric, or by the deciding one alone, in points."""
    rows = [
        [
            SETS[one.set].title,
            MEANINGS[metric],
            f"{one.model} against {one.against}",
            change.verdict,
            format_change(change),
            format_points(change.smallest).removeprefix("+"),
        ]
        for one in changes
        for metric, change in one.changes.items()
        if change is one.first or not only_first
    ]
    head = ["set", "accuracy", "models", "", "points (95 % interval)", "smallest seen"]
    return Table(head, rows)
