"""The fake engine follows the protocol."""

from __future__ import annotations

from selfreward_lite.engine.api import Request, Sampling
from selfreward_lite.engine.scripted import Reply, ScriptedEngine

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=9)


def ask(name: str, samples: int = 2) -> Request:
    return Request(name, (1, 2, 3), tuple(range(samples)), SAMPLING, ())


def encode(text: str) -> list[int]:
    return list(text.encode())


def test_one_completion_per_seed():
    engine = ScriptedEngine(lambda request, sample: f"{request.key}{sample}", encode)
    found = list(engine.complete([ask("a"), ask("b", 1)]))
    assert [(c.key, c.sample, c.text) for c in found] == [
        ("a", 0, "a0"),
        ("a", 1, "a1"),
        ("b", 0, "b0"),
    ]
    assert found[0].tokens == (97, 48)
    assert (found[0].finish, found[0].prompt_tokens, found[0].probe) == ("stop", 3, None)
    assert [request.key for request in engine.asked] == ["a", "b"]


def test_reply_sets_finish_and_probe():
    engine = ScriptedEngine(lambda request, sample: Reply("x", "length", (0.25, 0.75)), encode)
    found = next(iter(engine.complete([ask("a", 1)])))
    assert (found.finish, found.probe) == ("length", (0.25, 0.75))


def test_shuffled_order_is_seeded_and_complete():
    requests = [ask(f"{index}") for index in range(30)]

    def order(seed: int | None) -> list[tuple[str, int]]:
        engine = ScriptedEngine(lambda request, sample: "x", encode, shuffle_seed=seed)
        return [(c.key, c.sample) for c in engine.complete(requests)]

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == sorted(order(None)) and order(1) != order(None)


def test_requests_are_pulled_only_as_needed():
    pulled = []
    feed = (pulled.append(index) or ask(str(index)) for index in range(100))
    running = ScriptedEngine(lambda request, sample: "x", encode).complete(feed)
    next(running)
    assert pulled == [0]
    running.close()
