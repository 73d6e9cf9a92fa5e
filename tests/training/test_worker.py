"""The child that trains and exports: tasks that fail, die, or are interrupted."""

import os
import platform
import signal
import threading
import time
from pathlib import Path

import pytest

from selfreward_lite.training import worker as worker_module
from selfreward_lite.training.worker import TaskFailed, TorchWorker


@pytest.fixture(scope="module")
def worker():
    made = TorchWorker(bare=True)
    yield made
    made.close()


def missing_model(folder: Path) -> dict:
    return {
        "model_dir": str(folder / "unique-name"),
        "out": str(folder / "base.gguf"),
        "weights": "nf4",
        "dtype": "f32",
    }


@pytest.mark.parametrize(
    ("release", "settings"),
    [
        ("5.15.167.4-microsoft-standard-WSL2", None),
        ("4.4.0-19041-Microsoft", None),
        ("6.8.0-48-generic", "expandable_segments:True"),
    ],
)
def test_windows_gets_no_expandable_segments(tmp_path, monkeypatch, release, settings):
    """In WSL2 torch's first allocation would fail. Training, export and `bench card` start here."""
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setattr(platform, "release", lambda: release)
    started = []
    monkeypatch.setattr(worker_module, "JsonProcess", lambda *_, env, **__: started.append(env))
    TorchWorker()
    assert started[0].get("PYTORCH_ALLOC_CONF") == settings
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:512")
    TorchWorker()
    assert started[1]["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:512", "what a user set stays"


def test_failed_task_leaves_its_last_line_and_the_child_works(worker, tmp_path):
    for _ in range(2):  # the second time, so that the first failure did not break the child
        with pytest.raises(TaskFailed, match="unique-name"):
            worker.do("export_base", tmp_path / "log", **missing_model(tmp_path))
    with pytest.raises(TaskFailed, match="KeyError"):
        worker.do("dance", tmp_path / "log")
    assert "Traceback" in (tmp_path / "log").read_text()


def test_bad_arguments_are_named(worker, tmp_path):
    wrong = {**missing_model(tmp_path), "dtype": "f8"}
    with pytest.raises(TaskFailed, match="dtype: Input should be"):
        worker.do("export_base", tmp_path / "log", **wrong)


def test_a_library_that_prints_while_it_is_imported_hangs_nobody(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text('print("a banner of a library")')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = TorchWorker(bare=True)
    with pytest.raises(TaskFailed, match="unique-name"):
        worker.do("export_base", tmp_path / "log", **missing_model(tmp_path))
    worker.close()


def test_killed_child_is_an_error_and_is_replaced(tmp_path):
    worker = TorchWorker(bare=True)
    os.kill(worker._child.pid, signal.SIGKILL)
    with pytest.raises(TaskFailed, match="ended by SIGKILL"):
        worker.do("export_base", tmp_path / "log", **missing_model(tmp_path))
    with pytest.raises(TaskFailed, match="unique-name"):
        worker.do("export_base", tmp_path / "log", **missing_model(tmp_path))
    worker.close()


def test_killed_task_is_reported_by_its_signal(worker, tmp_path):
    """As the system ends processes for their memory: in the middle, after logged progress."""
    os.mkfifo(tmp_path / "config.json")  # a task that waits for ever for a model's settings

    def kill() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            tasks = descendants(worker._child.pid)
            if tasks and log.exists():
                log.write_text("{'loss': '0.101'}\n")
                os.kill(tasks[0], signal.SIGKILL)
                return
            time.sleep(0.05)

    log = tmp_path / "log"
    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(
        TaskFailed,
        match=r"ended by SIGKILL, which is how a system short of memory.*last line: .*0\.101",
    ):
        worker.do("export_base", log, **{**missing_model(tmp_path), "model_dir": str(tmp_path)})
    killer.join()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_nobody_is_left_when_the_parent_is_gone(tmp_path):
    """Parent, child and task are three processes; the first dies by SIGKILL."""
    parent = os.fork()
    if parent == 0:
        os.setsid()
        os.mkfifo(tmp_path / "config.json")  # a task that waits for ever for a model's settings
        TorchWorker(bare=True).do(
            "export_base",
            tmp_path / "log",
            **{**missing_model(tmp_path), "model_dir": str(tmp_path)},
        )
        os._exit(0)
    deadline = time.monotonic() + 60
    family: list[int] = []
    while len(family) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
        family = descendants(parent)
    assert len(family) == 2, "the child and its task were never seen"
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    while any(map(alive, family)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, family))


def descendants(pid: int) -> list[int]:
    children = [
        int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]
    return children + [grandchild for child in children for grandchild in descendants(child)]
