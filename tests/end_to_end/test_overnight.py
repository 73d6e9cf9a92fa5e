"""The `overnight` preset from files to a finished run, on a CPU, with only sizes changed.

A small Llama with hand-made weights replaces the 8B; it has Llama-3's template and vocabulary
layout, and is packed in NF4.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import llama_by_hand
import pytest
from oasst_trees import forest, write_hub_folder
from repository import ROOT

from selfreward_lite.data.records import Judgment, JudgmentPair, Prompt, ResponsePair
from selfreward_lite.data.store import Store

pytestmark = pytest.mark.slow
SIZES = {
    # logits are nearly equal, so rounding decides which token is the likeliest
    "gates.min_agreement": 0,
    "seed_stage.train_examples": 8,
    "seed_stage.eval_prompts": 6,
    "prompts.count": 4,
    "responses.count": 3,
    "judge.count": 3,
    "responses.draw.max_tokens": 240,
    "judge.draw.max_tokens": 80,
    "meta_judge.draw.max_tokens": 80,
    "evaluation.draw.max_tokens": 240,
    "evaluation.prompts": 6,
    "evaluation.judgments": 2,
    "evaluation.canary_judgments": 2,
    "evaluation.outside_prompts": 4,
    "evaluation.second_look": 4,
    "engine.parallel": 8,
    "engine.context": 24576,
    "engine.batch": 512,
    "engine.gpu_layers": 0,
    "sft.batch": 4,
    "sft.epochs": 1,
    "sft.learning_rate": 1e-3,
    "dpo.batch": 4,
    "dpo.epochs": 1,
    "dpo.learning_rate": 1e-4,
}


def command(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    environment.pop("OMP_NUM_THREADS", None)
    return subprocess.run(
        [sys.executable, "-m", "selfreward_lite", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )


@pytest.fixture(scope="module")
def night(tmp_path_factory) -> dict:
    """A run of the preset, with its output."""
    folder = tmp_path_factory.mktemp("overnight")
    trees = forest(50, seed=3, words=8)
    llama_by_hand.make(
        folder / "model", [message["text"] for message in trees.messages], packed=True
    )
    sizes = {
        **SIZES,
        "model.base": folder / "model",
        "seed_stage.ranked": write_hub_folder(folder / "oasst1", trees.messages),
    }
    settings = [part for name, value in sizes.items() for part in ("--set", f"{name}={value}")]
    runs = ("--runs-dir", str(folder / "runs"), "--name", "night")
    ended = command("run", "--preset", "overnight", *runs, *settings, "--gates", "report")
    print(ended.stderr)
    assert ended.returncode == 0, ended.stderr
    return {
        "folder": folder,
        "run": folder / "runs" / "night",
        "said": ended.stderr,
        "runs": runs,
        "trees": trees,
        "document": json.loads(ended.stdout.splitlines()[-1]),
    }


def test_overnight_fills_every_stage(night):
    with Store.read(night["run"]) as store:
        assert store.newest() == 1
        assert store.faults() == []
        assert store.count(Prompt, iteration=1, origin="generated") == 4
        assert store.count(ResponsePair, iteration=1) > 0
        assert store.count(JudgmentPair, iteration=1) > 0
        judged = store.records(Judgment, iteration=1, model="M0")
        assert sum(one.score is not None for one in judged) > 0.9 * len(judged)
        assert any(one.expected_score is not None for one in judged)
        assert store.count(Prompt, origin="ranked") == len(night["trees"].kept)


def test_overnight_adapters_build_on_each_other(night):
    with Store.read(night["run"]) as store:
        for model in (0, 1):
            known = store.metrics(model)
            assert known["training_moved_share"] > 0.9
            assert known["training_steps"] >= 1
            assert known["logit_change"] > 0
        assert store.metrics(1)["training_first_margin"] == 0.0
    adapter = json.loads((night["run"] / "M1" / "adapter" / "adapter_config.json").read_text())
    assert adapter["r"] == 16


def test_overnight_compares_models_and_measures_judges(night):
    first, second = night["document"]["iterations"]
    assert 0 <= second["win_rate_vs_seed"] <= 1
    assert second["win_rate_vs_seed_error"] is not None
    for model in (first, second):
        assert 0 <= model["judge_pair_accuracy"] <= 1
        assert model["mean_response_tokens"] > 1
    assert "before and after" in night["said"]


def test_overnight_names_backend_and_precision(night):
    assert "M0 training: transformers 5." in night["said"]
    assert "in float32" in night["said"]
    assert "llama.cpp runs on the CPU" in night["said"]


def test_overnight_run_that_is_finished_says_so(night):
    again = command("run", "--preset", "overnight", *night["runs"])
    assert again.returncode == 0, again.stderr
    assert "is finished: M1 is its newest model" in again.stderr
    verified = command("verify", *night["runs"])
    assert json.loads(verified.stdout.splitlines()[-1])["faults"] == 0


def test_overnight_export_check_passes(night):
    checked = command("export", "check", *night["runs"], "--limit", "10")
    assert checked.returncode == 0, checked.stderr
    found = json.loads(checked.stdout.splitlines()[-1])
    assert found["conversations"] == 8
    assert found["adapter_change"] > 0


def test_overnight_merged_model_uses_the_packed_base(night):
    made = command(
        "export", "merged", *night["runs"], "--type", "f16", "--out", str(night["folder"] / "out")
    )
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout.splitlines()[-1])
    assert Path(found["file"]).stat().st_size == found["bytes"]
    assert found["difference"] < 0.25, (
        "float16 rounds logits of up to 60; a wrong merge is off by whole units"
    )
    assert "FROM" in Path(found["modelfile"]).read_text()
