"""Odd machines: locks that are removed, files that are held, disks without room, odd starts."""

import errno
import fcntl
import os
import re
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from error_text import one_line
from repository import ROOT
from typer.main import get_command

from selfreward_lite import config
from selfreward_lite.cli import advice
from selfreward_lite.cli import export as cli_export
from selfreward_lite.cli.main import app
from selfreward_lite.cli.output import write_file, writing
from selfreward_lite.data import database
from selfreward_lite.data.records import Outcome
from selfreward_lite.data.store import Store
from selfreward_lite.models import quantize
from selfreward_lite.run.runtime import Runtime
from selfreward_lite.system import locks
from selfreward_lite.system.errors import ExportError, SelfRewardError, UserError
from selfreward_lite.system.processes import describe_exit
from selfreward_lite.training.worker import TaskFailed, TorchWorker

# -- locks ----------


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.rename(f"{path}.old")])
def test_run_whose_lock_was_removed_has_one_writer(store, change):
    lock = store.folder / "run.lock"
    change(lock)
    with pytest.raises(UserError, match="another process is writing .* run.lock was removed") as e:
        Store.write(store.folder)
    one_line(e)
    with Store.read(store.folder) as reader:
        assert reader.writer(store.folder) is None
    store.commit(0, "ranked", "a", Outcome(()))
    assert Store.writer(store.folder) == os.getpid(), "the lock is there again"
    lock.unlink()
    lock.mkdir()
    with pytest.raises(UserError, match=r"run.lock is a folder: remove it"):
        Store.write(store.folder)
    lock.rmdir()
    store.close()
    Store.write(store.folder).close()


def test_first_writer_ends_where_the_drive_locks_no_folders(tmp_path, monkeypatch):
    """As network drives do: there a removed lock lets a second writer in."""
    lock = fcntl.flock

    def refuse_folders(handle: int, kind: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        lock(handle, kind)

    monkeypatch.setattr(fcntl, "flock", refuse_folders)
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    with Store.write(tmp_path) as first:
        first.begin_stage(0, "ranked", 1)
        (tmp_path / "run.lock").unlink()
        second = locks.take(tmp_path / "run.lock", "1")
        with pytest.raises(UserError, match="run.lock was removed .* so this one ends") as e:
            first.commit(0, "ranked", "a", Outcome(()))
        one_line(e)
        locks.release(second)
        first.commit(0, "ranked", "a", Outcome(()))


@pytest.mark.parametrize("text", ["", "a backup", f"{os.getppid()}", "999999999"])
def test_holder_of_a_lock_is_named_only_if_it_has_it(tmp_path, monkeypatch, text):
    """Another program locks the file; the number in it is of a run before."""
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    Store.write(tmp_path).close()
    holder = os.open(tmp_path / "run.lock", os.O_RDWR | os.O_TRUNC)
    os.write(holder, text.encode())
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(UserError, match=r"^another program, which holds run.lock, is writing") as e:
        Store.write(tmp_path)
    assert str(tmp_path / "run.lock") in one_line(e)
    os.close(holder)


def test_records_that_another_program_holds_are_one_line(store, monkeypatch):
    """A database browser, or a backup; `status` reads, a run writes."""
    monkeypatch.setattr(database, "PATIENCE", 0.05)
    folder, says = store.folder, "run.sqlite: another program holds it .* close that program"
    store._db.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(folder / "run.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match=says):
        store.commit(0, "ranked", "a", Outcome(()))
    other.execute("ROLLBACK")
    store.commit(0, "ranked", "a", Outcome(()))
    store.close()
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    for start in (Store.read, Store.write):
        with pytest.raises(UserError, match=says) as e:
            start(folder)
        one_line(e)
    other.close()
    with Store.read(folder) as again:
        assert again.done_items(0, "ranked") == {"a"}


# -- children that fail ----------


class FailingWorker:
    """Fails each task as a child does; `before` is done to the folder of its log."""

    def __init__(self, line: str, before: Callable[[Path], object] = lambda folder: None) -> None:
        self.line, self.before = line, before

    def do(self, task: str, log: Path, *_: object, **__: object) -> None:
        self.before(log.parent)
        raise TaskFailed(self.line)


def fail_export(folder: Path, worker: FailingWorker) -> SelfRewardError:
    folder.mkdir(exist_ok=True)
    with pytest.raises(SelfRewardError) as e:
        Runtime(worker).export_base(folder, folder / "base.gguf", config.load("tiny").model)
    one_line(e)
    return e.value


def test_log_is_named_only_where_it_says_something(tmp_path):
    log = tmp_path / "base.log"
    assert "see" not in str(fail_export(tmp_path, FailingWorker("it ended")))
    said = fail_export(tmp_path, FailingWorker("it ended", lambda _: log.touch()))
    assert "see" not in str(said)
    said = fail_export(tmp_path, FailingWorker("it ended", lambda _: log.write_text("why")))
    assert f"it ended (see {log})" in str(said)
    assert said.exit_code == 1


def test_full_disk_of_a_child_has_advice_as_any_other(tmp_path, monkeypatch):
    worker = FailingWorker("OSError: [Errno 28] No space left on device: 'base.log'")
    said = fail_export(tmp_path, worker)
    assert "MB free. What was committed is kept: free space, and give the same" in str(said)
    assert said.exit_code == 2
    full = os.statvfs_result([4096, 4096, 1000, 900, 900, 100, 0, 0, 0, 255])
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    said = fail_export(tmp_path, worker)
    assert "has 3.7 MB free, and no more files. What was committed is kept: remove" in str(said)


def test_full_disk_of_an_exporting_command_has_the_same_advice(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    failed = FailingWorker("OSError: [Errno 28] No space left on device")
    monkeypatch.setattr(TorchWorker, "_open", lambda self: None)
    monkeypatch.setattr(TorchWorker, "do", lambda self, *all_, **named: failed.do(*all_, **named))
    with pytest.raises(UserError, match=rf"the disk of {folder} has .* free space, and give the"):
        cli_export._work("quantize", out=folder / "small.gguf")
    with pytest.raises(UserError, match="free space, and give the same command again"):
        cli_export._work("check")
    failed.line = "the source is no GGUF"
    with pytest.raises(ExportError, match="the source is no GGUF"):
        cli_export._work("quantize", out=folder / "small.gguf")


def test_folder_that_is_removed_under_a_child_is_one_line(tmp_path):
    worker = FailingWorker("FileNotFoundError: base.log", shutil.rmtree)
    said = fail_export(tmp_path / "base", worker)
    assert "base was removed while this wrote into it" in str(said)
    assert "give the same command again" in str(said)
    assert said.exit_code == 2
    worker.do = lambda *_, **__: shutil.rmtree(tmp_path / "base")
    assert "base was removed while" in str(fail_export(tmp_path / "base", worker))


def test_limit_of_cpu_time_is_named(monkeypatch):
    assert "`ulimit -t`" in describe_exit(-signal.SIGXCPU)
    assert "memory" not in describe_exit(-signal.SIGXCPU)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, 0))
    assert describe_exit(-signal.SIGKILL).endswith("how a system short of memory ends processes")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, 20))
    assert "(`ulimit -t`) ends processes: raise it, and" in describe_exit(-signal.SIGKILL)


# -- places that cannot be written ----------


def test_full_disk_leaves_the_old_report(tmp_path, monkeypatch):
    write_file(tmp_path / "page.html", "old")
    write = Path.write_bytes

    def fill(path: Path, content: bytes) -> None:
        write(path, content[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fill)
    for name in ("page.html", "new.html"):
        with pytest.raises(UserError, match=f"{name}: cannot be written .No space left") as e:
            write_file(tmp_path / name, "newer")
        one_line(e)
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "old"


def test_export_that_does_not_fit_names_its_target_and_leaves_nothing(tmp_path):
    source = tmp_path / "run" / "adapter.gguf"
    out = tmp_path / "full" / "tiny-M0-adapter"
    code = errno.ENOSPC
    says = f"{out}: cannot be written .No.*; free space there"
    with pytest.raises(UserError, match=says) as e, writing(out):
        out.mkdir(parents=True)
        (out / "adapter_config.json").touch()
        raise OSError(code, os.strerror(code), str(source), None, str(out / source.name))
    one_line(e)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(UserError), writing(out):
        raise OSError(code, os.strerror(code))
    assert out.exists(), "it was there before"
    with pytest.raises(FileNotFoundError), writing(out):
        source.read_bytes()  # is no fault of --out
    named = OSError(code, os.strerror(code), str(source), None, "/bk/adapter.gguf")
    assert (advice.explain(named) or "").startswith("/bk/adapter.gguf: No space left")


@pytest.mark.parametrize("words", [["adapter"], ["pairs"], ["merged"], ["base"]])
def test_every_export_to_a_place_that_cannot_be_made_is_one_line(store, monkeypatch, words):
    monkeypatch.setattr(cli_export.quantize, "estimate", lambda *_: quantize.Estimate(1, 1.0, 1))
    monkeypatch.setattr(cli_export.quantize, "count_weights", lambda _: 1)
    monkeypatch.setattr(cli_export, "check_disk", lambda *_: None)
    monkeypatch.setattr(cli_export.Store, "model", lambda *_: (0, store.folder / "M0"))
    monkeypatch.setattr(cli_export.model_card, "write_adapter", lambda *given: given[2].mkdir())
    monkeypatch.setattr(cli_export.model_card, "write_pairs", lambda *given: given[1].mkdir())
    options = ["--name", "mine", "--runs-dir", str(store.folder.parent), "--out", "/proc/nope"]
    ended = CliRunner().invoke(get_command(app), ["export", *words, *options])
    assert isinstance(ended.exception, UserError), ended.exception
    assert re.match("/proc/nope.*: cannot be written .*; give another --out", str(ended.exception))


# -- how it is started ----------


@pytest.mark.parametrize("name", ["json", "typer", "numpy", "pydantic"])
def test_file_that_hides_a_package_is_named(tmp_path, name):
    (tmp_path / f"{name}.py").write_text("mine = 1\n")
    ended = subprocess.run(
        [sys.executable, "-m", "selfreward_lite", "status"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.stderr.startswith(f"rename {tmp_path}/{name}.py: it hides a package"), ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.returncode == 2
