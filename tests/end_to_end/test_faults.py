"""What must survive: one clear line with the next step, a documented exit code, nothing lost.

docs/reliability.md lists every fault and the file that tests it.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import scripted_run
from command_line import call
from error_text import one_line
from repository import HELPERS, ROOT
from run_contents import read_contents, read_records
from scripted_world import World, run_world

from selfreward_lite import config
from selfreward_lite.data.records import Response
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.engine.scripted import Reply
from selfreward_lite.models import memory
from selfreward_lite.models.hf_folder import read_config
from selfreward_lite.run import plan, prepare
from selfreward_lite.system.errors import (
    ConfigError,
    GateStop,
    TrainingError,
    UserError,
)
from selfreward_lite.training.job import TrainingResult

pytestmark = pytest.mark.slow  # whole runs, and other processes
SCRIPT = HELPERS / "scripted_run.py"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    scripted_run.copy(folder)
    return folder


# -- time budget ----------


@pytest.mark.parametrize("arguments", [("--hours", "0.0003")], ids=str)
def test_time_budget_ends_the_run_resumably(tmp_path, arguments):
    command = [
        sys.executable,
        "-m",
        "selfreward_lite",
        "run",
        "--runs-dir",
        str(tmp_path),
        *arguments,
    ]
    started = time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 130
    assert "--hours are over; what was committed is kept. The same command resumes" in ended.stderr
    assert "Traceback" not in ended.stderr
    print(f"\nended after {time.monotonic() - started:.1f} s")
    Store.write(tmp_path / "tiny").close()  # nobody holds the lock any more


# -- the disk ----------


def test_full_disk_is_one_line_and_nothing_is_lost(tmp_path, whole):
    """File sizes are limited, like on a full disk; then the limit is lifted and the run resumes."""
    folder = tmp_path / "run"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    ended = subprocess.run(
        [sys.executable, SCRIPT, folder, "0", "0"],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode != 0
    assert "UserError" in ended.stderr.splitlines()[-1]
    assert f"{folder}: cannot write (" in ended.stderr.splitlines()[-1]
    assert "free space" in ended.stderr.splitlines()[-1]
    before = read_records(folder)
    assert sum(map(len, before.values())) > 0
    scripted_run.run(folder)
    after = read_records(folder)
    assert all(set(records) <= set(after[kind]) for kind, records in before.items())
    assert read_contents(folder) == read_contents(whole)


def test_run_too_large_for_the_disk_is_refused_with_numbers(tmp_path, monkeypatch):
    tiny, shape = config.load("tiny"), read_config(TINY_MODEL)
    needs = plan.disk_needs(tiny, shape)
    assert needs["base"] > 4 * (TINY_MODEL / "model.safetensors").stat().st_size / 2 * 0.95
    assert plan.disk_needs(tiny, shape, base_written=True)["base"] == 0
    assert sum(plan.disk_needs(tiny, shape, tiny.iterations, base_written=True).values()) == 0
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6)
    )
    with pytest.raises(
        UserError,
        match=r"has 1\.0 MB free and this run needs \d+\.\d MB "
        r"\(base .*adapters .*records .*--runs-dir",
    ) as e:
        scripted_run.run(tmp_path / "run")
    one_line(e)
    with Store.read(tmp_path / "run") as store:
        assert not store.has_items(), "nothing was begun"


def test_planned_adapter_size_is_that_of_a_trained_one(tmp_path):
    """The estimate equals a real adapter: rank 16 on the seven linear layers of each block."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL)
    total = sum(weight.numel() for weight in model.parameters())
    made = get_peft_model(
        model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trained = sum(weight.numel() for weight in made.parameters() if weight.requires_grad)
    shape = read_config(TINY_MODEL)
    assert memory.count_adapter_weights(shape, 16) == trained
    assert memory.count_weights(shape) == pytest.approx(total, rel=0.01)


def test_records_fit_in_what_was_planned(tmp_path, monkeypatch):
    planned: list[dict] = []
    check = prepare.check_disk
    monkeypatch.setattr(
        prepare, "check_disk", lambda folder, needs: (planned.append(needs), check(folder, needs))
    )
    scripted_run.run(tmp_path / "run")
    (needs,) = planned
    database = sum(path.stat().st_size for path in (tmp_path / "run").glob("run.sqlite*"))
    assert 0 < database < needs["records"] + needs["working files"]


def test_disk_full_from_the_start_is_one_line(tmp_path):
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    command = [sys.executable, "-m", "selfreward_lite", "run", "--runs-dir", str(tmp_path)]
    ended = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2, ended.stderr
    assert "free space" in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr


def test_damaged_database_or_manifest_is_one_line(tmp_path):
    scripted_run.copy(tmp_path / "run", iterations="0")
    manifest = tmp_path / "run" / "M0" / "manifest.json"
    whole = manifest.read_text()
    for content in ("{", "{}", "[]", '{"files": 7}'):
        manifest.write_text(content)
        with Store.read(tmp_path / "run") as store:
            assert [fault for fault in store.faults() if "manifest.json: is damaged" in fault]
    manifest.write_text(whole)
    database = tmp_path / "run" / "run.sqlite"
    content = database.read_bytes()
    for damaged in (b"no database at all" * 500, content[:2000]):
        database.write_bytes(damaged)
        for path in (tmp_path / "run").glob("run.sqlite-*"):
            path.unlink()
        for command in ("status", "verify", "run"):
            ended = call(command, "--name", "run", "--runs-dir", str(tmp_path))
            assert ended.returncode == 2, ended.stderr
            assert "Traceback" not in ended.stderr
            assert "damaged" in ended.stderr


def test_file_in_the_way_or_name_too_long_is_one_line(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "base").write_text("in the way")
    for name in ("run", "n" * 300):
        line = [
            sys.executable,
            "-m",
            "selfreward_lite",
            "run",
            "--name",
            name,
            "--runs-dir",
            str(tmp_path),
        ]
        ended = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
        assert ended.returncode == 2, ended.stderr
        assert "Traceback" not in ended.stderr
        assert "give another" in " ".join(ended.stderr.split())


def test_own_prompts_may_be_few_but_not_too_few(tmp_path, chat):
    texts = [f"Sort the letters {a} {b} c." for a in "defgh" for b in "klm"]
    (tmp_path / "mine.csv").write_text("prompt\n" + "\n".join(texts) + "\n")
    settings = {"prompts.file": f'"{tmp_path / "mine.csv"}"', "prompts.count": "200"}
    run_world(tmp_path / "run", chat, settings=settings)
    with Store.read(tmp_path / "run") as store:
        assert store.newest() == 1
        assert store.gates(1)["signal"][0]
    with pytest.raises(
        ConfigError,
        match=r"holds 15 prompts: too few for 2 iterations of 200; set prompts\.count=7",
    ):
        run_world(tmp_path / "more", chat, settings={**settings, "iterations": "2"})
    with Store.write(tmp_path / "more") as store:
        assert store.fact("settings") is None


def test_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    command = [sys.executable, "-m", "selfreward_lite", "run", "--runs-dir", str(tmp_path / "file")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2
    assert "is a file; give the folder that holds all runs" in ended.stderr
    assert "Traceback" not in ended.stderr


# -- nothing to learn from ----------


@pytest.mark.parametrize("score", [0, 4, 5])
def test_equal_scores_end_the_iteration_with_exit_code_3(tmp_path, chat, score):
    overrides = {"M0 judge": lambda rng, asked: f"So it is, all in all.\nScore: {score}"}
    with pytest.raises(GateStop, match="signal") as stop:
        run_world(tmp_path / "run", chat, overrides, {"gates.max_judge_loss": "1"})
    assert stop.value.exit_code == 3
    one_line(stop)


def test_one_prompt_is_enough_for_the_arithmetic(tmp_path, chat):
    run_world(tmp_path / "run", chat, settings={"prompts.count": "1", "gates.mode": "report"})
    with Store.read(tmp_path / "run") as store:
        assert store.newest() == 1


def test_unreadable_judgments_end_the_iteration(tmp_path, chat):
    run_world(tmp_path / "run", chat, settings={"iterations": "0"})
    with pytest.raises(GateStop, match="signal: 0 of the prompts"):
        run_world(tmp_path / "run", chat, {"M0 judge": lambda rng, asked: "Nice."})


def test_response_that_kills_the_engine_is_a_counted_drop(tmp_path, chat):
    def answer_or_crash(rng, asked):
        return Reply("", "failed") if rng.random() < 0.3 else World.act(rng, asked)

    run_world(tmp_path / "run", chat, {"M0 act": answer_or_crash}, {"gates.mode": "report"})
    with Store.read(tmp_path / "run") as store:
        assert store.newest() == 1
        assert store.drops(1, "responses")["the engine died on it"] > 0
        assert store.count(Response, iteration=1, model="M0") > 0


def test_training_without_adapter_or_rows_fails(tmp_path, chat):
    def train(job, folder, report):
        return TrainingResult(steps=3, rows=3, moved_share=1.0, first_margin=0.0)

    with pytest.raises(TrainingError, match="ended without an adapter"):
        run_world(tmp_path / "run", chat, train=train)
    with pytest.raises(GateStop, match="ability: 0 of 66 scores were written as asked") as stop:
        run_world(tmp_path / "empty", chat, {"base judge": lambda rng, asked: "Nice."})
    assert stop.value.exit_code == 3


# -- other processes, other places, no network, secrets ----------


def test_second_writer_is_refused_and_readers_are_not(tmp_path):
    with Store.write(tmp_path / "run") as store:
        with pytest.raises(UserError, match=rf"process {os.getpid()}") as error:
            Store.write(tmp_path / "run")
        one_line(error)
        store.state("run", "seed 0")
        with Store.read(tmp_path / "run") as reader:
            assert reader.id_namespace == "seed 0"


LATIN1 = "-caf\udce9 'a' \"b\"\n\U0001f600"  # the bytes of its é are no UTF-8


@pytest.mark.parametrize("place", ["ä b", "#1?x=%20", LATIN1], ids=ascii)
def test_time_zone_locale_and_odd_paths_change_nothing(tmp_path, whole, place):
    folder = tmp_path / place / "run"
    environment = {**os.environ, "TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, SCRIPT, folder, "0", "0"], env=environment, check=True)
    assert read_contents(folder) == read_contents(whole)


NO_NETWORK = """
import socket
def refuse(self, address, *more):
    if self.family != socket.AF_UNIX:
        raise OSError(f"the network is gone, but {address} was requested")
socket.socket.connect = socket.socket.connect_ex = refuse
"""


def test_without_network_all_but_downloads_works(tmp_path):
    """The real runtime, in processes that cannot connect; a missing model is one line."""
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        "-m",
        "selfreward_lite",
        "run",
        "--runs-dir",
        str(tmp_path / "runs"),
        "--iterations",
        "0",
    ]
    small = {
        "seed_stage.train_examples": 40,
        "seed_stage.eval_prompts": 20,
        "evaluation.prompts": 10,
        "sft.epochs": 1,
    }
    sets = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    ended = subprocess.run(
        [*command, *sets, "--gates", "report"],
        env=environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert ended.returncode == 0, ended.stderr
    assert "network is gone" not in ended.stderr
    missing = [
        *command,
        "--name",
        "hub",
        "--set",
        "model.base=unsloth/llama-3-8b-Instruct-bnb-4bit",
    ]
    ended = subprocess.run(missing, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2
    assert (
        "the hub cannot be reached (HF_HUB_OFFLINE=1): unset it, or give a folder on this machine"
        in ended.stderr
    )


def test_token_in_the_environment_is_never_written_or_shown(tmp_path):
    secret = "hf_" + "Secret" * 6
    environment = {**os.environ, "HF_TOKEN": secret, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    crash = [
        sys.executable,
        "-m",
        "selfreward_lite",
        "run",
        "--runs-dir",
        str(tmp_path),
        "--set",
        "sft.learning_rate=1e30",
    ]
    small = [
        "--set",
        "seed_stage.train_examples=40",
        "--set",
        "seed_stage.eval_prompts=4",
        "--set",
        "evaluation.prompts=2",
    ]
    ended = subprocess.run(
        [*crash, *small], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 1, ended.stderr
    assert "learning rate" in ended.stderr
    assert secret not in ended.stderr + ended.stdout
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "train.log" for path in files)
    assert not any(secret.encode() in path.read_bytes() for path in files)
