"""Odd machines: no home, quotas, proxies, names that are no UTF-8, two users, closed output."""

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from error_text import one_line
from huggingface_hub import constants
from machines import machine, said
from repository import ROOT

from selfreward_lite.app import jobs
from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.cli.output import write_file
from selfreward_lite.config import load
from selfreward_lite.data import hub, task_sets
from selfreward_lite.data.store import Store
from selfreward_lite.engine.api import SPEC, LlamaSpec
from selfreward_lite.report import status
from selfreward_lite.run import prepare
from selfreward_lite.system import cores, gpu, proxies
from selfreward_lite.system.cores import count_cores
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.processes import child_environment

LATIN1 = "caf\udce9"  # as Python reads the bytes b"caf\xe9" of a file name
STRANGER = 54321  # a user id without a name


# -- CPU time ----------


def make_groups(folder: Path, files: dict[str, str], membership: str) -> tuple[Path, Path]:
    """Control groups as Linux shows them: a folder for /sys/fs/cgroup, a file for membership."""
    for name, text in files.items():
        path = folder / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "membership").write_text(membership)
    return folder / "groups", folder / "membership"


@pytest.mark.parametrize(
    ("expected", "membership", "files"),
    [
        (8, "0::/\n", {}),
        (8, "0::/\n", {"cpu.max": "max 100000\n"}),
        (3, "0::/\n", {"cpu.max": "300000 100000\n"}),
        (2, "0::/\n", {"cpu.max": "150000 100000\n"}),
        (1, "0::/\n", {"cpu.max": "5000 100000\n"}),
        (8, "0::/\n", {"cpu.max": "9900000 100000\n"}),
        (8, "0::/\n", {"cpu.max": "garbled"}),
        (2, "0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}),
        (2, "0::/docker/1f\n", {"cpu.max": "200000 100000"}),
        (2, "4:memory:/x\n3:cpu,cpuacct:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "40000"}),
        (8, "3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1"}),
        (2, "3:cpuacct,cpu:/x\n", {"cpu/cpu.cfs_quota_us": "40000"}),
        (8, "3:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "40000"}),
    ],
)
def test_threads_follow_the_quota(tmp_path, monkeypatch, expected, membership, files):
    monkeypatch.setattr(cores, "_count_mask", lambda: 8)
    periods = {name.replace("quota", "period"): "20000" for name in files if "quota" in name}
    groups = make_groups(tmp_path, {**files, **periods}, membership)
    assert count_cores(*groups) == expected
    limit = {} if expected == 8 else {"OMP_NUM_THREADS": str(expected)}
    assert cores.thread_limit(*groups) == limit


def test_without_proc_the_mask_counts(tmp_path):
    assert count_cores(tmp_path, tmp_path / "none") == cores._count_mask()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone has a mask")
def test_threads_follow_the_mask():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert count_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_children_keep_to_the_quota_unless_the_user_says_more(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "_count_mask", lambda: 8)
    monkeypatch.setattr(cores, "_find_quota", lambda *_: 1.5)
    assert child_environment()["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert child_environment()["OMP_NUM_THREADS"] == "5"


# -- home ----------


@pytest.fixture
def homeless(monkeypatch):
    """Neither HOME nor the list of users names a home."""

    def refuse(user: int) -> None:
        raise KeyError(user)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", refuse)


def test_who_has_no_home_is_told_where_one_is_needed(homeless, monkeypatch):
    monkeypatch.setattr(gpu, "FOLDER", None)
    with pytest.raises(UserError, match="no home, where it says who has the GPU: set HOME"):
        gpu.lock_holder()
    monkeypatch.setattr(constants, "HF_HOME", "~/.cache/huggingface")  # what the library has then
    with pytest.raises(UserError, match="set HOME, or HF_HOME to a folder"):
        hub.find_local("owner/name", "model")


def test_home_that_cannot_be_written_is_one_line(monkeypatch):
    monkeypatch.setattr(gpu, "FOLDER", None)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    with pytest.raises(UserError, match="/proc/nowhere/.cache/selfreward_lite: .* or set HOME"):
        gpu.lock_holder()
    with (
        pytest.raises(UserError, match="/proc/nowhere: cannot be made .* set HF_HOME to a folder"),
        hub.lock(Path("/proc/nowhere/model"), "busy"),
    ):
        pass


@pytest.mark.parametrize("text", ["~nobody-has-this-name/x", "~nobody-has-this-name"])
def test_home_of_nobody_is_one_line(text):
    with pytest.raises(UserError, match="there is no such home folder") as e:
        hub.find_local(text, "dataset")
    assert text in one_line(e)
    settings = load("tiny").with_values("prompts", file=text)
    with pytest.raises(UserError, match="there is no such home folder"):
        prepare._make_absolute(settings)


# -- proxies ----------


@pytest.fixture
def no_proxies(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setitem(sys.modules, "socksio", None)  # as where it is not installed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9"),
        ("all_proxy", "socks5h://127.0.0.1:9"),
        ("HTTPS_PROXY", "no such://thing"),
        ("HTTP_PROXY", "ftp://127.0.0.1:9"),
        ("https_proxy", "http://127.0.0.1:port"),
    ],
)
def test_proxy_that_cannot_be_used_is_one_line(no_proxies, monkeypatch, name, value):
    assert proxies.find_request_fault() is None
    monkeypatch.setenv(name, value)
    fault = proxies.find_request_fault()
    assert fault is not None
    with (
        pytest.raises(UserError, match=r"the hub cannot be reached: the proxy .*HTTPS_PROXY") as e,
        hub.hub_errors(hub.Repository("owner/name", None)),
    ):
        pytest.fail("it was asked all the same")
    one_line(e)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    found, file = task_sets.SETS["gsm8k"], task_sets.SETS["gsm8k"].files[0]
    with (
        pytest.raises(UserError, match="the proxy in the environment cannot be used"),
        task_sets._explain_errors(found, file),
    ):
        pytest.fail("it was asked all the same")
    finding = said(machine(request_fault=fault))["model hub"]
    assert (finding.state, finding.fix) == ("note", proxies.ADVICE)
    assert finding.words.startswith("the proxy in the environment cannot be used (")


def test_password_of_a_proxy_is_not_shown(no_proxies, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "ftp://me:hunter2@127.0.0.1:9")
    assert "hunter2" not in str(proxies.find_request_fault())


def test_proxies_are_put_back(no_proxies, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "here")
    with pytest.raises(ZeroDivisionError), proxies.without_proxies():
        assert not {"ALL_PROXY", "no_proxy"} & set(os.environ)
        raise ZeroDivisionError
    assert (os.environ["ALL_PROXY"], os.environ["no_proxy"]) == ("http://127.0.0.1:9", "here")


# -- names ----------


def test_error_with_an_odd_name_is_one_line_of_letters(tmp_path):
    with pytest.raises(UserError) as e:
        Store.read(tmp_path / f"a\n{LATIN1}\x1b[31m")
    assert r"a caf\udce9\x1b[31m; start one" in one_line(e)
    one_line(e).encode()


def test_page_may_name_a_folder_that_is_no_utf8(tmp_path):
    write_file(tmp_path / LATIN1 / "page.html", f"<h1>{LATIN1} é</h1>")
    assert (tmp_path / LATIN1 / "page.html").read_text("utf-8") == r"<h1>caf\udce9 é</h1>"


def test_page_that_cannot_be_written_is_one_line():
    with pytest.raises(UserError, match="/proc/nowhere/x: cannot be written .* another --out"):
        write_file(Path("/proc/nowhere/x"), "")


def test_engine_is_told_of_a_model_in_a_folder_that_is_no_utf8():
    spec = LlamaSpec(model=Path("/", LATIN1, "base.gguf"))
    line = json.dumps(spec.model_dump(mode="json"))
    assert SPEC.validate_python(json.loads(line)) == spec
    assert os.fsencode(spec.model) == b"/caf\xe9/base.gguf"


def test_list_of_downloads_in_a_folder_that_is_no_utf8(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / LATIN1))
    done = hub._Download("model", "owner/name", "1" * 40, ["main"], str(tmp_path / LATIN1), {})
    hub.home().mkdir(parents=True)
    monkeypatch.setattr(hub, "_list_files", lambda at, kind: (at, tmp_path / LATIN1, []))
    hub._download(hub.Repository("owner/name", "1" * 40), "model", lambda *_: None)
    (listed,) = hub._read_ledger()
    assert (listed.folder, listed.commit) == (done.folder, done.commit)


def test_runs_in_a_folder_named_like_an_address(tmp_path, monkeypatch):
    """A relative path that begins with "file:" is no address of SQLite's."""
    monkeypatch.chdir(tmp_path)
    with Store.write(Path("file:runs?mode=memory") / "mine") as store:
        store.state("run", "seed 0")
    with Store.read(Path("file:runs?mode=memory") / "mine") as store:
        assert store.id_namespace == "seed 0"
    assert [path.name for path in tmp_path.iterdir()] == ["file:runs?mode=memory"]


@pytest.mark.parametrize("target", ["runs", "nothing"])
def test_links_that_lead_nowhere_are_one_line(tmp_path, target):
    (tmp_path / "runs").symlink_to(tmp_path / target)
    with pytest.raises(UserError, match="cannot be written .* give another --runs-dir") as e:
        Store.write(tmp_path / "runs" / "mine")
    one_line(e)


def test_linked_run_is_the_run(tmp_path):
    with Store.write(tmp_path / "mine") as store:
        store.state("run", "seed 0")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with Store.write(tmp_path / "link") as store:
        with pytest.raises(UserError, match="is writing this run"):
            Store.write(tmp_path / "mine")
        assert store.id_namespace == "seed 0"


# -- two users ----------


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can enter; pytest's own are private."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    subprocess.run(["chmod", "-R", "u+rwX", folder], check=True)
    shutil.rmtree(folder)


def as_stranger(work: Callable[[], object]) -> str:
    """What `work` returns to another user, or its UserError, as text.

    Where this is not root, the same user does it: then only what was forbidden to all is.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(STRANGER, STRANGER, STRANGER)
                os.setresuid(STRANGER, STRANGER, STRANGER)
            answer = str(work())
        except UserError as error:
            answer = str(error)
        except BaseException as error:  # noqa: BLE001 - the parent's test must see it
            answer = f"not a line for users: {error!r}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answered:
        answer = answered.read()
    os.waitpid(pid, 0)
    return answer


def read_fact(folder: Path) -> object:
    with Store.read(folder) as store:
        return store.fact("count")


def test_another_user_reads_a_run_while_it_is_written(shared):
    folder = shared / "mine"
    with Store.write(folder) as store:
        for count in range(3):
            store.state("count", count)
            folder.chmod(0o555)
            assert as_stranger(lambda: read_fact(folder)) == str(count)
            folder.chmod(0o755)
    folder.chmod(0o555)
    assert as_stranger(lambda: read_fact(folder)) == "2"


def test_another_user_reads_what_a_killed_writer_left(shared):
    folder, copy = shared / "mine", shared / "copy"
    with Store.write(folder) as store:
        store.state("count", 7)
        shutil.copytree(folder, copy)  # with the log, which holds the fact
    copy.chmod(0o555)
    assert as_stranger(lambda: read_fact(copy)) == "7"


def test_log_without_its_index_is_one_line_where_nothing_can_be_written(shared):
    """As on a read-only drive: SQLite cannot make the index that it needs to read the log."""
    folder, copy = shared / "mine", shared / "copy"
    with Store.write(folder) as store:
        store.state("count", 7)
        shutil.copytree(folder, copy)
    (copy / "run.sqlite-shm").unlink()
    copy.chmod(0o555)
    said = as_stranger(lambda: read_fact(copy))
    assert said.startswith(f"{copy}: its last records are in run.sqlite-wal, which")
    copy.chmod(0o755)
    assert read_fact(copy) == 7


@pytest.mark.parametrize("private", ["run.sqlite", ".", "run.lock"])
def test_private_run_of_another_user_is_one_line(shared, private):
    folder = shared / "mine"
    Store.write(folder).close()
    (folder / private).chmod(0)
    said = as_stranger(lambda: status.read_status(folder))
    assert "you may not read it; ask its owner to let you, as with `chmod -R a+rX" in said
    if private != "run.lock":
        assert "you may not read it" in as_stranger(lambda: Store.read(folder))


def test_run_of_another_user_is_not_continued(shared):
    folder = shared / "mine"
    Store.write(folder).close()
    for path in (*folder.iterdir(), folder):
        path.chmod(path.stat().st_mode & ~0o222)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert as_stranger(lambda: Store.write(folder)) == (
        f"{folder}: cannot be written (Permission denied); give another --runs-dir"
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_app_in_a_folder_of_another_user_says_where_it_may_write(shared):
    (shared / "runs").mkdir()
    (shared / "runs").chmod(0o555)
    request = jobs.RunRequest("mine")
    said = as_stranger(lambda: jobs.start_run(shared / "runs", request, shared))
    assert "mine.log: cannot be written (Permission denied); start the app with a" in said
    said = as_stranger(lambda: RunLibrary(shared / "runs").models(TINY))
    assert said.startswith(f"{TINY} cannot be made in {shared / 'runs'}")


# -- input and output, where it is started ----------


def run_shell(line: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell, in which $RUN is the command line's beginning."""
    own = {"PYTHONPATH": str(ROOT), "RUN": f"{sys.executable} -m selfreward_lite"}
    return subprocess.run(
        ["bash", "-c", line],
        cwd=cwd,
        env={**os.environ, **own, **environment},
        capture_output=True,
        text=True,
        errors="replace",
    )


def test_full_output_is_one_line_and_no_more(tmp_path):
    Store.write(tmp_path / "mine").close()
    ended = run_shell(f"$RUN verify --name mine --runs-dir {tmp_path} > /dev/full")
    assert ended.returncode == 2
    assert ended.stderr == (
        "the disk or the output: No space left on device. What was committed is kept: free space "
        "and give the same command again.\n"
    )


def test_closed_output_harms_no_file_of_the_run(tmp_path):
    """The next file that is opened would be number 1, and get what is printed."""
    with Store.write(tmp_path / "mine") as store:
        store.state("count", 1)
    ended = run_shell(f"$RUN prune --name mine --runs-dir {tmp_path} <&- >&- 2>&-; echo $?")
    assert ended.stdout == "0\n"
    assert read_fact(tmp_path / "mine") == 1
    assert (tmp_path / "mine" / "run.lock").read_text().strip().isdigit()


@pytest.mark.slow
def test_letters_that_the_terminal_lacks_are_escaped(tmp_path):
    ended = run_shell("$RUN export --help", PYTHONIOENCODING="ascii", COLUMNS="80")
    assert ended.returncode == 0, ended.stderr
    assert "pairs" in ended.stdout
    ended = run_shell("$RUN status --name né", PYTHONIOENCODING="ascii")
    assert ended.stderr.startswith(r"no run in runs/n\xe9; start one")


@pytest.mark.parametrize(
    "columns",
    ["0", *(pytest.param(one, marks=pytest.mark.slow) for one in ("x", "", "-1", "99999999"))],
)
def test_errors_are_printed_at_any_width(tmp_path, columns):
    ended = run_shell("$RUN status", cwd=tmp_path, COLUMNS=columns, LINES=columns, TERM="dumb")
    assert ended.returncode == 2
    assert ended.stderr == (
        "no run in runs/tiny; start one with `python -m selfreward_lite run --name tiny`\n"
    )


def test_name_is_printed_as_it_is(tmp_path):
    ended = run_shell("$RUN status --name a:fire:[b]", cwd=tmp_path)
    assert ended.stderr.startswith("no run in runs/a:fire:[b]; start one")


def test_folder_that_is_gone_is_one_line(tmp_path):
    (tmp_path / "gone").mkdir()
    ended = run_shell('rmdir "$PWD"; $RUN status', cwd=tmp_path / "gone")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("the folder in which this was started is gone")
    assert "Traceback" not in ended.stderr


def test_command_needs_no_home_no_name_and_no_path(tmp_path):
    """Nothing at the import asks for a home; the user of this process has no name either."""
    (tmp_path / "sitecustomize.py").write_text(
        "import pwd\ndef getpwuid(user):\n    raise KeyError(user)\npwd.getpwuid = getpwuid\n"
    )
    line = "unset HOME USER LOGNAME PATH; $RUN plan --runs-dir $RUNS"
    ended = run_shell(
        line, PYTHONPATH=f"{tmp_path}:{ROOT}", RUNS=str(tmp_path), COLUMNS="0", TERM="dumb"
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["preset"] == "tiny"
    assert not (tmp_path / "~").exists()
    assert not (ROOT / "~").exists()
