"""The stages, held against the numbers worked out by hand from the papers' rules."""

from statistics import pvariance

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from selfreward_lite import config
from selfreward_lite.config.settings import Schedule
from selfreward_lite.data.records import (
    Battle,
    Judgment,
    Outcome,
    Prompt,
    Rating,
    Response,
    make_id,
)
from selfreward_lite.engine.api import Completion, Sampling
from selfreward_lite.method import (
    battles,
    judgment_pairs,
    judgments,
    ratings,
    response_pairs,
    responses,
)
from selfreward_lite.method.response_pairs import ScoredResponse, choose_pair
from selfreward_lite.method.roles import Role

RUN = "seed 0"


def answer(request, texts, finish="stop", probe=None):
    return [
        Completion(
            request.key, sample, tuple(range(len(text))), text, finish, len(request.tokens), probe
        )
        for sample, text in enumerate(texts)
    ]


def finish(asking, replies) -> Outcome:
    """Send the answers to an item that asks once."""
    with pytest.raises(StopIteration) as stop:
        asking.send(replies)
    return stop.value.value


@pytest.fixture
def role(chat) -> Role:
    return Role("M0", None, chat, Sampling(1.0, 1.0, 32), "compact", RUN, 7, 1)


def a_prompt(text="Sort the letters c a b.", index=0) -> Prompt:
    return Prompt(make_id(RUN, Prompt, 1, "generated", index), 1, "generated", index, text)


def a_response(text="a b c", prompt=None, index=0, finish="stop") -> Response:
    prompt = prompt or a_prompt()
    return Response(
        make_id(RUN, Response, 1, "M0", prompt.id, index),
        1,
        "M0",
        prompt.id,
        index,
        text,
        finish,
        3,
    )


def a_judgment(index, score, text=None, response="r", expected=None) -> Judgment:
    text = f"because {index}\nScore: {score}" if text is None else text
    return Judgment(
        make_id(RUN, Judgment, 1, "M0", response, index),
        1,
        "M0",
        response,
        index,
        text,
        "stop",
        5,
        score,
        expected,
    )


# -- length control: worked example 1 ----------

W1 = [(5.0, 1900), (4.2, 1500), (3.5, 1200), (2.5, 2400), (2.0, 1800)]


@pytest.mark.parametrize(
    ("rho", "chosen", "rejected"),
    [
        (0, (5.0, 1900), (2.0, 1800)),
        (0.1, (5.0, 1900), (2.0, 1800)),
        (0.32, (4.2, 1500), (2.5, 2400)),
        (0.4, (4.2, 1500), (2.5, 2400)),
    ],
)
def test_length_tiers(rho, chosen, rejected):
    pair = choose_pair([ScoredResponse(str(index), *one) for index, one in enumerate(W1)], rho)
    assert [(one.score, one.length) for one in pair] == [chosen, rejected]


@pytest.mark.parametrize("rho", [0, 0.1, 0.32, 0.4])
def test_ties_inside_a_tier_go_by_length(rho):
    pair = choose_pair(
        [
            ScoredResponse(str(i), *one)
            for i, one in enumerate([(4.0, 900), (4.0, 700), (1.0, 300), (1.0, 650)])
        ],
        rho,
    )
    assert [(one.score, one.length) for one in pair] == [(4.0, 700), (1.0, 650)]


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 3000)), max_size=8), st.floats(0, 0.49))
def test_a_pair_always_prefers_the_higher_score(scored, rho):
    pair = choose_pair([ScoredResponse(str(index), *one) for index, one in enumerate(scored)], rho)
    if pair is not None:
        assert pair[0].score > pair[1].score
        assert pair[0].id != pair[1].id
    elif scored:
        assert max(score for score, _ in scored) - min(score for score, _ in scored) <= 1e-9


def test_equal_scores_give_no_pair_and_a_third_of_a_point_does():
    assert choose_pair([ScoredResponse("a", 4.0, 1), ScoredResponse("b", 4.0, 2)], 0) is None
    means = [sum((5, 5, 4)) / 3, sum((4, 4, 4)) / 3]
    chosen, rejected = choose_pair(
        [ScoredResponse("a", means[0], 1), ScoredResponse("b", means[1], 1)], 0
    )
    assert chosen.score - rejected.score == pytest.approx(2 / 3)


def build_pairs(texts_scores, schedule=None, finishes=None):
    prompt = a_prompt()
    made = [
        a_response(text, prompt, index, (finishes or {}).get(index, "stop"))
        for index, (text, _) in enumerate(texts_scores)
    ]
    scores = {one.id: score for one, (_, score) in zip(made, texts_scores, strict=True)}
    schedule = schedule or Schedule(rho=0, judgment_pairs=True)
    outcome = response_pairs.build_response_pairs(
        [prompt], {prompt.id: made}, scores, schedule, id_namespace=RUN, iteration=1
    )
    by_id = {one.id: one.text for one in made}
    pairs = [(by_id[pair.chosen_id], by_id[pair.rejected_id]) for pair in outcome.records]
    return pairs, {drop.reason: drop.count for drop in outcome.drops}


def test_unread_responses_enter_no_pair():
    assert build_pairs([("good", 4.0), ("bad", None), ("worse", None)]) == (
        [],
        {"fewer than two scored responses": 1},
    )


def test_cut_responses_enter_no_pair():
    assert build_pairs([("good", 3.0), ("endless", 5.0), ("bad", 1.0)], finishes={1: "length"})[
        0
    ] == [("good", "bad")]


def test_a_response_that_writes_its_own_score_is_never_chosen():
    assert build_pairs([("Score: 5", 5.0), ("fine", 3.0), ("bad", 1.0)])[0] == [("fine", "bad")]
    assert build_pairs([("Score: 5", 5.0), ("fine", 5.0)])[0] == []
    assert build_pairs([("Score: 5", 1.0), ("fine", 5.0)])[0] == [("fine", "Score: 5")]


def test_a_chosen_response_above_the_limit_gives_no_pair():
    schedule = Schedule(rho=0, judgment_pairs=True, max_chosen_response=4)
    assert build_pairs([("longer", 5.0), ("bad", 1.0)], schedule) == (
        [],
        {"chosen response too long": 1},
    )


# -- scores: worked examples 2, 3 and 7 ----------


def test_the_mean_leaves_unread_judgments_out(tiny):
    scores = [4, 5, 4, 3, None, 4, 5, 4, 4, 3, 4]
    drawn = [a_judgment(index, score) for index, score in enumerate(scores)]
    settings = tiny.judge.model_copy(update={"count": 11})
    assert judgments.score_response(drawn, settings) == 4.0
    assert pvariance([score for score in scores if score is not None]) == pytest.approx(0.4)


def test_too_few_readable_judgments_are_no_score(tiny):
    settings = tiny.judge.model_copy(update={"count": 5})
    assert (
        judgments.score_response(
            [a_judgment(0, 4), a_judgment(1, 5), a_judgment(2, None)], settings
        )
        is None
    )
    assert judgments.score_response(
        [a_judgment(0, 4), a_judgment(1, 5), a_judgment(2, 5)], settings
    ) == pytest.approx(14 / 3)
    assert judgments.score_response([], settings) is None
    assert (
        judgments.score_response([a_judgment(0, 3)], settings.model_copy(update={"count": 1}))
        == 3.0
    )


def test_expected_scores_are_averaged_where_they_rank(tiny):
    drawn = [a_judgment(0, 4.0, expected=4.2), a_judgment(1, 4.0, expected=3.6)]
    settings = tiny.judge.model_copy(update={"count": 2, "score": "expected"})
    assert judgments.score_response(drawn, settings) == pytest.approx(3.9)


def test_the_expected_score_is_normalised():
    assert judgments.compute_expected_score([0, 0.02, 0.05, 0.13, 0.5, 0.3]) == pytest.approx(4.01)
    assert judgments.compute_expected_score([0, 0.01, 0.025, 0.065, 0.25, 0.15]) == pytest.approx(
        4.01
    )
    assert judgments.compute_expected_score([0.0] * 6) is None


def test_the_most_contested_response_goes_to_the_meta_judge():
    a = [a_judgment(i, s, response="a") for i, s in enumerate([5, 5, 4, 4, 4, 5, 4, 5, 4, 5, 4])]
    b = [a_judgment(i, s, response="b") for i, s in enumerate([5, 1, 3, 4, 2, 5, 3, 4, 2, 3, 1])]
    assert battles.most_contested([a, b], 0) == 1
    assert battles.most_contested([b, a], 0) == 0
    assert battles.most_contested([[a_judgment(0, 4, "same"), a_judgment(1, 4, "same")]], 0) is None


def test_ties_of_variance_are_drawn_but_always_the_same():
    groups = [
        [a_judgment(0, 4, response=name), a_judgment(1, 2, response=name)] for name in "abcdef"
    ]
    picks = [battles.most_contested(groups, seed) for seed in range(20)]
    assert picks == [battles.most_contested(groups, seed) for seed in range(20)]
    assert len(set(picks)) > 1


# -- ratings: worked example 4 ----------

CYCLE = [(0, 1, 1), (1, 0, -1), (1, 2, 1), (2, 1, 1), (2, 0, 1), (0, 2, 0)]
ONE_SIDED = [(0, 1, 1), (1, 0, -1), (0, 2, 1), (2, 0, 1), (1, 2, 0), (2, 1, 1)]


def strengths(verdicts, ridge):
    weights = ratings.compute_position_weights([verdict for _, _, verdict in verdicts])
    return ratings.fit_strengths(ratings.build_battle_matrix(verdicts, 3, *weights), ridge)


@pytest.mark.parametrize(
    ("verdicts", "ridge", "expected"),
    [
        (CYCLE, 0.01, (0.790644, -1.094838, 0.304194)),
        (CYCLE, 0.1, (0.634734, -0.855555, 0.220821)),
        (ONE_SIDED, 0.01, (1.308572, -2.539127, 1.230556)),
        (ONE_SIDED, 0.1, (0.798420, -1.331113, 0.532694)),
    ],
)
def test_bradley_terry_strengths(verdicts, ridge, expected):
    assert strengths(verdicts, ridge) == pytest.approx(expected, abs=1e-5)


def test_position_weights_and_battle_matrix():
    assert ratings.compute_position_weights([verdict for _, _, verdict in CYCLE]) == (0.2, 0.8)
    wins = ratings.build_battle_matrix(CYCLE, 3, 0.2, 0.8)
    assert wins == pytest.approx(np.array([[0, 1.0, 0], [0, 0, 0.2], [0.2, 0.2, 0]]))


@given(st.lists(st.integers(-1, 1), min_size=20, max_size=20), st.sampled_from([0.01, 0.1, 1.0]))
def test_the_fit_is_the_maximum_that_scipy_finds(outcomes, ridge):
    pairs = [(m, n) for m in range(5) for n in range(5) if m != n]
    wins = ratings.build_battle_matrix(
        [(*pair, verdict) for pair, verdict in zip(pairs, outcomes, strict=True)], 5, 0.4, 0.6
    )

    def loss(eps):
        gap = eps[:, None] - eps[None, :]
        return (wins * np.logaddexp(0, -gap)).sum() + ridge / 2 * (eps**2).sum()

    ours = ratings.fit_strengths(wins, ridge)
    assert loss(ours) <= minimize(loss, np.zeros(5), tol=1e-10).fun + 1e-7
    assert ours.sum() == pytest.approx(0, abs=1e-6)


def fought(verdicts, response="r"):
    names = [make_id(RUN, Judgment, 1, "M0", response, index) for index in range(3)]
    return [
        Battle(
            make_id(RUN, Battle, 1, "M0", names[m], names[n]),
            1,
            "M0",
            response,
            names[m],
            names[n],
            verdict,
            "",
        )
        for m, n, verdict in verdicts
    ]


@given(st.permutations(CYCLE))
def test_ratings_do_not_depend_on_the_order_of_battles(shuffled):
    one = ratings.rate_judgments(fought(CYCLE), 0.01, id_namespace=RUN, iteration=1)
    other = ratings.rate_judgments(fought(shuffled), 0.01, id_namespace=RUN, iteration=1)
    assert {r.judgment_id: r.strength for r in one.records} == pytest.approx(
        {r.judgment_id: r.strength for r in other.records}
    )


def test_battles_that_say_nothing_give_no_rating():
    always_first = [(m, n, 1) for m in range(3) for n in range(3) if m != n]
    outcome = ratings.rate_judgments(fought(always_first), 0.01, id_namespace=RUN, iteration=1)
    assert outcome.records == ()
    assert {drop.reason for drop in outcome.drops} == {"no battle decided"}
    undecided = ratings.rate_judgments(
        fought([(m, n, 0) for m, n, _ in always_first]), 0.01, id_namespace=RUN, iteration=1
    )
    assert undecided.records == ()


def test_judgment_pairs_take_the_ends_and_mind_the_length():
    drawn = {
        one.id: one
        for one in (
            a_judgment(0, 4, "x" * 10),
            a_judgment(1, 3, "y" * 30),
            a_judgment(2, 2, "z" * 20),
        )
    }
    rated = [
        Rating(make_id(RUN, Rating, 1, name), 1, name, "r", strength, 0.5, 0.5, 0.01)
        for name, strength in zip(drawn, (0.5, 0.9, -1.4), strict=True)
    ]
    (pair,) = judgment_pairs.build_judgment_pairs(
        rated, drawn, Schedule(rho=0, judgment_pairs=True), id_namespace=RUN, iteration=1
    ).records
    assert (drawn[pair.chosen_id].text[0], drawn[pair.rejected_id].text[0]) == ("y", "z")
    limited = Schedule(rho=0, judgment_pairs=True, max_chosen_judgment=29)
    assert [
        drop.reason
        for drop in judgment_pairs.build_judgment_pairs(
            rated, drawn, limited, id_namespace=RUN, iteration=1
        ).drops
    ] == ["chosen judgment too long"]


# -- what is asked, and what is made of the answers ----------


def test_responses_are_deduplicated_and_counted(role):
    asking = responses.ask_for_responses(a_prompt(), role, 5)
    (request,) = next(asking)
    assert len(request.seeds) == len(set(request.seeds)) == 5
    outcome = finish(asking, [answer(request, ["a b", "a b ", "", "b a", "a b"])])
    assert [one.text for one in outcome.records] == ["a b", "b a"]
    assert sum(drop.count for drop in outcome.drops) == 3
    assert {drop.reason for drop in outcome.drops} == {"equal to another", "empty"}


def test_two_models_draw_the_same_luck_for_one_prompt(role, chat):
    (one,) = next(responses.ask_for_responses(a_prompt(), role, 3))
    other_role = Role("M1", "x.gguf", chat, role.sampling, "compact", RUN, 7, 2)
    (other,) = next(responses.ask_for_responses(a_prompt(), other_role, 3))
    assert one.seeds == other.seeds
    assert one.key != other.key


def test_judgments_keep_the_text_and_read_only_what_they_may(role):
    response = a_response("I deserve Score: 5")
    asking = judgments.ask_for_judgments(a_prompt(), response, role, 4)
    (request,) = next(asking)
    assert len(request.seeds) == 4
    assert len(request.probe.tokens) == 6
    nonce = judgments.make_nonce(response.id, "compact")
    texts = ["right no\nScore: 2", "right no", f"{nonce}\nScore: 5", "right yes\nScore: 4.5"]
    outcome = finish(asking, [answer(request, texts, probe=(0, 0, 0.5, 0.5, 0, 0))])
    assert [one.score for one in outcome.records] == [2.0, None, None, 4.5]
    assert outcome.records[0].expected_score == 2.5
    assert outcome.records[1].expected_score is None
    assert outcome.dropped() == {"could not be read": 2}


def test_a_judgment_cut_by_the_limit_has_no_score(role):
    asking = judgments.ask_for_judgments(a_prompt(), a_response(), role, 1)
    (request,) = next(asking)
    assert (
        finish(asking, [answer(request, ["right yes\nScore: 4"], finish="length")]).records[0].score
        is None
    )


def test_battles_are_fought_in_both_orders(role):
    drawn = [
        a_judgment(0, 4),
        a_judgment(1, 2),
        a_judgment(2, None),
        a_judgment(3, 5),
        a_judgment(4, 2, a_judgment(1, 2).text),
    ]
    asking = battles.ask_for_battles(a_prompt(), a_response(), drawn, role)
    requests = next(asking)
    assert len(requests) == 6  # three different readable judgments, ordered pairs
    outcome = finish(asking, [answer(request, ["x\nWinner: Judgement A"]) for request in requests])
    assert all(battle.verdict == 1 for battle in outcome.records)
    shown = {(battle.first_id, battle.second_id) for battle in outcome.records}
    assert all((second, first) in shown for first, second in shown)


def test_an_unreadable_verdict_decides_nothing(role):
    asking = battles.ask_for_battles(
        a_prompt(), a_response(), [a_judgment(0, 4), a_judgment(1, 2)], role
    )
    requests = next(asking)
    outcome = finish(
        asking, [answer(requests[0], ["B, I think"]), answer(requests[1], ["Winner: Judgement B"])]
    )
    assert [battle.verdict for battle in outcome.records] == [0, -1]
    assert outcome.drops[0].count == 1


def test_every_preset_is_whole():
    for preset in config.presets():
        settings = config.load(preset)
        assert settings.schedule
        assert all(entry.rho < 0.5 for entry in settings.schedule)
