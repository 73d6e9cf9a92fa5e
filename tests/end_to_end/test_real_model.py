"""A real chat model, SmolLM2-135M-Instruct, goes round once: from its GGUF to a measured M1.

It writes no judgment that can be read, so every score is forced.

The environment variable RANKED may name other ranked data, such as OASST1's.
"""

import json
import os
import subprocess
import sys

import pytest
from english_rows import write_prompts, write_ranked
from real_tokenizers import smollm2_gguf
from repository import ROOT

from selfreward_lite.data.records import (
    BASE,
    Battle,
    Judgment,
    JudgmentPair,
    Response,
    ResponsePair,
)
from selfreward_lite.data.store import Store

pytestmark = pytest.mark.slow
SETTINGS = {
    "model.templates": "short",
    "model.quantisation": "none",
    "model.gguf": "q8_0",
    "seed_stage.eft": "false",  # there is nothing to learn from
    "seed_stage.ift_examples": 14,
    "seed_stage.eval_prompts": 4,
    "seed_stage.decoys": 0,
    "sft.batch": 7,
    "sft.epochs": 2,
    "sft.learning_rate": 2e-4,
    "sft.max_length": 256,
    "responses.draw.max_tokens": 96,
    "evaluation.draw.max_tokens": 96,
    "judge.draw.max_tokens": 48,
    "evaluation.prompts": 4,
    "evaluation.judgments": 2,
    "evaluation.canary_judgments": 0,  # minutes; other tests have canaries
    "gates.judging": "false",
    "evaluation.second_look": 2,
    "evaluation.outside_prompts": 2,
    "prompts.count": 6,
    "responses.count": 3,
    "judge.count": 2,
    "judge.score": "expected",  # no ties
    "meta_judge.draw.max_tokens": 48,
    "dpo.batch": 4,
    "dpo.epochs": 1,
    "dpo.learning_rate": 1e-4,
    "dpo.max_length": 1024,
    "engine.context": 8192,
    "engine.parallel": 8,
    "engine.batch": 512,
    "engine.gpu_layers": 0,
}
COMMON = {"the", "a", "of", "and", "to", "is", "in", "that", "it", "for", "you", "are", "can", "be"}


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "selfreward_lite", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
    )


def test_a_real_chat_model_runs_from_its_gguf(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    settings = {
        "model.base": smollm2_gguf(),
        "prompts.file": write_prompts(tmp_path / "prompts.jsonl"),
        "seed_stage.ranked": os.environ.get("RANKED") or write_ranked(tmp_path / "ranked.jsonl"),
        **SETTINGS,
    }
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    where = ["--name", "smol", "--runs-dir", str(tmp_path)]
    ran = command(
        "run", "--preset", "small", "--iterations", "1", "--gates", "report", *where, *given
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    with Store.read(tmp_path / "smol") as store:
        values = store.metrics(0)
        answers = {
            model: [one.text for one in store.made_by(Response, model)] for model in (BASE, 0, 1)
        }
        stages = {row.stage: row for row in store.stages() if row.stage.endswith("judgments")}
        judged, battles = store.records(Judgment), store.records(Battle)
        pairs = store.count(ResponsePair), store.count(JudgmentPair)
        trained, gates = store.metrics(1), store.gates(0)
        assert store.newest() == 1 and store.faults() == []
    assert values["training_steps"] == 4
    assert values["adapter_share"] == pytest.approx(1.0, abs=0.25)
    assert values["greedy_agreement"] > 0.9
    assert values["logit_change"] > 0
    assert set(stages) > {"base_eval_judgments", "eval_judgments", "judgments"}
    assert all(row.done == row.total > 0 for row in stages.values())
    assert [one for one in judged if one.score is None] == []
    assert sum(one.source == "forced" for one in judged) > 0.5 * len(judged)
    assert battles and all(one.verdict for one in battles)
    # Both orders may name the place: then no battle is decided, and no judgment pair is made.
    assert pairs[0] >= 1 and trained["training_rows"] == sum(pairs)
    assert trained["training_steps"] >= 1 and trained["logit_change"] > 0
    assert "forced" in gates["ability"][1]
    for texts in answers.values():
        assert len(texts) == 4
        for text in texts:
            words = text.lower().split()
            assert len(COMMON.intersection(words)) >= 2, text
            assert sum(letter.isascii() for letter in text) > 0.9 * len(text), text
    status = command("status", *where)
    assert "judgments forced" in status.stderr
    checked = command("export", "check", *where)
    assert checked.returncode == 0, checked.stderr[-3000:]
    assert json.loads(checked.stdout.splitlines()[-1])["conversations"] == 8
