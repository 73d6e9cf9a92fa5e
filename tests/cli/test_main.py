"""The command line as a user sees it: one clear line, a documented exit code, JSON last."""

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import call
from scripted_run import SMALL, run
from scripted_runtime import scripted_runtime

from selfreward_lite.cli import main
from selfreward_lite.data.store import Store

ROOT = Path(__file__).parents[2]


def cli(*arguments: str, **settings) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "selfreward_lite", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        **settings,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run(folder / "done")
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "--preset", "huge"), "no preset 'huge'; choose one of"),
        (("run", "--set", "dpo.bet=1"), "dpo.bet: no such setting"),
        (("run", "--set", "dpo.beta"), "write it as --set key=value"),
        (("run", "--set", "dpo.beta=-1"), "dpo.beta=-1: give a number above 0"),
        (("run", "--set", "model.base=nowhere"), "set model.base to a Hugging Face model folder"),
        (("run", "--set", "seed_stage.ranked=nowhere.jsonl"), "no such file"),
        (("run", "--gates", "sometimes"), "--gates"),
        (("run", "--iterations", "-1"), "--iterations"),
        (("status", "--name", "nothing"), "no run in"),
        (("verify", "--name", "nothing"), "no run in"),
        (("accept", "--name", "nothing"), "no run in"),
        (("run", "--prompts", "nowhere.csv"), "nowhere.csv: no such file"),
        (
            ("run", "--set", "model.templates=foo"),
            "model.templates=foo: give 'llama3', 'short' or 'compact'",
        ),
        (
            ("run", "--set", "prompts.attempts=inf"),
            "prompts.attempts=inf: give a finite number",
        ),
        (("run", "--set", "engine.parallel=256"), "more than llama.cpp's 256 sequences"),
        (("run", "--set", "engine.unified=false"), "set engine.context="),
        (
            ("run", "--set", "engine.batch=32", "--set", "engine.parallel=64"),
            "is too small for one token of each of 64 sequences",
        ),
        (("run", "--seed", "4294967296"), "seed=4294967296: give a number below 4294967296"),
        (("run", "--hours", "inf"), "--hours"),
        (("bench", "tiny", "--seeds", "a-b"), "write them as 100-104 or 7,9"),
        (("bench", "tiny", "--set", "dpo.bet=1"), "dpo.bet: no such setting"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(tmp_path, arguments, says):
    ended = call(*arguments, "--runs-dir", str(tmp_path))
    assert ended.returncode == 2, ended.stderr
    assert says in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
    if "--preset" in arguments or "--set" in arguments and "nowhere" not in arguments[-1]:
        assert list(tmp_path.iterdir()) == [], "a mistyped command leaves no folder behind"


def test_a_finished_run_says_so_and_how_to_continue(runs):
    ended = cli("run", "--name", "done", "--runs-dir", str(runs))
    assert ended.returncode == 0
    assert "finished" in ended.stderr
    assert "--iterations 3" in ended.stderr
    document = json.loads(ended.stdout.splitlines()[-1])
    assert [row["iteration"] for row in document["iterations"]] == [0, 1, 2]


def test_status_shows_every_stage_and_what_was_dropped(runs):
    ended = cli("status", "--name", "done", "--runs-dir", str(runs))
    assert ended.returncode == 0
    for word in ("battles", "judgment pairs", "left out"):
        assert word in ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["preset"] == "tiny"


def test_verify_passes_and_finds_a_changed_file(runs):
    good = cli("verify", "--name", "done", "--runs-dir", str(runs))
    assert (good.returncode, json.loads(good.stdout.splitlines()[-1])["faults"]) == (0, 0)
    adapter = runs / "done" / "M1" / "adapter.gguf"
    content = adapter.read_bytes()
    adapter.write_bytes(content[:-1] + b"x")
    bad = cli("verify", "--name", "done", "--runs-dir", str(runs))
    adapter.write_bytes(content)
    assert bad.returncode == 2
    assert "adapter.gguf: differs from its sha256" in bad.stderr


def test_a_second_writer_is_refused(runs):
    with Store.write(runs / "done"):
        ended = cli("run", "--name", "done", "--runs-dir", str(runs))
    assert ended.returncode == 2
    assert "is writing this run" in ended.stderr


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupting_ends_the_run_resumably(tmp_path, stop):
    with subprocess.Popen(
        [sys.executable, "-m", "selfreward_lite", "run", "--runs-dir", str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(stop, signal.SIG_DFL),  # a shell or nohup ignores some
    ) as child:
        try:
            while not (tmp_path / "tiny" / "run.sqlite").exists():
                time.sleep(0.05)
            time.sleep(1.0)
            child.send_signal(stop)
            _, said = child.communicate(timeout=60)
        finally:
            child.kill()
    assert child.returncode == 130
    assert "The same command resumes" in said
    assert "Traceback" not in said
    Store.write(tmp_path / "tiny").close()


def test_a_refusing_gate_ends_with_code_3_and_json_last(tmp_path, chat, monkeypatch, capsys):
    from contextlib import nullcontext

    from selfreward_lite.cli import main
    from selfreward_lite.run import runtime

    monkeypatch.setattr(
        runtime, "open_runtime", lambda backend: nullcontext(scripted_runtime(chat))
    )
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    sets = [
        part
        for key, value in {**SMALL, "gates.min_read_share": "0.999"}.items()
        for part in ("--set", f"{key}={value}")
    ]
    monkeypatch.setattr(
        sys,
        "argv",
        ["selfreward_lite", "run", "--runs-dir", str(tmp_path), "--gates", "stop", *sets],
    )
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 3
    said = capsys.readouterr()
    assert "M0" in json.loads(said.out.splitlines()[-1])["refused"]
    refusal = " ".join(said.err.split())
    assert "M0 was refused (" in refusal
    assert "accept" in refusal


@pytest.mark.slow
def test_accept_promotes_a_refused_model_and_names_the_gate(tmp_path, chat):
    from scripted_world import BAD_MODELS, run_world

    from selfreward_lite.system.errors import GateStop

    with pytest.raises(GateStop):
        run_world(tmp_path / "stopped", chat, BAD_MODELS["length explosion"][1])
    ended = cli("accept", "--name", "stopped", "--runs-dir", str(tmp_path))
    assert ended.returncode == 0
    assert json.loads(ended.stdout.splitlines()[-1]) == {"run": "stopped", "accepted": 1}
    assert "accepted anyway: length: " in ended.stderr
    again = cli("accept", "--name", "stopped", "--runs-dir", str(tmp_path))
    assert again.returncode == 2
    assert "nothing to accept" in again.stderr


def test_old_command_names_still_work():
    ended = cli("export", "quantise", "nowhere.gguf", "out.gguf")
    assert ended.returncode == 2
    assert "nowhere.gguf" in ended.stderr


def test_a_disk_that_fails_is_one_line(monkeypatch, capsys):
    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error", "/data/M0/adapter.gguf")

    monkeypatch.setattr(main, "app", fail)
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("/data/M0/adapter.gguf: Input/output error. What was committed is kept")
    assert "check the disk" in said
