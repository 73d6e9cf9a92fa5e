"""Odd environments: variables, signals and limits that a starter leaves; folders that change."""

import errno
import os
import pty
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from error_text import one_line
from repository import ROOT

from selfreward_lite.app import jobs
from selfreward_lite.cli import advice
from selfreward_lite.cli.output import write_file
from selfreward_lite.data.records import Outcome
from selfreward_lite.data.store import Store
from selfreward_lite.system import cores, locks, proxies, surroundings
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.processes import child_environment, describe_exit


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


# -- folders that change ----------


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


def test_report_does_not_overwrite_records(tmp_path):
    Store.write(tmp_path).close()
    before = (tmp_path / "run.sqlite").read_bytes()
    with pytest.raises(UserError, match=r"run.sqlite holds the records .* another --out"):
        write_file(tmp_path / "run.sqlite", "page")
    assert (tmp_path / "run.sqlite").read_bytes() == before
    write_file(tmp_path / "page.html", "page")
    write_file(tmp_path / "page.html", "newer")
    assert (tmp_path / "page.html").read_text() == "newer"


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
