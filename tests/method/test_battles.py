"""Battles: which response is judged by the meta-judge, and what its verdicts say."""

from method_records import (
    finish_asking,
    make_completions,
    make_judgment,
    make_prompt,
    make_response,
)

from selfreward_lite.method import battles


def test_most_contested_has_the_highest_variance():
    a = [make_judgment(i, s, response="a") for i, s in enumerate([5, 5, 4, 4, 4, 5, 4, 5, 4, 5, 4])]
    b = [make_judgment(i, s, response="b") for i, s in enumerate([5, 1, 3, 4, 2, 5, 3, 4, 2, 3, 1])]
    assert battles.most_contested([a, b], 0) == 1
    assert battles.most_contested([b, a], 0) == 0
    assert (
        battles.most_contested([[make_judgment(0, 4, "same"), make_judgment(1, 4, "same")]], 0)
        is None
    )


def test_most_contested_draws_ties_by_seed():
    groups = [
        [make_judgment(0, 4, response=name), make_judgment(1, 2, response=name)]
        for name in "abcdef"
    ]
    picks = [battles.most_contested(groups, seed) for seed in range(20)]
    assert picks == [battles.most_contested(groups, seed) for seed in range(20)]
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
    assert outcome.drops[0].count == 1
