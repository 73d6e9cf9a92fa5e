"""What a judge reaches on ranked pairs, beside picking the longer answer."""

import math

import pytest

from selfreward_lite.data.judge_sets import JudgeSet
from selfreward_lite.data.records import Comparison
from selfreward_lite.data.task_sets import RankedPair
from selfreward_lite.method import passport


def pair(part: str, prompt: str, better: str, worse: str) -> RankedPair:
    return RankedPair("llmbar", part, prompt, better, worse)


# The rule is right in the first, wrong in the two that are adversarial, and undecided in the last.
PAIRS = [
    pair("Natural", "a", "long answer", "short"),
    pair("Neighbor", "b", "good", "long and bad"),
    pair("GPTOut", "c", "fine", "much too long"),
    pair("Natural", "d", "same", "size"),
]


def make_set(pairs=PAIRS) -> JudgeSet:
    return JudgeSet.of_pairs("llmbar", pairs, "run", {})


def score(asked: JudgeSet, points: dict[str, float | None]) -> list[passport.JudgedPair]:
    scores = {answer.id: points.get(answer.text, 1.0) for _, answer in asked.answers()}
    return passport.read_scores(asked, scores)


def test_ties_and_unread_scores_are_half_right():
    asked = make_set()
    judged = score(asked, {"long answer": 5.0, "long and bad": 5.0, "fine": None})
    (whole,) = [
        one
        for one in passport.build_passport("scores", {"M1": judged}).figures
        if one.part == passport.WHOLE
    ]
    assert (whole.pairs, whole.prompts) == (4, 4)
    assert whole.accuracy == (1 + 0 + 0.5 + 0.5) / 4
    assert whole.without_ties == 0.5
    assert whole.tie_rate == pytest.approx(1 / 3), "of those that were read"
    assert whole.unread_share == 0.25
    assert whole.longer == (1 + 0 + 0 + 0.5) / 4
    assert whole.longer_without_ties == pytest.approx(1 / 3)
    assert whole.over_longer.mean == 0.125
    assert whole.picks_longer == 1.0, "it decided two pairs, both for the longer answer"
    assert math.isnan(whole.first_share)


def test_parts_are_measured_alone_and_llmbars_last_four_together():
    asked = make_set()
    found = passport.build_passport("scores", {"M1": score(asked, {"long and bad": 5.0})})
    parts = {one.part: one for one in found.figures}
    assert list(parts) == ["", "Natural", "adversarial", "Neighbor", "GPTOut"]
    assert (parts["adversarial"].pairs, parts["adversarial"].accuracy) == (2, 0.25)
    assert (parts["adversarial"].longer, parts["Natural"].longer) == (0.0, 0.75)


def test_a_verdict_that_flips_is_half_right_and_its_place_counts():
    asked = make_set(PAIRS[:2])
    (first, second) = asked.pairs()

    def compared(pair, verdicts, result):
        prompt, better, worse = pair
        return Comparison("", 0, "M0", prompt.id, better.id, worse.id, result, "", "", verdicts)

    judged = passport.read_comparisons(
        asked, [compared(first, "AB", 1.0), compared(second, "AA", 0.5)]
    )
    figures = passport.build_passport("comparison", {"M0": judged}).figures[0]
    assert (figures.accuracy, figures.without_ties, figures.tie_rate) == (0.75, 1.0, 0.5)
    assert figures.first_share == 0.75
    (only, missing) = passport.read_comparisons(asked, [compared(first, "B-", 0.5)])
    assert (only.read, only.orders, only.result) == (False, ("B", None), 0.5)
    assert (missing.read, missing.result) == (False, 0.5)


def test_models_are_compared_on_the_same_pairs_over_prompts():
    pairs = [pair("Natural", f"p{n // 2}", f"good{n}", f"bad{n}") for n in range(40)]
    asked = make_set(pairs)
    bad = score(asked, {})
    good = score(asked, {f"good{n}": 2.0 for n in range(20)})
    found = passport.build_passport("scores", {"base": bad, "M0": bad, "M1": good})
    against = [(one.model, one.against) for one in found.changes if one.part == ""]
    assert against == [("M0", "base"), ("M1", "base"), ("M1", "M0")]
    change = found.changes[1].change
    assert (change.mean, change.prompts, change.changed) == (0.25, 20, 10)
    assert change.direction == 1
    assert found.changes[0].change.direction == 0


def test_answers_of_one_prompt_are_shared_and_a_limit_counts_prompts():
    pairs = [pair("Natural", "p", "x", "y"), pair("Natural", "p", "x", "z"), *PAIRS]
    asked = make_set(pairs)
    assert (asked.prompts, len(asked.ranked), len(asked.answers())) == (5, 6, 3 + 8)
    two, three = asked.first(2), asked.first(3)
    assert (two.prompts, three.prompts) == (2, 3)
    assert three.ranked[: len(two.ranked)] == two.ranked, "a higher limit keeps the same and more"
    assert two.digest != asked.digest
    again = make_set([*reversed(pairs)])
    assert [one.prompt.text for one in again.ranked] == [one.prompt.text for one in asked.ranked]


def test_outcomes_of_entries_that_share_a_prompt_are_one_group():
    asked = make_set([pair("Natural", "p", "x", "y"), pair("Natural", "p", "x", "z"), PAIRS[0]])
    groups = passport.group_outcomes(asked, [[1.0]] * len(asked.ranked))
    assert sorted(map(len, groups)) == [1, 2]


def test_few_pairs_say_nothing_of_chance():
    def figures(count):
        asked = make_set([pair("Natural", f"p{n}", f"longer {n}", f"x{n}") for n in range(count)])
        judged = score(asked, {f"longer {n}": 2.0 for n in range(count)})
        return passport.build_passport("scores", {"M1": judged}).figures[0]

    few, more = figures(5), figures(6)
    assert few.accuracy == more.accuracy == more.picks_longer == 1.0
    assert (few.over_chance.direction, few.length_habit.direction) == (0, 0)
    assert (more.over_chance.direction, more.length_habit.direction) == (1, 1)
    assert more.over_longer.direction == 0, "the rule is as good"
