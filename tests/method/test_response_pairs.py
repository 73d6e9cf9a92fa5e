"""Response pairs against the length tiers worked out by hand, and where a program checks."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from method_records import RUN, make_prompt, make_response

from selfreward_lite.config.settings import Schedule
from selfreward_lite.method import response_pairs
from selfreward_lite.method.response_pairs import (
    NONE_MAY_WIN,
    ChosenPair,
    ScoredResponse,
    choose_pair,
    exclusion_reason,
    find_eligible,
    find_perfect_responses,
)

SCORED = [(5.0, 1900), (4.2, 1500), (3.5, 1200), (2.5, 2400), (2.0, 1800)]


def choose(scored: list[tuple[float, int]], rho: float) -> ChosenPair | str:
    """The pair of responses with these scores and lengths."""
    responses = [ScoredResponse(str(index), *one) for index, one in enumerate(scored)]
    return choose_pair(responses, Schedule(rho=rho, judgment_pairs=True))


def score_and_length(pair: ChosenPair) -> list[tuple[float, int]]:
    return [(one.score, one.length) for one in (pair.chosen, pair.rejected)]


@pytest.mark.parametrize(
    ("rho", "chosen", "rejected"),
    [
        (0, (5.0, 1900), (2.0, 1800)),
        (0.1, (5.0, 1900), (2.0, 1800)),
        (0.32, (4.2, 1500), (2.5, 2400)),
        (0.4, (4.2, 1500), (2.5, 2400)),
    ],
)
def test_choose_pair_applies_length_tiers(rho, chosen, rejected):
    assert score_and_length(choose(SCORED, rho)) == [chosen, rejected]


@pytest.mark.parametrize("rho", [0, 0.1, 0.32, 0.4])
def test_choose_pair_breaks_ties_by_length(rho):
    pair = choose([(4.0, 900), (4.0, 700), (1.0, 300), (1.0, 650)], rho)
    assert score_and_length(pair) == [(4.0, 700), (1.0, 650)]


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 3000)), max_size=8), st.floats(0, 0.49))
def test_choose_pair_prefers_the_higher_score(scored, rho):
    pair = choose(scored, rho)
    if not isinstance(pair, str):
        assert pair.chosen.score > pair.rejected.score
        assert pair.chosen.id != pair.rejected.id
    elif len(scored) < 2:
        assert pair == "fewer than two scored responses"
    else:
        assert pair == "all scores equal"
        assert max(score for score, _ in scored) - min(score for score, _ in scored) <= 1e-9


def test_choose_pair_needs_different_scores():
    assert choose([(4.0, 1), (4.0, 2)], 0) == "all scores equal"
    means = [sum((5, 5, 4)) / 3, sum((4, 4, 4)) / 3]
    pair = choose([(means[0], 1), (means[1], 1)], 0)
    assert pair.chosen.score - pair.rejected.score == pytest.approx(2 / 3)


def build_pairs(texts_scores, schedule=None, finishes=None):
    prompt = make_prompt()
    made = [
        make_response(text, prompt, index, (finishes or {}).get(index, "stop"))
        for index, (text, _) in enumerate(texts_scores)
    ]
    scores = {one.id: score for one, (_, score) in zip(made, texts_scores, strict=True)}
    schedule = schedule or Schedule(rho=0, judgment_pairs=True)
    outcome = response_pairs.build_response_pairs(
        [prompt], {prompt.id: made}, scores, schedule, id_namespace=RUN, iteration=1
    )
    by_id = {one.id: one.text for one in made}
    pairs = [(by_id[pair.chosen_id], by_id[pair.rejected_id]) for pair in outcome.records]
    return pairs, outcome.drops


def test_pairs_leave_out_unread_responses():
    assert build_pairs([("good", 4.0), ("bad", None), ("worse", None)]) == (
        [],
        {"fewer than two scored responses": 1},
    )


def test_pairs_leave_out_cut_responses():
    assert build_pairs([("good", 3.0), ("endless", 5.0), ("bad", 1.0)], finishes={1: "length"})[
        0
    ] == [("good", "bad")]


def test_pairs_never_choose_a_response_with_its_own_score():
    assert build_pairs([("Score: 5", 5.0), ("fine", 3.0), ("bad", 1.0)])[0] == [("fine", "bad")]
    assert build_pairs([("Score: 5", 5.0), ("fine", 5.0)])[0] == []
    assert build_pairs([("Score: 5", 1.0), ("fine", 5.0)])[0] == [("fine", "Score: 5")]


def test_pairs_drop_a_chosen_response_above_the_limit():
    schedule = Schedule(rho=0, judgment_pairs=True, max_chosen_response=4)
    assert build_pairs([("longer", 5.0), ("bad", 1.0)], schedule) == (
        [],
        {"chosen response too long": 1},
    )


def test_a_pair_may_be_the_first_drawn_of_the_best_and_the_worst():
    scored = [("e", 2.5, 7), ("b", 4.5, 6), ("a", 5.0, 26), ("c", 2.0, 30), ("d", 2.0, 1)]
    responses = [ScoredResponse(*one) for one in scored]
    for rho, expected in ((0.0, "ac"), (0.2, "be")):
        schedule = Schedule(rho=rho, judgment_pairs=False, lengths="any")
        pair = choose_pair(responses, schedule)
        assert pair.chosen.id + pair.rejected.id == expected


# -- constraints that a program checks ----------

SHORT_RIVER = [["words_at_most", 4], ["use_word", "river"]]


def pair_checked(texts_scores, verify, *, judged=True):
    """The chosen and the rejected answer to a prompt with two constraints, or why there is none."""
    prompt = replace(make_prompt("Tell me something."), constraints=json.dumps(SHORT_RIVER))
    answers = [make_response(text, prompt, i) for i, (text, _) in enumerate(texts_scores)]
    scores = {one.id: score for one, (_, score) in zip(answers, texts_scores, strict=True)}
    made = choose_pair(
        find_eligible(prompt, answers, scores if judged else None, verify),
        Schedule(rho=0, judgment_pairs=False),
    )
    if isinstance(made, str):
        return made
    texts = {one.id: one.text for one in answers}
    return texts[made.chosen.id], texts[made.rejected.id]


BOTH, ONE, NONE = "A river is wet.", "A sea is wet.", "The sea is always very wet."


@pytest.mark.parametrize(
    ("verify", "scored", "made"),
    [
        ("off", [(BOTH, 1), (ONE, 5)], (ONE, BOTH)),
        ("veto", [(BOTH, 1), (ONE, 5)], "all scores equal"),
        ("veto", [(BOTH, 3), (ONE, 5), (NONE, 1)], (BOTH, NONE)),
        ("veto", [(ONE, 5), (NONE, 1)], NONE_MAY_WIN),
        ("score", [(BOTH, 0), (ONE, 5), (NONE, 5)], (BOTH, NONE)),
        ("score", [(ONE, 2), ("A lake is wet.", 4)], ("A lake is wet.", ONE)),
        ("score", [(BOTH, None), (ONE, 5), (NONE, 5)], (ONE, NONE)),
    ],
)
def test_constraints_forbid_or_decide(verify, scored, made):
    assert pair_checked(scored, verify) == made


def test_without_a_judge_only_constraints_decide():
    assert pair_checked([(BOTH, 0), (ONE, 5), (NONE, 5)], "score", judged=False) == (BOTH, NONE)
    equal = pair_checked([(ONE, 1), ("A lake is wet.", 5)], "score", judged=False)
    assert equal == "all scores equal"


def test_a_judge_never_outweighs_a_constraint():
    """Of six constraints, the most there are, the answer that breaks one more has a judge's 5."""
    prompt = replace(
        make_prompt(),
        constraints=json.dumps([["no_letter", letter] for letter in "abcdef"]),
    )
    texts = {"I will sit on my own lawn.": 5.0, "I will sit on my own stool.": 0.0}
    answers = [make_response(text, prompt, i) for i, text in enumerate(texts)]
    scores = {one.id: texts[one.text] for one in answers}
    worse, better = find_eligible(prompt, answers, scores, "score")
    assert better.score > worse.score


def test_a_text_that_is_no_answer_is_never_chosen():
    """It repeats itself, keeps both constraints, and the judge likes it."""
    prompt = replace(make_prompt("Tell me."), constraints='[["use_word", "river"]]')
    answers = [make_response("river " * 20, prompt, 0), make_response("A sea is wet.", prompt, 1)]
    scores = {answers[0].id: 5.0, answers[1].id: 1.0}
    eligible = find_eligible(prompt, answers, scores, "score")
    assert [one.may_win for one in eligible] == [False, True]
    assert eligible[0].score == pytest.approx(0.1 * 5)
    reason = exclusion_reason(prompt, answers[0], scores, "score")
    assert reason == "is no answer to the request: never chosen"


def test_perfect_responses_keep_every_constraint():
    prompt = replace(make_prompt("Tell me something."), constraints=json.dumps(SHORT_RIVER))
    answers = [make_response(text, prompt, i) for i, text in enumerate((BOTH, ONE))]
    scores = {one.id: 5.0 for one in answers}
    for verify, expected in (("off", answers), ("veto", answers[:1]), ("score", answers[:1])):
        found = find_perfect_responses({prompt.id: prompt}, answers, scores, verify)
        assert found == expected, verify
