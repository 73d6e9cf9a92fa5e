"""The runner: items of several rounds, completions in any order, resuming, nothing asked twice."""

from collections import Counter

import pytest

from selfreward_lite.data.records import Outcome
from selfreward_lite.data.store import Store
from selfreward_lite.engine.api import Request, Sampling
from selfreward_lite.engine.scripted import ScriptedEngine
from selfreward_lite.run.ask import drive, run_stage

GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=4)


def request(key: str, samples: int = 1) -> Request:
    return Request(key, (1, 2, 3), tuple(range(samples)), GREEDY, (0,))


def engine(**settings) -> ScriptedEngine:
    return ScriptedEngine(
        lambda asked, sample: f"{asked.key}/{sample}", lambda text: [0] * len(text), **settings
    )


def asking(name: str, rounds: int, seen: dict):
    for number in range(rounds):
        replies = yield [request(f"{name}-{number}-a", 2), request(f"{name}-{number}-b")]
        seen.setdefault(name, []).append(
            [[one.text for one in of_request] for of_request in replies]
        )
    return Outcome(drops=Counter(["test"]))


@pytest.mark.parametrize("shuffle_seed", [None, 1, 2])
def test_every_item_gets_its_own_answers_in_order(shuffle_seed):
    seen: dict = {}
    items = [(str(n), asking(str(n), 1 + n % 3, seen)) for n in range(50)]
    done = [name for name, _, _ in drive(engine(shuffle_seed=shuffle_seed), items)]
    assert sorted(done) == sorted(str(n) for n in range(50))
    for n in range(50):
        assert seen[str(n)] == [
            [[f"{n}-{r}-a/0", f"{n}-{r}-a/1"], [f"{n}-{r}-b/0"]] for r in range(1 + n % 3)
        ]


def test_an_item_that_asks_nothing_is_through_at_once():
    def silent():
        return Outcome()
        yield

    assert [name for name, _, _ in drive(engine(), [("a", silent()), ("b", silent())])] == [
        "a",
        "b",
    ]


def test_items_begin_only_when_the_engine_wants_more():
    begun = []

    def begin(n):
        begun.append(n)
        return (yield from asking(str(n), 1, {}))

    progress = drive(engine(), [(str(n), begin(n)) for n in range(1000)])
    next(progress)
    assert len(begun) < 10


def test_tokens_are_counted_by_item():
    ((_, _, tokens),) = drive(engine(), [("x", asking("x", 1, {}))])
    assert tokens == len("x-0-a/0") + len("x-0-a/1") + len("x-0-b/0")


def test_a_resumed_stage_asks_only_what_is_missing(tmp_path):
    def items(limit=None):
        return [(str(n), asking(str(n), 1, {})) for n in range(20)][:limit]

    with Store.write(tmp_path) as store:
        store.state("run", "seed 0")
        for name, outcome, _ in drive(engine(), items(7)):
            store.commit(1, "test", name, outcome)
        resumed, seen = engine(shuffle_seed=3), []
        run_stage(store, resumed, 1, "test", items(), lambda at: seen.append((at.done, at.already)))
        assert len(resumed.asked) == 13 * 2
        assert store.is_done(1, "test")
        assert seen[0] == (7, 7)
        assert seen[-1] == (20, 7)
        assert store.drops(1, "test") == {"test": 20}


def test_two_requests_with_one_key_are_refused():
    def double():
        yield [request("same"), request("same")]
        return Outcome()

    with pytest.raises(ValueError, match="same"):
        list(drive(engine(), [("a", double())]))
