"""Locks between processes, and the GPU lock: a run waits for it, an app releases it."""

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from selfreward_lite.app import engine_pool
from selfreward_lite.app.engine_pool import OTHER_MODEL, EnginePool
from selfreward_lite.data.store import Store
from selfreward_lite.engine.api import ScriptedSpec
from selfreward_lite.engine.live import Live
from selfreward_lite.system import gpu, locks
from selfreward_lite.system.errors import EngineError, UserError


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "FOLDER", tmp_path / "cache")
    monkeypatch.setattr(gpu, "POLL", 0.02)
    monkeypatch.setattr(engine_pool, "POLL", 0.02)
    monkeypatch.setattr(engine_pool, "HEARTBEAT", 0.02)


def test_lock_has_one_named_holder(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    path = tmp_path / "x.lock"
    assert locks.holder(path) is None
    mine = locks.take(path, "me")
    assert mine is not None
    assert (locks.take(path, "you"), locks.holder(path)) == (None, "me")
    locks.release(mine)
    assert locks.holder(path) is None
    again = locks.take(path, "you")
    assert locks.holder(path) == "you"
    locks.release(again)


def test_reading_the_holder_blocks_nothing(tmp_path):
    path, stop = tmp_path / "x.lock", threading.Event()
    path.touch()

    def look() -> None:
        while not stop.is_set():
            locks.holder(path)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            mine = locks.take(path, "me")
            assert mine is not None
            locks.release(mine)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_lock_ends_with_its_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from selfreward_lite.system import locks; "
        "locks.take(Path(sys.argv[1]), 'child'); print('there', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "x.lock"], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "there\n"
    assert locks.holder(tmp_path / "x.lock") == "child"
    child.kill()
    child.wait()
    assert locks.holder(tmp_path / "x.lock") is None


def test_run_says_which_process_writes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    assert Store.writer(tmp_path / "run") is None
    with Store.write(tmp_path / "run"):
        import os

        assert Store.writer(tmp_path / "run") == os.getpid()
        with pytest.raises(UserError, match=f"process {os.getpid()} is writing this run"):
            Store.write(tmp_path / "run")
    assert Store.writer(tmp_path / "run") is None


def test_run_waits_for_the_gpu_and_says_for_whom(monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.02)
    theirs, said, had = gpu.try_lock("the app"), [], threading.Event()

    def run() -> None:
        with gpu.gpu_lock("run mine", said.append):
            had.set()

    thread = threading.Thread(target=run)
    thread.start()
    while not gpu.is_wanted():
        time.sleep(0.01)
    assert gpu.lock_holder() == "run mine"
    assert not had.is_set()
    assert gpu.try_lock("another app") is None, "a waiting run comes first"
    locks.release(theirs)
    thread.join(10)
    assert had.is_set()
    assert said == [
        "the GPU is used by the app: waiting for it; end that process, or interrupt this one"
    ]
    assert (gpu.lock_holder(), gpu.is_wanted()) == (None, False)


def use_engine(engine: EnginePool, model: str = "a", gpu_layers: int = 0) -> tuple[object, object]:
    """A use of the engine, to be closed, and the engine or the reason to wait."""
    using = engine.using(lambda: ScriptedSpec(factory=model, gpu_layers=gpu_layers))
    return using, next(using)


def test_callers_of_the_same_engine_share_it():
    engine = EnginePool(on_gpu=False)
    (one, first), (two, second) = use_engine(engine), use_engine(engine)
    assert isinstance(first, Live)
    assert first is second
    one.close()
    two.close()
    engine.close()
    assert first.state == "closed"


def test_another_base_waits_until_the_engine_is_free():
    engine = EnginePool(on_gpu=False)
    one, first = use_engine(engine, model="a")
    two, said = use_engine(engine, model="b")
    three, later = use_engine(engine, model="a")
    assert (said, later) == (OTHER_MODEL, OTHER_MODEL)
    one.close()
    second = next(found for found in two if not isinstance(found, str))
    assert (first.state, second.spec.factory) == ("closed", "b")
    assert next(three) == OTHER_MODEL
    two.close()
    assert next(found for found in three if not isinstance(found, str)).spec.factory == "a"
    three.close()


def test_leaving_the_queue_blocks_nothing():
    engine = EnginePool(on_gpu=False)
    one, _ = use_engine(engine, model="a")
    two, _ = use_engine(engine, model="b")
    three, _ = use_engine(engine, model="a")
    two.close()
    assert isinstance(next(found for found in three if not isinstance(found, str)), Live)
    one.close()
    three.close()


def test_engine_holds_the_gpu_while_it_is_open():
    engine = EnginePool(on_gpu=True)
    one, _ = use_engine(engine, gpu_layers=-1)
    assert gpu.lock_holder() == "the app"
    one.close()
    assert gpu.lock_holder() == "the app", "the next reply needs it again"
    engine.close()
    assert gpu.lock_holder() is None
    two, found = use_engine(engine, gpu_layers=0)
    assert isinstance(found, Live), "the CPU needs no lock"
    assert gpu.lock_holder() is None
    two.close()


def test_app_waits_while_a_run_has_the_gpu(monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.02)
    engine = EnginePool(on_gpu=True)
    with gpu.gpu_lock("run night, process 7", print):
        one, said = use_engine(engine, gpu_layers=-1)
        assert said == "the GPU is used by, or reserved for, run night, process 7"
        assert engine.live is None
    assert isinstance(next(found for found in one if not isinstance(found, str)), Live)
    one.close()
    engine.close()


def test_waiting_for_the_gpu_blocks_only_gpu_callers(monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.02)
    engine, layers = EnginePool(on_gpu=True), {"gpu_layers": -1}
    with gpu.gpu_lock("run night", print):
        waits = engine.using(lambda: ScriptedSpec(factory="a", **layers))
        assert next(waits) == "the GPU is used by, or reserved for, run night"
        passes, found = use_engine(engine, gpu_layers=0)
        assert isinstance(found, Live)
        passes.close()
        layers["gpu_layers"] = 0
        assert isinstance(next(one for one in waits if not isinstance(one, str)), Live), (
            "a caller that changes to the CPU need not ask again"
        )
        waits.close()
    engine.close()


def test_full_queue_is_an_error():
    engine = EnginePool(on_gpu=False, max_waiting=1)
    one, _ = use_engine(engine, model="a")
    two, _ = use_engine(engine, model="b")
    with pytest.raises(EngineError, match="1 callers wait already"):
        use_engine(engine, model="b")
    two.close()
    one.close()


def test_app_releases_the_gpu_once_no_reply_is_under_way(monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.02)
    engine, had = EnginePool(on_gpu=True), threading.Event()
    one, live = use_engine(engine, gpu_layers=-1)

    def run() -> None:
        with gpu.gpu_lock("run night", lambda words: None):
            had.set()
            time.sleep(0.2)

    thread = threading.Thread(target=run)
    thread.start()
    while not gpu.is_wanted():
        time.sleep(0.01)
    two, said = use_engine(engine, gpu_layers=-1)
    assert said == "the GPU is used by, or reserved for, run night", "no new reply starts"
    time.sleep(0.1)
    assert (had.is_set(), live.state) == (False, "not started"), "a reply under way may end"
    one.close()
    assert had.wait(10)
    assert live.state == "closed"
    assert isinstance(next(found for found in two if not isinstance(found, str)), Live), (
        "the app gets the GPU back"
    )
    thread.join()
    two.close()
    engine.close()


def test_endless_reply_is_ended_after_a_while(monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.02)
    monkeypatch.setattr(engine_pool, "GRACE", 0.2)
    engine, why = EnginePool(on_gpu=True), []
    one, live = use_engine(engine, gpu_layers=-1)
    monkeypatch.setattr(
        live, "close", lambda words, close=live.close: (why.append(words), close(words))
    )
    with gpu.gpu_lock("run night", lambda words: None):
        assert live.state == "closed"
    one.close()
    assert why == ["a run has taken the GPU: ask again when it is done, or answer on the CPU"], (
        "with the reason"
    )


def test_lock_that_cannot_be_made_says_what_to_do(monkeypatch, tmp_path):
    (tmp_path / "home").write_text("a file")
    monkeypatch.setattr(gpu, "FOLDER", tmp_path / "home" / "locks")
    with pytest.raises(UserError, match="it says who has the GPU: make it writable, or set HOME"):
        gpu.lock_holder()


def test_commands_take_the_gpu_if_there_is_one(monkeypatch, tmp_path):
    from selfreward_lite.cli import output

    monkeypatch.setattr(output, "list_gpus", list)
    with output.hold_gpu("run mine"):
        assert gpu.lock_holder() is None
    monkeypatch.setattr(output, "list_gpus", lambda: ["a GPU"])
    with output.hold_gpu("run mine"):
        assert gpu.lock_holder().startswith("run mine, process ")
    assert not list(Path(tmp_path).glob("*.sqlite"))


def test_holder_without_a_name_yet_is_waited_for(tmp_path):
    """A lock may be read between being taken and being written."""
    handle = os.open(tmp_path / "x.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    threading.Timer(0.1, os.write, (handle, b"late\n")).start()
    assert locks.holder(tmp_path / "x.lock") == "late"
    os.close(handle)
    assert locks.holder(tmp_path / "x.lock") is None
