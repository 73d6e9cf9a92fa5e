"""The preset `smol`, shortened: a real chat model trains on constraints that a program checks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
from real_tokenizers import smollm2_gguf
from repository import ROOT

from selfreward_lite.data import hub
from selfreward_lite.data.checkable.kinds import read_constraints
from selfreward_lite.data.checkable.requests import asks_unseen_kind
from selfreward_lite.data.checkable.score import score_answer
from selfreward_lite.data.ranked import HUMAN
from selfreward_lite.data.records import BASE, Judgment, Prompt, Response, ResponsePair
from selfreward_lite.data.store import Store

pytestmark = pytest.mark.slow
SHORT = {
    "prompts.count": 20,
    "responses.count": 4,
    "dpo.batch": 4,
    "dpo.epochs": 1,
    "evaluation.prompts": 12,
    "seed_stage.eval_prompts": 3,
}
OFF = {"labels", "outside", "reading", "judge", "canary"}


@pytest.fixture
def packages(tmp_path) -> Path:
    """A folder that holds the model as its Python package does."""
    package, file = hub.PACKAGE
    folder = tmp_path / "packages" / package
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / file).symlink_to(smollm2_gguf())
    return folder.parent


def test_a_small_chat_model_learns_from_what_a_program_checks(tmp_path, packages):
    given = [part for name, value in SHORT.items() for part in ("--set", f"{name}={value}")]
    where = ["--name", "short", "--runs-dir", str(tmp_path)]
    command = ["run", "--preset", "smol", "--iterations", "1", "--gates", "report", *where, *given]
    ran = subprocess.run(
        [sys.executable, "-m", "selfreward_lite", *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(packages)},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    with Store.read(tmp_path / "short") as store:
        prompts = {one.id: one for one in store.records(Prompt)}
        answers = {one.id: one for one in store.records(Response)}
        held_out = {model: store.made_by(Response, model) for model in (BASE, 1)}
        pairs, judged = store.records(ResponsePair), store.records(Judgment)
        base, trained, gates = store.metrics(BASE), store.metrics(1), store.gates(1)
        assert store.newest() == 1 and store.faults() == []
    # Constraints alone decide, and every pair differs in them.
    assert len(pairs) >= SHORT["prompts.count"] // 4
    for pair in pairs:
        prompt = prompts[pair.prompt_id]
        chosen, rejected = (
            score_answer(prompt, one.text, one.finish)
            for one in (answers[pair.chosen_id], answers[pair.rejected_id])
        )
        assert chosen.score == pair.chosen_score > pair.rejected_score == rejected.score
        assert not asks_unseen_kind(read_constraints(prompt))
    ranked = {one.id for one in answers.values() if one.model == HUMAN}
    assert judged and {one.response_id for one in judged} <= ranked, "the judge is only measured"
    # What is trained is what llama.cpp runs, and it is another model than the base.
    assert trained["training_first_margin"] == 0.0
    assert trained["training_steps"] == -(-len(pairs) // SHORT["dpo.batch"])
    assert trained["greedy_agreement"] > 0.9 and trained["logit_change"] > 0
    assert {one.text for one in held_out[1]} != {one.text for one in held_out[BASE]}
    # Both halves of the held-out requests are in the metrics.
    for model, values in ((BASE, base), (1, trained)):
        for name, unseen in (("trained", False), ("unseen", True)):
            scores = [
                score_answer(prompts[one.prompt_id], one.text, one.finish).score
                for one in held_out[model]
                if asks_unseen_kind(read_constraints(prompts[one.prompt_id])) == unseen
            ]
            assert len(scores) == 6
            assert values[f"exact_score_{name}_kinds"] == pytest.approx(fmean(scores))
    assert {name for name, (passed, _) in gates.items() if passed is None} >= OFF
    printed = json.loads(ran.stdout.splitlines()[-1])
    assert printed["iterations"][1]["exact_score_trained_kinds"] == pytest.approx(
        trained["exact_score_trained_kinds"], abs=1e-3
    )
