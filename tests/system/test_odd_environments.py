"""Odd environments: variables, signals and limits that a starter leaves; folders that change."""

import errno
import fcntl
import os
import pty
import re
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from error_text import one_line
from repository import ROOT
from typer.main import get_command

from selfreward_lite import config
from selfreward_lite.app import jobs
from selfreward_lite.cli import advice
from selfreward_lite.cli import export as cli_export
from selfreward_lite.cli.main import app
from selfreward_lite.cli.output import write_file, writing
from selfreward_lite.data import database
from selfreward_lite.data.records import Outcome
from selfreward_lite.data.store import Store
from selfreward_lite.models import quantize
from selfreward_lite.run.runtime import Runtime
from selfreward_lite.system import cores, locks, proxies, surroundings
from selfreward_lite.system.errors import SelfRewardError, UserError
from selfreward_lite.system.processes import child_environment, describe_exit
from selfreward_lite.training.worker import TaskFailed


def python(
    script: str, before: Callable[[], None] | None = None, **environment: str
) -> subprocess.Popen[str]:
    """A process that runs `script`; `before` is done in it first."""

    def begin() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
        if before is not None:
            before()

    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={**os.environ, **environment},
        preexec_fn=begin,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


# -- variables ----------


def test_variables_of_gradio_do_not_open_the_page():
    ended = run_python(
        "-c",
        "import os, selfreward_lite.app; print(*sorted(x for x in os.environ if 'GRADIO' in x))",
        GRADIO_ALLOWED_PATHS="/etc",
        GRADIO_DEBUG="1",
        GRADIO_DEFAULT_CONCURRENCY_LIMIT="many",
        GRADIO_ROOT_PATH="/models",
        GRADIO_TEMP_DIR="/large",
    )
    assert ended.stdout.split() == [
        *("GRADIO_ANALYTICS_CACHE_FREQUENCY", "GRADIO_ANALYTICS_ENABLED", "GRADIO_ROOT_PATH")
    ]


@pytest.mark.parametrize("name", ["HF_HUB_ETAG_TIMEOUT", "TQDM_MININTERVAL"])
def test_variable_that_must_be_a_number_is_named(monkeypatch, name):
    monkeypatch.setenv(name, "10.5")
    surroundings._check_numbers()
    monkeypatch.setenv(name, "ten")
    with pytest.raises(UserError, match=f"{name}=ten in the environment: .* correct or unset it"):
        surroundings._check_numbers()


def test_letters_of_a_progress_bar_are_no_number(monkeypatch):
    monkeypatch.setenv("TQDM_ASCII", " #")
    surroundings._check_numbers()


def test_figures_need_no_backend_of_a_notebook():
    child = python(
        """
        from selfreward_lite.system.surroundings import check_surroundings
        check_surroundings()
        import matplotlib
        """,
        MPLBACKEND="module://of_another_environment",
    )
    assert child.communicate() == ("", "")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SSL_CERT_FILE", "/nowhere", "certificates .*No such file.* SSL_CERT_FILE=/nowhere; let"),
        ("SSL_CERT_FILE", "/dev/null", "certificates in the environment cannot be used"),
        ("SSLKEYLOGFILE", "/proc/nowhere/x", "SSLKEYLOGFILE=/proc/nowhere/x"),
        ("HF_TOKEN", "hf_ä", "HF_TOKEN in the environment is no token; set it again"),
    ],
)
def test_certificates_or_token_that_cannot_be_used_are_named(monkeypatch, name, value, says):
    for one in [*proxies.CERTIFICATES, *proxies.TOKENS]:
        monkeypatch.delenv(one, raising=False)
    assert proxies.find_request_fault() is None
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says) as e:
        raise UserError(str(proxies.find_request_fault()))
    assert "hf_" not in one_line(e)
    with proxies.without_proxies():
        httpx.Client().close()
    assert os.environ[name] == value


def test_children_belong_to_no_group_of_processes(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("MASTER_OF_MY_OWN", "2")
    found = child_environment()
    assert found["MASTER_OF_MY_OWN"] == "2"
    assert not {"WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR"} & set(found)
    assert not [name for name in found if name.startswith("ACCELERATE_")]


# -- signals ----------

# A command that is under way, and says how it was ended.
UNDER_WAY = """
    import sys, time
    from selfreward_lite.cli import main
    main._catch_signals()
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("an error of the run", file=sys.stderr, flush=True)
        print("ended in order")
"""
ASKING = {signal.SIGTERM, signal.SIGALRM, signal.SIGHUP, signal.SIGINT}


@pytest.mark.parametrize("number", sorted(ASKING))
def test_what_asks_to_end_does_so_although_it_was_held_back(number):
    def hold_back() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)

    child = python(UNDER_WAY, hold_back)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    assert child.communicate()[0] == "ended in order\n"


def test_nohup_is_respected():
    child = python(UNDER_WAY, lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN) and None)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGHUP)
    child.send_signal(signal.SIGTERM)
    assert child.communicate()[0] == "ended in order\n"
    assert child.returncode == 0


def test_command_ends_in_order_when_its_terminal_is_closed():
    ours, terminal = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(UNDER_WAY)],
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
    )
    os.close(terminal)
    assert child.stdout.readline() == "ready\n"
    os.close(ours)  # what is printed there now is an error
    child.send_signal(signal.SIGHUP)
    assert child.communicate()[0] == "ended in order\n"


def test_failed_child_is_noticed_where_the_starter_ignored_children():
    child = python(
        """
        import subprocess
        from selfreward_lite.system.surroundings import check_surroundings
        check_surroundings()
        print(subprocess.run(["false"]).returncode)
        """,
        lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN) and None,
    )
    assert child.communicate() == ("1\n", "")


def test_child_may_be_ended_by_a_signal_without_a_name():
    assert describe_exit(-40) == "it was ended by signal 40"


# -- limits and drives ----------


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.EAGAIN, r"a new process: .*is kept: .*`ulimit -u`"),
        (errno.ENOTCONN, r"/drive/x: .*is kept: its drive is gone: mount it again"),
        (errno.ESTALE, "its drive is gone"),
        (errno.ENOLCK, "give a --runs-dir on a disk of this machine"),
        (errno.EFBIG, "files of this size are not allowed here"),
    ],
)
def test_errors_of_drives_and_limits_have_advice(code, says):
    error = OSError(code, os.strerror(code), "/drive/x")
    with pytest.raises(UserError, match=says) as e:
        raise UserError(advice.explain(error) or "")
    one_line(e)


def test_too_few_threads_are_told_and_bugs_are_not_hidden():
    assert "`ulimit -u`" in (advice.explain(RuntimeError("can't start new thread")) or "")
    assert advice.explain(RuntimeError("another")) is None
    assert advice.explain(OSError(errno.EINVAL, "Invalid argument", "/x")) is None


def test_cores_are_counted_where_a_sandbox_forbids_the_mask(monkeypatch):
    def forbid(_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_getaffinity", forbid)
    assert cores._count_mask() == os.cpu_count()


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


# -- how it is installed ----------


def test_archive_is_refused(tmp_path):
    package = tmp_path / "made" / "selfreward_lite"
    package.mkdir(parents=True)
    for name in ("__init__.py", "__main__.py"):
        shutil.copy(ROOT / "selfreward_lite" / name, package)
    archive = shutil.make_archive(str(tmp_path / "package"), "zip", tmp_path / "made")
    code = "import runpy; runpy.run_module('selfreward_lite', run_name='__main__')"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": archive},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        "selfreward_lite does not run from an archive: unpack it, or install it with pip\n"
    )


@pytest.mark.parametrize("start", [("-m", "selfreward_lite", "status"), (ROOT / "app.py",)])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise ImportError('libstdc++.so.6: no GLIBCXX', name=__name__)", "LD_LIBRARY_PATH"),
        (
            "raise ModuleNotFoundError('none', name=__name__)",
            "the package pydantic_core is missing",
        ),
    ],
)
def test_broken_or_missing_package_is_one_line(tmp_path, start, text, says):
    (tmp_path / "pydantic_core.py").write_text(text)
    ended = run_python(*start, PYTHONPATH=str(tmp_path))
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert says in ended.stderr
    assert "pip install -r requirements.txt" in ended.stderr


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


# -- folders that change ----------


@pytest.fixture
def store(tmp_path):
    with Store.write(tmp_path / "mine") as store:
        store.state("settings", config.load("tiny").model_dump(mode="json"))
        store.begin_stage(0, "ranked", 1)
        yield store


@pytest.mark.parametrize("change", [shutil.rmtree, lambda folder: folder.rename(f"{folder}2")])
def test_folder_that_is_moved_or_removed_ends_the_run(store, change):
    store.commit(0, "ranked", "a", Outcome(()))
    change(store.folder)
    for work in (
        lambda: store.begin_stage(0, "training", 1),
        lambda: store.commit(0, "ranked", "b", Outcome(())),
        lambda: store.end_stage(0, "ranked"),
    ):
        with pytest.raises(UserError, match="was moved or removed .* found now"):
            work()
    store.folder.mkdir()  # another run in its place is not this one
    (store.folder / "run.lock").write_text("1\n")
    with pytest.raises(UserError, match="was moved or removed"):
        store.begin_stage(0, "training", 1)


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


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_models_without_records_are_not_written_over(tmp_path, spoil):
    folder = tmp_path / "mine"
    Store.write(folder).close()
    (folder / "M0").mkdir()
    Store.write(folder).close()  # with its records
    spoil(folder / "run.sqlite")
    with pytest.raises(UserError, match="mine holds M0 and no records: .* from a copy") as e:
        Store.write(folder)
    one_line(e)
    assert not (folder / "run.sqlite-wal").exists(), "it would not fit a file that is put back"
    with pytest.raises(UserError, match=r"emptied, or copied without|no run in"):
        Store.read(folder)


def test_run_of_a_newer_version_is_named(store):
    settings = store.fact("settings")
    store.state("settings", {**settings, "judge": {**settings["judge"], "mood": "kind"}})
    with pytest.raises(
        UserError, match=r"mine was made by another version .*\(judge.mood: no"
    ) as e:
        store.settings()
    one_line(e)


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


def test_report_does_not_overwrite_records(tmp_path):
    Store.write(tmp_path).close()
    before = (tmp_path / "run.sqlite").read_bytes()
    with pytest.raises(UserError, match=r"run.sqlite holds the records .* another --out"):
        write_file(tmp_path / "run.sqlite", "page")
    assert (tmp_path / "run.sqlite").read_bytes() == before
    write_file(tmp_path / "page.html", "page")
    write_file(tmp_path / "page.html", "newer")
    assert (tmp_path / "page.html").read_text() == "newer"


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


# -- containers that share a folder of runs ----------


def test_process_of_another_container_is_not_ended(tmp_path, monkeypatch):
    """Its number is another process's here; the lock is held, as the folder is shared."""
    ended = []
    monkeypatch.setattr(os, "kill", lambda *given: ended.append(given))
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        handle = locks.take(tmp_path / "run.lock", f"{stranger.pid}")
        with pytest.raises(UserError, match="another container or on another machine") as e:
            jobs.stop_run(tmp_path)
        one_line(e)
        assert not ended
        locks.release(handle)
        handle = locks.take(tmp_path / "run.lock", f"{os.getpid()}")
        assert jobs.stop_run(tmp_path)
        assert ended == [(os.getpid(), signal.SIGTERM)]
        locks.release(handle)
    finally:
        monkeypatch.undo()  # else nothing is killed
        stranger.kill()
        stranger.wait()
