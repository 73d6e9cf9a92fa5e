"""A child that dies costs no sample and never the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_requests import SAMPLING, make_requests
from repository import HELPERS, ROOT

from selfreward_lite.engine.api import (
    SPEC,
    Bracket,
    Closing,
    Completion,
    LlamaSpec,
    Request,
    Sampling,
    ScriptedSpec,
)
from selfreward_lite.engine.process import ProcessEngine
from selfreward_lite.system.errors import EngineError

Start = Callable[..., ProcessEngine]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    engines = []

    def run(factory: str = "faulty", **settings: object) -> ProcessEngine:
        engines.append(
            ProcessEngine(ScriptedSpec(factory=f"engine_factories:{factory}", arguments=settings))
        )
        return engines[-1]

    yield run
    for engine in engines:
        engine.close()


def check(
    completions: list[Completion], count: int, samples: int = 3, refused: tuple[str, ...] = ()
) -> None:
    """Every sample once, with its own seed's text."""
    found = {(c.key, c.sample): c for c in completions}
    assert len(found) == len(completions) == count * samples
    for (key, sample), completion in found.items():
        if key in refused:
            assert completion.finish == "failed" and not completion.text
        else:
            assert completion.text == f"{key[1:]}:{10 + sample}"
            assert completion.finish == "stop"


def test_all_samples_arrive_whatever_the_child_prints(start: Start):
    engine = start(noise=True)
    for _ in range(2):
        check(list(engine.complete(make_requests(100))), 100)
    assert engine.deaths == 0


def test_requests_are_pulled_only_as_far_as_the_window(start: Start):
    pulled = []
    engine = start()
    running = engine.complete(pulled.append(1) or request for request in make_requests(500))
    next(running)
    assert len(pulled) < 100
    running.close()


def test_killed_in_mid_batch_completes_all_without_duplicates(start: Start):
    engine = start(pause=0.001)
    completions = []
    for completion in engine.complete(make_requests(100)):
        completions.append(completion)
        if len(completions) in (50, 150):
            os.kill(engine._child.pid, signal.SIGKILL)
    check(completions, 100)
    assert engine.deaths == 2


def test_single_crash_refuses_nothing(start: Start, tmp_path: Path):
    once = tmp_path / "once"
    once.write_text("20")
    engine = start(once=str(once))
    check(list(engine.complete(make_requests(60))), 60)
    assert engine.deaths == 1


def test_request_that_kills_is_refused_and_the_others_complete(start: Start):
    engine = start(poison="17,40")
    check(list(engine.complete(make_requests(60))), 60, refused=("r17", "r40"))


@pytest.mark.slow
def test_child_that_dies_on_everything_is_an_error(start: Start):
    engine = start(poison=",".join(map(str, range(40))))
    with pytest.raises(EngineError, match="on every request: it was ended by SIGKILL"):
        list(engine.complete(make_requests(40)))


def test_error_keeps_its_line_and_the_child_lives(start: Start):
    engine = start(error="5")
    with pytest.raises(EngineError, match="^the scripted error, in one line$"):
        list(engine.complete(make_requests(10)))
    pid = engine._child.pid
    check(list(engine.complete(make_requests(5))), 5)
    assert engine._child.pid == pid


def test_a_bug_in_the_child_keeps_its_traceback(start: Start):
    engine = start(bug="50")
    with pytest.raises(RuntimeError, match="scripted bug"):
        list(engine.complete(make_requests(60)))
    check(list(engine.complete(make_requests(5))), 5)


def test_load_error_says_why(start: Start):
    with pytest.raises(EngineError, match="^no such model; download it$"):
        start("unloadable")
    with pytest.raises(EngineError, match="died while loading.*ended by SIGSEGV"):
        start("broken")
    with pytest.raises(RuntimeError, match="TypeError"):
        start(misspelt=1)
    with pytest.raises(ValueError, match="kind"):
        SPEC.validate_json('{"kind": "lama", "model": "m.gguf"}')


def test_closing_early_then_completing_again(start: Start):
    engine = start(pause=0.001)
    running = engine.complete(make_requests(200))
    next(running)
    running.close()
    check(list(engine.complete(make_requests(30))), 30)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        list(engine.complete(make_requests(1)))


def test_error_in_the_feed_passes_through(start: Start):
    def feed() -> Iterator[Request]:
        yield from make_requests(3)
        raise ValueError("the caller's")

    engine = start()
    with pytest.raises(ValueError, match="caller"):
        list(engine.complete(feed()))
    check(list(engine.complete(make_requests(30))), 30)


def test_no_orphan_when_the_parent_is_killed():
    code = (
        "from selfreward_lite.engine.process import ProcessEngine; import time\n"
        "from selfreward_lite.engine.api import ScriptedSpec\n"
        "from engine_requests import make_requests\n"
        "s = ScriptedSpec(factory='engine_factories:faulty', arguments={'pause': 0.05})\n"
        "e = ProcessEngine(s)\n"
        "r = e.complete(make_requests(1000)); next(r)\n"
        "print(e._child.pid, flush=True); time.sleep(60)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HELPERS)]),
    }
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    for _ in range(100):
        if not _runs(child):
            return
        time.sleep(0.05)
    pytest.fail("the child outlived its parent by 5 seconds")


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_llama_in_a_child(tmp_path: Path):
    pytest.importorskip("llama_cpp")
    from engine_models import write_model

    model = write_model(tmp_path / "base.gguf", spread=4.0)
    sizes = {"parallel": 4, "context": 1024, "batch": 64, "threads": 1}
    engine = ProcessEngine(LlamaSpec(model=model, exact=True, **sizes))
    requests = [Request(f"{i}", (297, *b"hello", i), (1, 2), SAMPLING, (298,)) for i in range(40)]
    whole = {(c.key, c.sample): c.tokens for c in engine.complete(requests)}
    assert len(whole) == 80 and engine.stats.steps > 0
    again, deaths = {}, 0
    for completion in engine.complete(requests):
        again[completion.key, completion.sample] = completion.tokens
        if len(again) == 10 and not deaths:
            os.kill(engine._child.pid, signal.SIGKILL)
            deaths = 1
    assert again == whole and engine.deaths == 1
    running = engine.complete(requests)
    next(running)
    running.close()
    few = {(c.key, c.sample): c.tokens for c in engine.complete(requests[:3])}
    assert few == {key: tokens for key, tokens in whole.items() if key[0] in ("0", "1", "2")}
    long = [Request(f"{i}", (297, *b"x" * 1200), (1, 2), SAMPLING, (298,)) for i in range(40)]
    assert [c.finish for c in engine.complete(long)] == ["refused"] * 80, "none fits, so none waits"
    with pytest.raises(EngineError, match="does not exist"):
        list(
            engine.complete(
                [Request("x", (297, 1), (1,), SAMPLING, (), str(tmp_path / "none.gguf"))]
            )
        )
    engine.close()


def test_child_killed_in_the_middle_of_closings_loses_none(tmp_path: Path):
    """Closings take most of the steps here; those of another child are those of this process."""
    pytest.importorskip("llama_cpp")
    from engine_models import write_model

    from selfreward_lite.engine.llama import LlamaEngine

    model = write_model(tmp_path / "base.gguf", spread=4.0)
    sizes = {"parallel": 4, "context": 1024, "batch": 32, "threads": 1}
    spec = LlamaSpec(model=model, exact=True, **sizes)
    closing = Closing(
        tuple(b"Then it goes on for long, so that few samples are drawn meanwhile.\nScore: "),
        tuple(b"012345"),
        (Bracket("a", "b", tuple(b"]")),),
    )
    warm = Sampling(temperature=1.0, top_p=1.0, max_tokens=6)
    requests = [
        Request(f"{i}", (297, *b"hello", i), (1, 2, 3), warm, (298,), closing=closing)
        for i in range(16)
    ]
    inside = LlamaEngine(spec)
    whole = {(one.key, one.sample): one for one in inside.complete(requests)}
    inside.close()
    engine, again = ProcessEngine(spec), {}
    for completion in engine.complete(requests):
        again[completion.key, completion.sample] = completion
        if len(again) in (5, 20):
            os.kill(engine._child.pid, signal.SIGKILL)
    engine.close()
    assert engine.deaths == 2 and again.keys() == whole.keys() and len(whole) == 48
    assert len({one.closing_text for one in whole.values()}) == 2
    for key, one in whole.items():
        assert (again[key].tokens, again[key].finish) == (one.tokens, one.finish)
        assert again[key].closing_text == one.closing_text
        assert again[key].closing == pytest.approx(one.closing, rel=1e-3)
