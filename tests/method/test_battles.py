"""Battles: which response is judged by the meta-judge, and what its verdicts say."""

from method_records import (
    finish_asking,
    make_completions,
    make_judgment,
    make_prompt,
    make_response,
)

from selfreward_lite.method import battles


def judge(*scores: list[int], text=None):
    """Responses, and their judgments with these scores."""
    answers = [make_response(index=index) for index in range(len(scores))]
    drawn = {
        answer.id: [
            make_judgment(index, score, text, response=answer.id)
            for index, score in enumerate(given)
        ]
        for answer, given in zip(answers, scores, strict=True)
    }
    return answers, drawn


def test_most_contested_has_the_highest_variance():
    (a, b), drawn = judge([5, 5, 4, 4, 4, 5, 4, 5, 4, 5, 4], [5, 1, 3, 4, 2, 5, 3, 4, 2, 3, 1])
    assert battles.most_contested([a, b], drawn, 0) == b
    assert battles.most_contested([b, a], drawn, 0) == b
    assert battles.most_contested([a], {}, 0) is None, "without a judgment"
    assert battles.most_contested(*judge([4, 4], text="same"), 0) is None


def test_most_contested_draws_ties_by_seed():
    answers, drawn = judge(*[[4, 2]] * 6)
    picks = [battles.most_contested(answers, drawn, seed) for seed in range(20)]
    assert picks == [battles.most_contested(answers, drawn, seed) for seed in range(20)]
    assert len(set(picks)) > 1


def test_battles_ask_in_both_orders(role):
    drawn = [
        make_judgment(0, 4),
        make_judgment(1, 2),
        make_judgment(2, None),
        make_judgment(3, 5),
        make_judgment(4, 2, make_judgment(1, 2).text),
    ]
    asking = battles.ask_for_battles(make_prompt(), make_response(), drawn, role)
    requests = next(asking)
    assert len(requests) == 6  # three different readable judgments, ordered pairs
    outcome = finish_asking(
        asking, [make_completions(request, ["x\nWinner: Judgement A"]) for request in requests]
    )
    assert all(battle.verdict == 1 for battle in outcome.records)
    shown = {(battle.first_id, battle.second_id) for battle in outcome.records}
    assert all((second, first) in shown for first, second in shown)


def test_battle_with_unreadable_verdict_is_undecided(role):
    asking = battles.ask_for_battles(
        make_prompt(), make_response(), [make_judgment(0, 4), make_judgment(1, 2)], role
    )
    requests = next(asking)
    outcome = finish_asking(
        asking,
        [
            make_completions(requests[0], ["B, I think"]),
            make_completions(requests[1], ["Winner: Judgement B"]),
        ],
    )
    assert [battle.verdict for battle in outcome.records] == [0, -1]
    assert outcome.drops == {"undecided": 1}
