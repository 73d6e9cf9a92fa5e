"""One engine for many callers: streams, turns, canceling, deaths; scripted and llama.cpp."""

import os
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
from repository import HELPERS

from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.engine.api import Completion, LlamaSpec, Piece, Request, Sampling, ScriptedSpec
from selfreward_lite.engine.live import Live
from selfreward_lite.method.closing import make_score_closing
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.gguf_export import base_to_gguf
from selfreward_lite.system.errors import EngineError


def request(text: str, seeds: int = 1, **more) -> Request:
    return Request(
        text,
        tuple(text.encode()),
        tuple(range(seeds)),
        Sampling(temperature=0.8, top_p=0.95, max_tokens=24),
        (0,),
        **more,
    )


@pytest.fixture
def scripted(monkeypatch):
    """Return a function that makes a live engine with a scripted child."""
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    made: list[Live] = []

    def make(most: int = 64, **settings) -> Live:
        made.append(Live(ScriptedSpec(factory="engine_factories:words", arguments=settings), most))
        return made[-1]

    yield make
    for live in made:
        live.close()


def answers(live: Live, asked: Request, caller: str = "") -> list[Completion]:
    return [said for said in live.ask(asked, caller) if isinstance(said, Completion)]


def crowd(pool: ThreadPoolExecutor, live: Live, count: int) -> list[Future[list[Completion]]]:
    """Let many callers ask at once: one is served, the others wait."""
    received = [
        pool.submit(answers, live, request(str(number), seeds=16), str(number))
        for number in range(count)
    ]
    time.sleep(0.3)
    return received


def test_answer_comes_in_pieces_and_then_complete(scripted):
    said = [one for one in scripted().ask(request("hello", stream=True)) if one is not None]
    assert [type(one) for one in said] == [Piece, Completion]
    assert "".join(one.text for one in said[:-1]) == said[-1].text == "hello:0"
    assert {one.key for one in said} == {"hello"}


def test_many_callers_receive_only_their_own_answers(scripted):
    live = scripted(most=1000)

    def talk(caller: int) -> list[str]:
        return [
            one.text
            for turn in range(2)
            for one in answers(live, request(f"{caller} {turn}", seeds=3), str(caller))
        ]

    with ThreadPoolExecutor(50) as pool:
        received = list(pool.map(talk, range(50)))
    assert received == [
        [f"{caller} {turn}:{seed}" for turn in range(2) for seed in range(3)]
        for caller in range(50)
    ]
    assert live.completions == 300
    assert (live.waiting, live.deaths, live.state) == (0, 0, "ready")


@pytest.mark.slow
def test_a_request_of_wrong_types_ends_no_other(scripted):
    live = scripted(pause=0.02)
    with ThreadPoolExecutor(8) as pool:
        others = crowd(pool, live, 8)
        for wrong in ({"seeds": ("abc",)}, {"tokens": (1, None)}, {"adapter": 5}):
            with pytest.raises(EngineError, match=f"cannot be sent: {next(iter(wrong))}"):
                answers(live, replace(request("wrong"), **wrong))
        assert all(len(one.result()) == 16 for one in others)
    assert live.deaths == 0


def test_full_queue_refuses_and_serves_the_others(scripted):
    live = scripted(most=3, pause=0.02)
    outcomes: list[str] = []

    def talk(number: int) -> None:
        try:
            outcomes.append(answers(live, request(str(number), seeds=16), str(number))[0].finish)
        except EngineError as error:
            outcomes.append(str(error))

    live.load()
    threads = [threading.Thread(target=talk, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert outcomes.count("stop") == 4, "one under way, three that waited"
    assert outcomes.count("3 requests wait already; try again in a moment") == 4


def test_callers_take_turns(scripted):
    """A caller with many requests does not keep the others waiting."""
    live, order = scripted(pause=0.02), []
    live.load()

    def talk(caller: str, text: str) -> None:
        answers(live, request(text, seeds=16), caller)
        order.append(text)

    threads = [
        threading.Thread(target=talk, args=("greedy", f"greedy {number}")) for number in range(5)
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    other = threading.Thread(target=talk, args=("modest", "modest"))
    other.start()
    for thread in [*threads, other]:
        thread.join()
    assert order.index("modest") <= 2


def test_request_canceled_while_waiting_is_never_sent(scripted):
    live = scripted(pause=0.05)
    live.load()
    busy = threading.Thread(target=answers, args=(live, request("busy", seeds=16), "a"))
    busy.start()
    time.sleep(0.1)
    unwanted = live.ask(request("unwanted", seeds=16), "b")
    assert next(unwanted) is None, "it waits"
    assert live.waiting == 1
    unwanted.close()
    assert live.waiting == 0
    busy.join()
    assert answers(live, request("wanted"), "c")[0].text == "wanted:0"
    assert live.completions == 17


def test_silence_gives_none_so_that_a_caller_can_stop(scripted):
    live = scripted(pause=1.0)
    live.load()
    received = live.ask(request("slow"))
    assert next(received) is None
    received.close()


def test_death_fails_requests_under_way_and_serves_the_next(scripted):
    live = scripted(poison="poison", pause=0.01)
    assert answers(live, request("before"))[0].finish == "stop"
    assert [one.finish for one in answers(live, request("poison", seeds=2))] == ["failed", "failed"]
    assert answers(live, request("after"))[0].text == "after:0"
    assert live.deaths == 1
    assert "SIGKILL" in live.last_death


@pytest.mark.slow
def test_waiting_callers_are_served_after_a_death(scripted):
    live = scripted(pause=0.03)
    live.load()
    with ThreadPoolExecutor(4) as pool:
        received = crowd(pool, live, 4)
        os.kill(live._child.pid, signal.SIGKILL)
        finishes = sorted({one.finish for said in received for one in said.result()})
    assert finishes == ["failed", "stop"]
    assert live.deaths == 1


def test_load_error_reaches_every_caller(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    live = Live(ScriptedSpec(factory="engine_factories:unloadable"))
    for _ in range(2):
        with pytest.raises(EngineError, match="no such model; download it"):
            answers(live, request("hello"))
    live.close()
    with pytest.raises(EngineError, match="this engine was closed; ask again"):
        answers(live, request("hello"))


def test_closing_reaches_every_caller(scripted):
    live = scripted(pause=0.05)
    live.load()
    with ThreadPoolExecutor(3) as pool:
        received = crowd(pool, live, 3)
        live.close("it makes room")
        assert [str(one.exception(timeout=20)) for one in received] == ["it makes room"] * 3, (
            "one was under way, two waited"
        )
    assert live.deaths == 0


def test_closing_while_loading_leaves_no_child(scripted):
    live = scripted(load=1.0)
    loading = threading.Thread(target=lambda: pytest.raises(EngineError, live.load))
    loading.start()
    time.sleep(0.3)
    live.close()
    loading.join()
    assert (live.state, live._child) == ("closed", None)
    with pytest.raises(EngineError, match="was closed"):
        live.load()


def test_caller_that_waits_for_loading_can_stop(scripted):
    received = scripted(load=2.0).ask(request("hello"))
    began = time.monotonic()
    assert next(received) is None
    received.close()
    assert time.monotonic() - began < 1.5


def test_bug_while_loading_reaches_waiting_callers(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    live = Live(ScriptedSpec(factory="engine_factories:no_such_function"))
    with pytest.raises(EngineError, match="AttributeError"):
        answers(live, request("hello"))


# -- llama.cpp ----------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Live:
    base = base_to_gguf(
        TINY_MODEL, tmp_path_factory.mktemp("base") / "base.gguf", weights="nf4", dtype="f32"
    )
    live = Live(LlamaSpec(model=base, parallel=8, context=2048, batch=64, exact=True))
    yield live
    live.close()


def spoken(chat: ChatFormat, text: str, seeds: int = 1, tokens: int = 40, **more) -> Request:
    ids = tuple(chat.prompt_ids([{"role": "user", "content": text}]))
    return Request(
        text,
        ids,
        tuple(range(seeds)),
        Sampling(temperature=0.7, top_p=0.95, max_tokens=tokens),
        tuple(chat.stop),
        **more,
    )


def test_joined_pieces_equal_the_text_of_a_plain_engine(tiny, chat):
    from selfreward_lite.engine.process import ProcessEngine

    asked = spoken(chat, "Sort the letters c a b.", seeds=4, stream=True)
    pieces: dict[int, str] = dict.fromkeys(range(4), "")
    whole = {}
    for said in tiny.ask(asked):
        if isinstance(said, Piece):
            pieces[said.sample] += said.text
        elif said is not None:
            whole[said.sample] = said.text
    assert pieces == whole
    assert all(len(text) > 5 for text in whole.values())
    plain = ProcessEngine(tiny.spec)
    try:
        again = {
            said.sample: said.text
            for said in plain.complete([spoken(chat, "Sort the letters c a b.", seeds=4)])
        }
    finally:
        plain.close()
    assert again == whole


def test_canceled_request_is_no_longer_computed(tiny, chat):
    """Other requests continue, and its cells are free for the next."""
    before = tiny.completions
    for _ in range(20):
        received = tiny.ask(
            spoken(chat, "Reverse the letters a b c d.", seeds=8, tokens=200, stream=True), "a"
        )
        first = next(said for said in received if said is not None)
        assert isinstance(first, Piece)
        received.close()
    assert len(answers(tiny, spoken(chat, "Swap the ends of a b c.", seeds=8), "b")) == 8
    assert tiny.completions - before < 20 * 8 / 2 + 8, "most of the 160 never finished"
    assert (tiny.waiting, tiny._under_way) == (0, {})
    assert tiny.deaths == 0


def test_sixteen_callers_at_once_get_the_same_as_alone(tiny, chat):
    questions = [f"Sort the letters {a} {b} c." for a in "abdf" for b in "xyzw"]

    def talk(question: str) -> str:
        said = [
            one
            for one in tiny.ask(spoken(chat, question, tokens=24), question)
            if isinstance(one, Completion)
        ]
        return said[0].text

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(talk, questions))
    assert together == [talk(question) for question in questions]


def test_closings_are_those_of_a_plain_engine(tiny, chat):
    """A reply's score in the app is forced as a run forces it, also beside a streamed reply."""
    from selfreward_lite.engine.process import ProcessEngine

    closing = make_score_closing(chat)
    asked = spoken(chat, "Judge: Sort the letters c a b.", seeds=8, tokens=12, closing=closing)
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(answers, tiny, spoken(chat, "Swap the ends of a b.", seeds=4), "other")
        found = {one.sample: one for one in answers(tiny, asked, "judge")}
        assert all(one.closing is None for one in other.result())
    plain = ProcessEngine(tiny.spec)
    try:
        again = {one.sample: one for one in plain.complete([asked])}
    finally:
        plain.close()
    assert len(found) == 8
    for sample, one in found.items():
        assert one.text == again[sample].text and "Score:" in one.closing_text
        assert one.closing == pytest.approx(again[sample].closing, rel=0.05)
