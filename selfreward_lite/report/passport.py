"""What models are worth as judges: in words first, then as tables.

Read from the run's own store, if a gate asked, and from what `evaluate judge` kept beside it: of
every set and way of asking, the newest passport.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfreward_lite.data.database import FILE
from selfreward_lite.data.judge_sets import FACT
from selfreward_lite.data.records import BASE, ModelId
from selfreward_lite.data.store import Store
from selfreward_lite.method.passport import WHOLE, Figures, JudgeChange, Passport, Way
from selfreward_lite.method.statistics import Change, format_with_error
from selfreward_lite.report.summary import Table
from selfreward_lite.report.tasks import (
    describe_interval,
    describe_smallest,
    format_change,
    format_points,
)
from selfreward_lite.system.files import Json

WAYS: dict[Way, str] = {"scores": "by scores", "comparison": "by comparison"}


@dataclass(frozen=True)
class PassportReport:
    """A passport in words and tables; `words` are of the last model.

    `figures` has each judge beside "the longer", the rule; `habits` how it decides.
    """

    about: str
    words: list[str]
    figures: Table
    habits: Table
    changes: Table


def load_reports(store: Store, newest: int | None = None) -> list[PassportReport]:
    """Return the newest passport of each set and way, the newest last.

    Models after M<newest> are left out (None: none is).
    """
    found = _list_documents(store)
    for path in sorted((store.folder / "evaluation").glob(f"*/{FILE}")):
        with Store.read(path.parent) as notes:
            found += _list_documents(notes)
    found.sort(key=lambda one: float(one["at"]))
    last = {(one["asked"]["set"], one["way"]): one for one in found}
    if newest is not None:
        names = {ModelId(number).name for number in range(BASE, newest + 1)}
        last = {key: _keep_models(one, names) for key, one in last.items()}
    shown = [one for one in last.values() if one["figures"]]
    return [describe(one) for one in sorted(shown, key=lambda one: float(one["at"]))]


def describe(document: Mapping[str, Any]) -> PassportReport:
    """Return a document of `method.passport.make_document` as words and tables."""
    passport, asked = _from_json(document), document["asked"]
    return PassportReport(
        _describe_question(passport, asked),
        _describe_judges(passport, asked["title"]),
        _build_figure_table(passport.figures),
        _build_habit_table(passport),
        _build_change_table(passport.changes),
    )


def _list_documents(store: Store) -> list[Json]:
    return [*(store.fact(FACT) or {}).values()]


def _keep_models(document: Json, names: set[str]) -> Json:
    kept = {
        part: [
            one
            for one in document[part]
            if one["model"] in names and one.get("against", BASE.name) in names
        ]
        for part in ("figures", "changes")
    }
    return {**document, **kept}


def _from_json(document: Mapping[str, Any]) -> Passport:
    def read(row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: Change(**read(one))
            if isinstance(one, dict)
            else (math.nan if one is None else one)
            for name, one in row.items()
        }

    return Passport(
        document["way"],
        [Figures(**read(row)) for row in document["figures"]],
        [JudgeChange(**read(row)) for row in document["changes"]],
    )


# -- words -----------------------------------------------------------------------------------------


def _describe_question(passport: Passport, asked: Mapping[str, Any]) -> str:
    """What was asked: "LLMBar, by scores: 419 pairs of 418 prompts, 3 judgments an answer, …"."""
    whole = passport.figures[0]
    if passport.way == "scores":
        count = asked["judgments"]
        how = "one judgment an answer" if count == 1 else f"{count} judgments an answer"
    else:
        how = "both orders of every pair"
    limited = "" if asked["prompts"] == asked["of_prompts"] else f" of {asked['of_prompts']}"
    named = ", ".join(f"{count} {why}" for why, count in asked["left_out"].items())
    left_out = f"; left out: {named}" if named else ""
    return (
        f"{asked['title']}, {WAYS[passport.way]}: {whole.pairs} pairs of {asked['prompts']}"
        f"{limited} prompts, {how} at temperature {asked['temperature']}{left_out}. A tie, a "
        "verdict that flips with the order or cannot be read is half right."
    )


def _describe_judges(passport: Passport, title: str) -> list[str]:
    """The last model against the rule, against other models, and on what misleads it."""
    last = passport.figures[-1].model
    parts = {one.part: one for one in passport.figures if one.model == last}
    where = f"{title}, {WAYS[passport.way]}"
    words = [f"{where}: {_describe_worth(parts[WHOLE])}"]
    words += [
        f"{where}: {_describe_change(one)}"
        for one in passport.changes
        if (one.part, one.model) == (WHOLE, last)
    ]
    if "adversarial" in parts:
        words.append(f"{where}: {_describe_length_bias(parts['adversarial'], title)}")
    if passport.way == "comparison":
        words.append(f"{where}: {_describe_order(parts[WHOLE])}")
    if parts[WHOLE].unread_share > 0:
        words.append(
            f"{where}: {last} said nothing on {parts[WHOLE].unread_share:.1%} of the pairs: they "
            "did not fit a sequence of its engine, or it could not be read"
        )
    return words


def _describe_worth(one: Figures) -> str:
    chance = {1: "better than", 0: "no better than", -1: "worse than"}[one.over_chance.direction]
    right = f"{one.model} is right in {one.accuracy:.1%} of {one.pairs} pairs, {chance} a coin"
    change, rule = one.over_longer, f"picking the longer answer (right in {one.longer:.1%})"
    if change.direction:
        return f"{right}, and {change.verdict} than {rule}, by {_describe_range(change)} points"
    return (
        f"{right}, and no better than {rule}: {format_points(change.mean)} points, "
        f"{describe_interval(change)}"
    )


def _describe_range(change: Change) -> str:
    """The interval of a clear change, without its sign: "5.1 to 12.0"."""
    low, high = sorted((abs(change.low), abs(change.high)))
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _describe_change(one: JudgeChange) -> str:
    change = one.change
    if change.direction:
        return (
            f"{one.model} judges {change.verdict} than {one.against}, by "
            f"{_describe_range(change)} points"
        )
    return (
        f"no difference seen between {one.model} and {one.against} ({format_points(change.mean)} "
        f"points, {describe_interval(change)}); {describe_smallest(change)}"
    )


def _describe_length_bias(one: Figures, title: str) -> str:
    right = f"right in {one.accuracy:.0%} of {title}'s {one.pairs} adversarial pairs"
    picked = f"of those it decides, it picks the longer answer in {one.picks_longer:.0%}"
    if math.isnan(one.picks_longer):
        picked = "it decides none that differ in length"
    if one.length_habit.direction > 0:
        return f"{one.model} picks longer answers: {right} ({picked}; that rule: {one.longer:.0%})"
    return f"{one.model} is {right} ({picked}; that rule: {one.longer:.0%})"


def _describe_order(one: Figures) -> str:
    if math.isnan(one.first_share):
        return f"no verdict of {one.model} could be read"
    flips = "" if math.isnan(one.tie_rate) else f"{one.tie_rate:.0%} of its verdicts flip; "
    return f"with the order, {flips}{one.model} names the first answer in {one.first_share:.0%}"


# -- tables ----------------------------------------------------------------------------------------


def _build_figure_table(figures: Sequence[Figures]) -> Table:
    """Every judge on every part, beside the rule, with the difference in points."""
    head = ["part", "judge", "right", "the longer", "judge less longer, points"]
    rows = [
        [
            one.part or "all",
            one.model,
            format_with_error((one.accuracy, one.accuracy_error)),
            format_with_error((one.longer, one.longer_error)),
            format_change(one.over_longer),
        ]
        for one in figures
    ]
    return Table(head, rows)


def _build_habit_table(passport: Passport) -> Table:
    """How every judge decides on every part: ties, order, length."""
    by_scores = passport.way == "scores"
    head = ["part", "judge", "pairs", "without ties", "ties" if by_scores else "flips", "unread"]
    head += ["picks the longer"] if by_scores else ["names the first", "picks the longer"]
    rows = []
    for one in passport.figures:
        shares = [one.without_ties, one.tie_rate, one.unread_share]
        shares += [one.picks_longer] if by_scores else [one.first_share, one.picks_longer]
        rows.append([one.part or "all", one.model, f"{one.pairs:,}", *map(_share, shares)])
    return Table(head, rows)


def _build_change_table(changes: Sequence[JudgeChange]) -> Table:
    rows = [
        [
            one.part or "all",
            f"{one.model} against {one.against}",
            one.change.verdict,
            format_change(one.change),
            format_points(one.change.smallest).removeprefix("+"),
        ]
        for one in changes
    ]
    return Table(["part", "judges", "", "points (95 % interval)", "smallest seen"], rows)


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"
