"""The first look at a base as judge: who is stopped, who is warned, who is neither."""

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from method_records import make_judgment, make_prompt, make_response

from selfreward_lite.data.ranked import RankedPrompt
from selfreward_lite.method import first_look

EVERY = 1_000_000


def ranked_prompts(count=35, answers=3) -> list[RankedPrompt]:
    """Prompts whose better answers are not longer."""
    made = []
    for index in range(count):
        prompt = make_prompt(f"p{index}", index)
        responses = [make_response("x" * (9 + number), prompt, number) for number in range(answers)]
        made.append(RankedPrompt(prompt, tuple(responses)))
    return made


def judge(ranked, score, source="written"):
    """Judge every answer: `score(rank)` may be None."""
    judged = []
    for one in ranked:
        for rank, answer in enumerate(one.responses):
            given = score(rank)
            made = make_judgment(EVERY, given, response=answer.id, text="so")
            judged.append(replace(made, source=source))
    return judged


def noisy(rng, skill):
    """Scores 0 to 5 that fall with the rank, by `skill`, under noise."""
    return lambda rank: min(5, max(0, round(rng.gauss(2.8 - skill * rank, 1.1))))


def see(ranked, judged, eft=True):
    seen = first_look.look(ranked, judged)
    return seen, list(first_look.find_faults(seen, eft=eft)), list(first_look.find_doubts(seen))


def test_whole_prompts_are_chosen_up_to_a_hundred_answers():
    chosen = first_look.choose_prompts(ranked_prompts(20), ranked_prompts(30))
    assert sum(len(one.responses) for one in chosen) == 99
    assert len(first_look.choose_prompts(ranked_prompts(4))) == 4


def test_accuracy_counts_a_tie_as_half_and_length_beside_it():
    ranked = ranked_prompts(2, answers=2)
    scores = iter((4, 3, 2, 2))
    seen = first_look.look(ranked, judge(ranked, lambda rank: next(scores)))
    assert (seen.judgments, seen.written, seen.read, seen.forced) == (4, 4, 4, 0)
    assert (seen.accuracy, seen.longer) == (0.75, 0.0)
    assert seen.scores == Counter({2: 2, 3: 1, 4: 1})


def test_length_is_measured_on_the_pairs_that_were_read():
    ranked = ranked_prompts(2, answers=2)
    scores = iter((4, None, 3, 2))
    seen = first_look.look(ranked, judge(ranked, lambda rank: next(scores)))
    shorter_first = [replace(ranked[0], responses=ranked[0].responses[::-1]), ranked[1]]
    scores = iter((4, None, 3, 2))
    again = first_look.look(shorter_first, judge(shorter_first, lambda rank: next(scores)))
    assert seen.longer == again.longer == 0.0, "the first prompt has no pair"


def test_healthy_judge_is_never_stopped():
    """Right in about 60 % of the decided pairs: 1,000 draws, no stop."""
    rng, ranked = random.Random(1), ranked_prompts(33)
    accuracies = []
    for _ in range(1000):
        seen, faults, _ = see(ranked, judge(ranked, noisy(rng, 0.33)))
        assert not faults
        accuracies.append(seen.accuracy)
    assert 0.58 < sum(accuracies) / 1000 < 0.62


@pytest.mark.parametrize(("count", "answers"), [(1, 2), (2, 2), (2, 3), (3, 2), (5, 3), (10, 2)])
def test_healthy_judge_is_not_stopped_by_chance_where_data_is_scarce(count, answers):
    rng, ranked = random.Random(8), ranked_prompts(count, answers)
    for _ in range(200):
        assert not see(ranked, judge(ranked, noisy(rng, 0.42)))[1]


def test_as_many_scores_as_are_enough_stop_a_judge():
    for count, stopped in ((9, False), (10, True)):
        ranked = ranked_prompts(count, answers=2)
        assert bool(see(ranked, judge(ranked, lambda rank: 4))[1]) is stopped
    for count, stopped in ((19, False), (20, True)):
        ranked = ranked_prompts(count, answers=2)
        assert bool(see(ranked, judge(ranked, lambda rank: rank))[1]) is stopped


def test_judge_as_good_as_chance_is_told_so():
    rng, ranked = random.Random(2), ranked_prompts(33)
    told = 0
    for _ in range(200):
        _, faults, doubts = see(ranked, judge(ranked, noisy(rng, 0.0)))
        told += bool(faults or doubts)
    assert told >= 0.9 * 200


def test_judge_that_says_the_same_is_stopped():
    ranked = ranked_prompts(33)
    for eft in (True, False):
        _, faults, _ = see(ranked, judge(ranked, lambda rank: 4), eft)
        assert len(faults) == 1
        assert faults[0].startswith("99 of 99 scores are 4, so the judge tells nothing apart")


def test_judge_that_is_mostly_wrong_is_stopped():
    rng, ranked = random.Random(3), ranked_prompts(33)
    _, faults, _ = see(ranked, judge(ranked, noisy(rng, -1.0)))
    assert len(faults) == 1 and "chance is better" in faults[0]


def test_nothing_written_stops_where_eft_is_to_learn_from_it():
    rng, ranked = random.Random(4), ranked_prompts(33)
    judged = judge(ranked, noisy(rng, 0.5), source="forced")
    _, faults, _ = see(ranked, judged)
    assert len(faults) == 1
    assert faults[0].startswith("0 of 99 scores were written as asked, so EFT has nothing to learn")
    assert see(ranked, judged, eft=False)[1] == []


def test_score_before_its_reasons_teaches_eft_nothing():
    rng, ranked = random.Random(5), ranked_prompts(33)
    seen, faults, _ = see(ranked, judge(ranked, noisy(rng, 0.5), source="first"))
    assert "EFT has nothing to learn from" in faults[0]
    assert "0 of 99 scores were written as asked, 99 before their reasons" in seen.summary()


def test_nothing_readable_stops_without_eft_too():
    ranked = ranked_prompts(33)
    seen, faults, doubts = see(ranked, judge(ranked, lambda rank: None), eft=False)
    assert len(faults) == 1 and "judge.close=force gives every judgment a score" in faults[0]
    assert doubts == [] and seen.summary() == "0 of 99 scores were written as asked"


def test_judge_no_better_than_length_is_doubted():
    ranked = ranked_prompts(33)
    longer_is_better = [replace(one, responses=one.responses[::-1]) for one in ranked]
    rng = random.Random(6)
    _, faults, doubts = see(longer_is_better, judge(longer_is_better, noisy(rng, 0.8)))
    assert not faults
    assert any("to pick the longer answer is as good as this judge: 100%" in one for one in doubts)


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_data_stops_nobody(count):
    rng, ranked = random.Random(7), ranked_prompts(count, answers=2)
    _, faults, _ = see(ranked, judge(ranked, noisy(rng, 0.5)))
    assert not any("chance" in one for one in faults)


def test_ranks_of_the_helper_are_by_length():
    assert all(len(a.text) < len(b.text) for a, b in pairwise(ranked_prompts(1)[0].responses))
