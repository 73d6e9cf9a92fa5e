"""A real run: llama.cpp, TRL, PEFT, bitsandbytes, the shipped base. Takes minutes (`-m slow`)."""

import ast
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import astuple
from pathlib import Path

import pytest
from repository import ROOT

from selfreward_lite.data.records import KINDS, Prompt
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL, ranked, tasks

pytestmark = pytest.mark.slow
SMALL = (
    "--iterations",
    "1",
    "--gates",
    "report",
    "--set",
    "prompts.count=24",
    "--set",
    "seed_stage.train_examples=60",
    "--set",
    "seed_stage.eval_prompts=20",
    "--set",
    "evaluation.prompts=40",
)


def command(runs: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "selfreward_lite", "run", "--runs-dir", str(runs), *more]


def records(folder: Path) -> dict[str, set]:
    with Store.read(folder) as store:
        return {
            kind.__name__: {astuple(record) for record in store.records(kind)} for kind in KINDS
        }


def run_example(page: str, folder: Path) -> list[str]:
    """The lines that the Python example of a page prints."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (example,) = (block for block in blocks if "ProcessEngine" in block)
    ended = subprocess.run(
        [sys.executable, "-c", example],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_readme_first_command_makes_a_better_model(tmp_path):
    ended = subprocess.run(command(tmp_path), capture_output=True, text=True, cwd=ROOT)
    print(ended.stderr)
    print(ended.stdout)
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout.splitlines()[-1])
    first, last = document["iterations"][0], document["iterations"][-1]
    assert [row["iteration"] for row in document["iterations"]] == [0, 1, 2, 3]
    assert last["exact_score"] > first["exact_score"]
    assert last["win_rate_vs_seed"] > 0.5
    for row in document["iterations"][1:]:
        assert row["response_pairs"] > 0
        assert row["judgments"] > row["judgments_unread"]
    with Store.read(tmp_path / "tiny") as store:
        assert store.faults() == []
        for iteration in (1, 2, 3):
            assert store.metrics(iteration)["training_first_margin"] == 0.0
    # the Python examples of two pages, as written, next to that run
    (tmp_path / "runs").symlink_to(tmp_path)
    printed = run_example("docs/engine.md", tmp_path)
    assert len(printed) == 6, "three samples of two requests"
    assert sum("The answer is " in line for line in printed) >= 3
    (printed,) = run_example("README.md", tmp_path)
    scores = ast.literal_eval(printed[printed.rindex("[") :])
    assert len(scores) == 3
    read = [score for score in scores if score is not None]
    assert read, "the judge's scores can be read"
    assert all(0 <= score <= 5 for score in read)
    # llama.cpp runs the model that was trained
    checked = subprocess.run(
        [sys.executable, "-m", "selfreward_lite", "export", "check", "--runs-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    print(checked.stderr)
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout.splitlines()[-1])["adapter_difference"] < 1e-3
    # the merged model
    merged = subprocess.run(
        [
            sys.executable,
            "-m",
            "selfreward_lite",
            "export",
            "merged",
            "--runs-dir",
            str(tmp_path),
            "--out",
            str(tmp_path / "out"),
            "--type",
            "q4_k_m",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    print(merged.stderr)
    assert merged.returncode == 0, merged.stderr
    said = json.loads(merged.stdout.splitlines()[-1])
    assert said["agreement"] > 0.8
    assert Path(said["modelfile"]).read_text().startswith("FROM ./tiny-M3-q4_k_m.gguf\n")
    # measured by the exact scorer, and by a judge in a GGUF file
    where = ["--runs-dir", str(tmp_path)]
    exact = run_command("evaluate", *where)
    assert exact["win_rate"] == pytest.approx(last["win_rate_vs_seed"], abs=1e-4), (
        "the same as in the run"
    )
    judged = run_command(
        "evaluate", "--judge", str(tmp_path / "tiny" / "base" / "base.gguf"), *where
    )
    assert judged["prompts"] == 300
    assert judged["win_rate_low"] > 0.5, "the base, too, prefers M3's answers to M0's"
    quality = run_command("evaluate", "judge", *where)
    assert quality["pair_accuracy"] == pytest.approx(last["judge_pair_accuracy"], abs=1e-4)


def run_command(*arguments: str) -> dict:
    """Return the JSON in the last line of a command's output."""
    ended = subprocess.run(
        [sys.executable, "-m", "selfreward_lite", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_own_model_prompts_and_ranked_data(tmp_path):
    """A local model (float32, sharded), CSV prompts with a bad line, ranked data like OASST."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype="float32")
    model.save_pretrained(tmp_path / "model", max_shard_size="1MB")
    AutoTokenizer.from_pretrained(TINY_MODEL).save_pretrained(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    rng = random.Random(0)
    texts = [tasks.draw_task(rng, "corpus").prompt for _ in range(30)]
    (tmp_path / "mine.csv").write_text(
        "prompt,topic\n" + "".join(f"{text},x\n" for text in texts) + "only one field\n"
    )
    (tmp_path / "ranked.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in ranked.generate_ranked_rows(80))
    )
    more = [
        "--set",
        f"model.base={tmp_path / 'model'}",
        "--set",
        f"seed_stage.ranked={tmp_path / 'ranked.jsonl'}",
    ]
    more += ["--prompts", str(tmp_path / "mine.csv"), *SMALL]
    refused = subprocess.run(
        command(tmp_path / "runs", *more), capture_output=True, text=True, cwd=ROOT
    )
    assert refused.returncode == 2
    assert "mine.csv:32: another number of fields" in refused.stderr
    assert "--skip-bad" in refused.stderr
    ended = subprocess.run(
        command(tmp_path / "runs", "--skip-bad", *more), capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout.splitlines()[-1])
    assert document["iterations"][1]["prompts"] == 24
    assert document["iterations"][1]["response_pairs"] > 0
    with Store.read(tmp_path / "runs" / "tiny") as store:
        assert store.drops(0, "prompts_file")["another number of fields than the first line"] == 1
        assert {one.text for one in store.records(Prompt, iteration=1)} <= set(texts)
        assert store.metrics(1)["logit_difference"] < 1e-3
        assert store.faults() == []


# Where the run is killed: iteration, stage, and after how many items (or tenths of a second).
KILLED_IN = (
    (0, "base", 15),
    (0, "base_eval_responses", 1),
    (0, "base_eval_judgments", 5),
    (0, "eft_judgments", 2),
    (0, "eft_judgments", 9),
    (0, "training", 4),
    (0, "training", 20),
    (0, "eval_responses", 1),
    (0, "eval_judgments", 20),
    (0, "canary_judgments", 5),
    (0, "outside_judgments", 3),
    (1, "responses", 4),
    (1, "judgments", 4),
    (1, "judgments", 60),
    (1, "battles", 2),
    (1, "battles", 15),
    (1, "training", 4),
    (1, "training", 16),
    (1, "eval_judgments", 10),
    (1, "self_judgments", 3),
)


def test_sigkill_of_the_real_run_loses_no_record(tmp_path):
    """Killed in every kind of stage, model processes included; then resumed to the end."""
    folder, kills = tmp_path / "tiny", Counter()
    for iteration, stage, items in KILLED_IN:
        before = kill_at(folder, iteration, stage, items)
        kills[stage] += 1
        after = records(folder)
        assert all(before[kind] <= after[kind] for kind in before), (
            f"a committed record was lost in {stage}"
        )
    before = records(folder)
    ended = subprocess.run(command(tmp_path, *SMALL), capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    after = records(folder)
    assert all(before[kind] <= after[kind] for kind in before)
    with Store.read(folder) as store:
        assert store.newest() == 1
        assert store.faults() == []
    print(f"\n{kills.total()} kills of the real run ({dict(kills)}); no committed record lost")
    assert kills.total() == 20


def kill_at(folder: Path, iteration: int, stage: str, items: int) -> dict[str, set]:
    """Resume the run until it is that far and kill it; return the records committed before."""
    halting = [sys.executable, "-m", "tests.helpers.halting_run", str(iteration), stage, str(items)]
    child = subprocess.Popen(
        [*halting, *command(folder.parent, *SMALL)[3:]], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"the run ended before {items} of {stage}"
        return records(folder)
    finally:
        child.kill()
        child.wait()
