"""Runs as background processes: started, watched from their folder, stopped, resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import scripted_run

from selfreward_lite import config
from selfreward_lite.app import jobs
from selfreward_lite.app.jobs import RunRequest
from selfreward_lite.data.store import StageRow, Store
from selfreward_lite.report import status
from selfreward_lite.report.status import RunStatus
from selfreward_lite.system.errors import ConfigError, UserError
from selfreward_lite.system.files import write_manifest

# Stands for the command line: writes the run until it is told to end, as the real one does, or
# ends at once with a message.
COMMAND = """#!{python}
import signal, sys, time
sys.path[:0] = {path!r}
from pathlib import Path
import json
from selfreward_lite import config
from selfreward_lite.data.store import Store
arguments = sys.argv[3:]
Path({said!r}).write_text(json.dumps([arguments, str(Path.cwd())]))
runs_dir, name = (arguments[arguments.index(key) + 1] for key in ("--runs-dir", "--name"))
where = Path(runs_dir) / name
if {fails}:
    sys.exit("the disk is full: make room")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
with Store.write(where) as store:
    store.state("settings", config.load("tiny").model_dump(mode="json"))
    store.begin_stage(0, "ranked", 4)
    print("M0 ranked: 0/4", file=sys.stderr, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Have `start_run` start the stand-in; returns its arguments."""

    def write(fails: bool = False):
        said, script = tmp_path / "said.json", tmp_path / "command"
        script.write_text(
            COMMAND.format(
                python=sys.executable,
                path=[str(Path(jobs.__file__).parents[2])],
                said=str(said),
                fails=fails,
            )
        )
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        return lambda: json.loads(said.read_text())

    return write


def ended(folder: Path) -> None:
    deadline = time.monotonic() + 20
    while Store.writer(folder) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert Store.writer(folder) is None


def test_a_run_is_started_watched_and_stopped(tmp_path, command):
    told, runs = command(), tmp_path / "runs"
    assert status.read_status(runs / "mine").state == "new"
    jobs.start_run(
        runs,
        RunRequest("mine", "tiny", iterations=2, hours=0.5, settings=("dpo.beta=0.2",)),
        tmp_path,
    )
    arguments, where = told()
    assert where == str(tmp_path), "relative paths begin where the app was started"
    assert arguments == [
        "run", "--runs-dir", str(runs), "--name", "mine", "--preset", "tiny",
        "--iterations", "2", "--hours", "0.5", "--set", "dpo.beta=0.2",
    ]  # fmt: skip
    deadline = time.monotonic() + 20
    while not jobs.last_log_lines(runs / "mine") and time.monotonic() < deadline:
        time.sleep(0.02)
    view = status.read_status(runs / "mine")
    assert (view.state, view.process, view.candidate) == (
        "running",
        Store.writer(runs / "mine"),
        "M0",
    )
    assert os.getsid(view.process) != os.getsid(0), "Ctrl-C in the app's terminal is not for it"
    with pytest.raises(UserError, match=f"process {view.process} is running mine already"):
        jobs.start_run(runs, RunRequest("mine"), tmp_path)
    assert jobs.last_log_lines(runs / "mine") == ["M0 ranked: 0/4"]
    assert jobs.stop_run(runs / "mine")
    ended(runs / "mine")
    assert status.read_status(runs / "mine").state == "stopped"
    assert not jobs.stop_run(runs / "mine")


def test_an_early_failure_is_reported_at_once(tmp_path, command):
    command(fails=True)
    with pytest.raises(UserError, match="the disk is full: make room"):
        jobs.start_run(tmp_path / "runs", RunRequest("mine"), tmp_path)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (RunRequest("../x"), "cannot name a run"),
        (RunRequest("a/b"), "cannot name a run"),
        (RunRequest(""), "cannot name a run"),
        (RunRequest("x" * 61), "cannot name a run"),
        (RunRequest("x", "huge"), "no preset 'huge'"),
        (RunRequest("x", settings=("dpo.betta=1",)), "no such setting"),
        (RunRequest("x", settings=("dpo.beta",)), "write it as --set key=value"),
        (RunRequest("x", settings=("model.base=/etc",)), "works on the command line only"),
        (
            RunRequest("x", settings=("prompts.file=/etc/passwd",)),
            "works on the command line only",
        ),
        (
            RunRequest("x", settings=("prompts={file='/etc/passwd'}",)),
            "works on the command line only",
        ),
        (
            RunRequest("x", settings=("seed_stage.ranked=owner/name",)),
            "works on the command line only",
        ),
        (
            RunRequest("x", settings=("engine.servers=['http://10.0.0.1:80']",)),
            "names files or servers",
        ),
        (
            RunRequest("x", settings=("engine={servers=['http://10.0.0.1:80']}",)),
            "names files or servers",
        ),
        (RunRequest("x", settings=("engine.shared=/etc",)), "names files or servers"),
    ],
)
def test_a_mistake_starts_nothing(tmp_path, asked, says):
    with pytest.raises((UserError, ConfigError), match=says):
        jobs.start_run(tmp_path / "runs", asked, tmp_path)
    assert not (tmp_path / "runs").exists()


def test_every_setting_that_names_a_file_is_known_as_one():
    """A setting that is a path, or a name on the hub, must not be open to a page."""
    from selfreward_lite.run.prepare import NAMED

    assert {f"{section}.{name}" for section, name, _ in NAMED} <= set(jobs._FILES)


def test_a_view_says_how_far_a_run_is(tmp_path):
    scripted_run.copy(tmp_path / "mine", iterations="1", **{"judge.close": "drop"})
    view = status.read_status(tmp_path / "mine")
    assert (view.state, view.newest, view.iterations, view.preset, view.now) == (
        "finished",
        1,
        1,
        "tiny",
        None,
    )
    judged = next(row for row in view.stages if (row.model, row.stage) == ("M1", "judgments"))
    assert judged.done == judged.total > 0
    assert set(judged.drops) == {"could not be read"}
    with Store.write(tmp_path / "mine"):
        assert status.read_status(tmp_path / "mine").state == "running"


def test_a_training_under_way_is_told_by_its_steps(tmp_path):
    scripted_run.copy(tmp_path / "mine", iterations="0")
    with Store.write(tmp_path / "mine") as store:
        store.begin_stage(1, "training", 1)
        assert status.read_status(tmp_path / "mine").now == StageRow(
            1, "training", 0, 1, 0.0, False, {}
        )
        store.log_training(1, 5, {"loss": 0.6})
        store.measure(1, training_steps=20)
        store.spend(1, "training", 10.0)
        now = status.read_status(tmp_path / "mine").now
    assert (now.done, now.total, now.left) == (5, 21, 32.0)


def test_a_refused_model_is_told_with_its_reasons(tmp_path):
    scripted_run.copy(tmp_path / "mine", iterations="0")
    with Store.write(tmp_path / "mine") as store:
        store.state("settings", {**store.fact("settings"), "iterations": 1})
        store.record_gate(1, "canary", False, "2 hostile responses would be chosen")
        store.record_gate(1, "length", True, "0.98 times as long")
    view = status.read_status(tmp_path / "mine")
    assert (view.state, view.refused, view.may_accept) == (
        "refused",
        {"canary": "2 hostile responses would be chosen"},
        False,
    )
    with Store.write(tmp_path / "mine") as store:
        store.begin_stage(1, "evaluation", 1)
        store.end_stage(1, "evaluation")
        (tmp_path / "mine" / "M1").mkdir()
        write_manifest(tmp_path / "mine" / "M1", {})
    assert status.read_status(tmp_path / "mine").may_accept


def test_a_run_that_is_only_just_begun_is_no_error(tmp_path):
    Store.write(tmp_path / "mine").close()
    assert status.read_status(tmp_path / "mine").state == "new"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.sqlite").touch()
    with pytest.raises(UserError, match="only just being made"):
        status.read_status(tmp_path / "other")


def test_rates_and_what_is_left():
    stage = StageRow(1, "judgments", 30, 120, 10.0, False, {})
    assert (stage.rate, stage.left) == (3.0, 30.0)
    assert StageRow(1, "judgments", 0, 120, 0.0, False, {}).left is None
    assert StageRow(1, "training", 0, 1, 3.0, False, {}).rate is None
    assert StageRow(1, "judgments", 120, 120, 10.0, True, {}).left is None
    assert (
        RunStatus(
            "x", "stopped", stages=(stage, StageRow(1, "battles", 0, 3, 0.0, False, {}))
        ).now.stage
        == "battles"
    )


def test_last_log_lines_of_a_log_of_any_size(tmp_path):
    assert jobs.last_log_lines(tmp_path / "mine") == []
    (tmp_path / "mine.log").write_bytes(
        b"\xff" * 20_000 + b"\n" + b"\n".join(b"line %d" % number for number in range(40))
    )
    assert jobs.last_log_lines(tmp_path / "mine", 3) == ["line 37", "line 38", "line 39"]


@pytest.mark.slow
def test_a_run_goes_on_when_its_starter_is_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from selfreward_lite.app import jobs; "
        "runs = Path(sys.argv[1]); "
        "jobs.start_run(runs, jobs.RunRequest('mine', 'tiny', "
        "settings=('prompts.count=8', 'seed_stage.train_examples=30', "
        "'seed_stage.eval_prompts=6', 'evaluation.prompts=8')), runs.parent); "
        "from selfreward_lite.report import status; "
        "print(status.read_status(runs / 'mine').process, flush=True); time.sleep(99)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "runs"], stdout=subprocess.PIPE, text=True
    )
    process = int(starter.stdout.readline())
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    assert status.read_status(tmp_path / "runs" / "mine").process == process
    deadline = time.monotonic() + 120
    while not status.read_status(tmp_path / "runs" / "mine").stages and time.monotonic() < deadline:
        time.sleep(0.1)
    assert jobs.stop_run(tmp_path / "runs" / "mine")
    ended(tmp_path / "runs" / "mine")
    assert "Interrupted; what was committed is kept." in " ".join(
        jobs.last_log_lines(tmp_path / "runs" / "mine")
    )
    assert config.parse(Store.read(tmp_path / "runs" / "mine").fact("settings")).prompts.count == 8
