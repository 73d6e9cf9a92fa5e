"""A judge's passport: how often it is right on ranked pairs, beside the rule "pick the longer".

A tie, a verdict that flips with the order and one that cannot be read are each half right, as a
coin would be. Prompts are what is drawn, so errors and intervals are over prompts: the pairs of one
prompt form one group. The rule compares characters.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from math import nan
from typing import Any, Literal

from selfreward_lite.data.judge_sets import PARTS, JudgeSet
from selfreward_lite.data.ranked import RankedPrompt
from selfreward_lite.data.records import Comparison, Response
from selfreward_lite.method.comparisons import read_verdicts
from selfreward_lite.method.judgments import SCORE_TOLERANCE, Scores
from selfreward_lite.method.metrics import compare_scores
from selfreward_lite.method.parsing import Verdict
from selfreward_lite.method.statistics import (
    Change,
    mean_and_error,
    mean_or_nan,
    nan_to_none,
    paired_change,
    ratio_or_nan,
)

Way = Literal["scores", "comparison"]
WAYS: tuple[Way, ...] = ("scores", "comparison")
WHOLE = ""  # the part that is the whole set


@dataclass(frozen=True)
class JudgedPair:
    """What a judge says of one pair: 1 for the better answer, 0 for the worse one, ½ for neither.

    `longer` is what the rule says. `read` is false where a score or a verdict could not be read.
    `orders` has the verdicts of a comparison with the better answer shown first, then second.
    """

    prompt_id: str
    parts: tuple[str, ...]
    longer: float
    result: float
    read: bool
    orders: tuple[Verdict | None, Verdict | None] | None = None


@dataclass(frozen=True)
class Figures:
    """Figures of a judge, or of the rule, on a part of a set; NaN where there is nothing to count.

    `accuracy` counts ½ as half, with its standard error; `without_ties` leaves it out. `tie_rate`
    is of the pairs that were read; in comparisons a tie is a verdict that flips with the order.
    `first_share` is of the verdicts that were read: ½ is unbiased. `picks_longer` is of the pairs
    that are decided and differ in length; `length_habit` is how far it is from ½. `over_chance` is
    the accuracy less ½, `over_longer` less that of the rule.
    """

    part: str
    model: str
    pairs: int
    prompts: int
    accuracy: float
    accuracy_error: float
    without_ties: float
    tie_rate: float
    unread_share: float
    first_share: float
    picks_longer: float
    length_habit: Change
    longer: float
    longer_error: float
    longer_without_ties: float
    over_chance: Change
    over_longer: Change


@dataclass(frozen=True)
class JudgeChange:
    """How the accuracy of a judge differs from that of another on the same pairs of a part."""

    part: str
    model: str
    against: str
    change: Change


@dataclass(frozen=True)
class Passport:
    """Judges on a set, asked in one way; `changes` as in a card of task sets."""

    way: Way
    figures: Sequence[Figures]
    changes: Sequence[JudgeChange]


def read_scores(asked: JudgeSet, scores: Scores) -> list[JudgedPair]:
    """Return what scores (by response id) say of every pair; a score that is missing is unread."""
    found = []
    for one, parts, better, worse in _list_pairs(asked):
        scored, other = scores.get(better.id), scores.get(worse.id)
        result = 0.5
        if scored is not None and other is not None and abs(scored - other) > SCORE_TOLERANCE:
            result = float(scored > other)
        is_read = scored is not None and other is not None
        longer = _pick_longer(better, worse)
        found.append(JudgedPair(one.prompt.id, parts, longer, result, is_read))
    return found


def read_comparisons(asked: JudgeSet, compared: Sequence[Comparison]) -> list[JudgedPair]:
    """Return what comparisons of better with worse answers say of every pair."""
    by_pair = {(one.mine_id, one.theirs_id): one for one in compared}
    found = []
    for one, parts, better, worse in _list_pairs(asked):
        known = by_pair.get((better.id, worse.id))
        orders = read_verdicts(known) if known else (None, None)
        longer, result = _pick_longer(better, worse), known.result if known else 0.5
        found.append(JudgedPair(one.prompt.id, parts, longer, result, None not in orders, orders))
    return found


def build_passport(way: Way, judged: Mapping[str, Sequence[JudgedPair]]) -> Passport:
    """Return the passport of judges by name, in their order: each has the same pairs, in order.

    Each is compared with the first, and with the one before it.
    """
    known = {part for pairs in judged.values() for one in pairs for part in one.parts}
    parts = [WHOLE, *sorted(known, key=PARTS.index)]
    figures: list[Figures] = []
    changes: list[JudgeChange] = []
    for part in parts:
        kept = {
            model: [one for one in pairs if part == WHOLE or part in one.parts]
            for model, pairs in judged.items()
        }
        figures += [_measure(part, model, pairs) for model, pairs in kept.items()]
        models = [*kept]
        changes += [
            JudgeChange(part, model, rival, compare_judges(kept[model], kept[rival]))
            for before, model in pairwise(models)
            for rival in dict.fromkeys((models[0], before))
        ]
    return Passport(way, figures, changes)


def compare_judges(mine: Sequence[JudgedPair], theirs: Sequence[JudgedPair]) -> Change:
    """Return how much more often one judge is right than another on the same pairs, in order."""
    return paired_change(_group(mine, "result"), _group(theirs, "result"))


def make_document(passport: Passport, asked: Mapping[str, Any], at: float) -> dict[str, Any]:
    """Return a passport as JSON, with how it was asked (`set`, `title` and more) and when."""
    return {
        "at": at,
        "asked": dict(asked),
        "way": passport.way,
        "figures": [_to_json(asdict(one)) for one in passport.figures],
        "changes": [_to_json(asdict(one)) for one in passport.changes],
    }


def group_outcomes(asked: JudgeSet, outcomes: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the outcomes of a set's entries by prompt, since entries may share one."""
    groups: dict[str, list[float]] = {}
    for one, values in zip(asked.ranked, outcomes, strict=True):
        groups.setdefault(one.prompt.id, []).extend(values)
    return [*groups.values()]


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _to_json(one) for name, one in value.items()}
    return nan_to_none(value) if isinstance(value, float) else value


def _list_pairs(
    asked: JudgeSet,
) -> Iterator[tuple[RankedPrompt, tuple[str, ...], Response, Response]]:
    for one, parts in zip(asked.ranked, asked.parts, strict=True):
        for better, worse in combinations(one.responses, 2):
            yield one, parts, better, worse


def _pick_longer(better: Response, worse: Response) -> float:
    return compare_scores(len(better.text), len(worse.text))


def _group(pairs: Sequence[JudgedPair], name: Literal["result", "longer"]) -> list[list[float]]:
    groups: dict[str, list[float]] = {}
    for one in pairs:
        groups.setdefault(one.prompt_id, []).append(getattr(one, name))
    return [*groups.values()]


def _measure(part: str, model: str, pairs: Sequence[JudgedPair]) -> Figures:
    results, rule = _group(pairs, "result"), _group(pairs, "longer")
    accuracy, error = mean_and_error(results)
    longer, longer_error = mean_and_error(rule)
    read = [one for one in pairs if one.read]
    named = [side for one in pairs for side in one.orders or () if side is not None]
    picks: dict[str, list[float]] = {}
    for one in pairs:
        if 0.5 not in (one.result, one.longer):
            picks.setdefault(one.prompt_id, []).append(float(one.result == one.longer))
    habit = _compare_with_half([*picks.values()])
    return Figures(
        part,
        model,
        len(pairs),
        len(results),
        accuracy,
        error,
        _without_ties([one.result for one in pairs]),
        mean_or_nan([one.result == 0.5 for one in read]),
        1 - len(read) / len(pairs) if pairs else nan,
        ratio_or_nan(named.count("A"), len(named)),
        0.5 + habit.mean,
        habit,
        longer,
        longer_error,
        _without_ties([one.longer for one in pairs]),
        _compare_with_half(results),
        paired_change(results, rule),
    )


def _compare_with_half(groups: Sequence[Sequence[float]]) -> Change:
    return paired_change(groups, [[0.5] * len(group) for group in groups])


def _without_ties(results: Sequence[float]) -> float:
    return ratio_or_nan(results.count(1.0), len(results) - results.count(0.5))
