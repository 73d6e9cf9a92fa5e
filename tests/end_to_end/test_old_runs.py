"""A run made by the code at commit fc94850 opens, reports, verifies and resumes.

`tests/fixtures/old_run` is a tiny run with one iteration, LoRA rank 4 and small counts, made with
`--gates report`, one vote added, then pruned (`base/` and `training/` can be made again). Only the
path of the base model in `adapter_config.json`, and so its sha256 in `manifest.json`, was changed:
to one that no longer exists.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from repository import ROOT

from selfreward_lite.data import queries, votes
from selfreward_lite.data.records import KINDS, Outcome, TaskAnswer, derive_id
from selfreward_lite.data.store import Store
from selfreward_lite.report import summary

OLD_RUN = ROOT / "tests" / "fixtures" / "old_run"
COUNTS = {
    "Candidate": 12,
    "Prompt": 70,
    "Response": 335,
    "Judgment": 1342,
    "ResponsePair": 11,
    "Battle": 56,
    "Rating": 32,
    "JudgmentPair": 12,
    "Comparison": 0,
    "TaskAnswer": 0,
}


@pytest.fixture
def runs(tmp_path) -> Path:
    shutil.copytree(OLD_RUN, tmp_path / "runs" / "old")
    return tmp_path / "runs"


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


def test_old_run_opens_with_every_record(runs):
    with Store.read(runs / "old") as store:
        assert store.newest() == 1
        assert store.faults() == []
        assert {kind.__name__: store.count(kind) for kind in KINDS} == COUNTS
    (vote,) = votes.load_votes(runs / "old")
    assert (vote.model_a, vote.model_b, vote.choice, vote.blind) == ("M0", "M1", "b", True)


def test_an_old_run_gets_the_tables_that_it_lacks(runs):
    with Store.write(runs / "old") as store:
        answer = TaskAnswer("", 1, "M1", "gsm8k", "7", 0, "12", "stop", 1, 1, 1, 1)
        kept = replace(answer, id=derive_id(store.id_namespace, answer))
        store.commit(1, "task_answers", "gsm8k 7", Outcome([kept]))
    with Store.read(runs / "old") as store:
        assert store.records(TaskAnswer) == [kept]
        assert store.faults() == []
        assert {kind.__name__: store.count(kind) for kind in KINDS} == COUNTS | {"TaskAnswer": 1}


def test_old_run_has_status_and_verifies(runs):
    where = ("--runs-dir", str(runs), "--name", "old")
    document = run_command("status", *where)
    first, last = document["iterations"]
    assert (last["response_pairs"], last["judgment_pairs"]) == (11, 12)
    assert (first["exact_score"], last["exact_score"]) == (4.2, 4.3)
    assert set(document["refused"]["M1"]) == {"canary", "labels", "reading"}
    assert run_command("verify", *where) == {"run": "old", "faults": 0}


def test_old_run_gets_the_level_of_the_longer_answer(runs):
    """It stored none; its ranked answers are there. Who wrote a score is not known."""
    with Store.read(runs / "old") as store:
        assert "longer_pair_accuracy" not in store.metrics(1)
        prompts = queries.load_split(store, store.settings()).evaluation
        document = summary.summarize_run(store)
        table = summary.build_measurement_table(store, document)
    pairs = [pair for one in prompts for pair in combinations(one.responses, 2)]
    right = sum(len(better.text) > len(worse.text) for better, worse in pairs)
    assert pairs
    for row in (document["base"], *document["iterations"]):
        assert row["longer_pair_accuracy"] == pytest.approx(right / len(pairs), abs=1e-4)
        assert row.get("judge_written_share") is None
        assert row.get("judge_forced_share") is None
    names = [row[0] for row in table.rows]
    assert names.index("pick the longer: pair accuracy") == names.index("judge pair accuracy") + 1


def test_old_run_reports(runs, tmp_path):
    page = tmp_path / "old.html"
    assert run_command("report", "old", "--runs-dir", str(runs), "--out", str(page))["bytes"] > 0
    assert "judge pair accuracy" in page.read_text(encoding="utf-8").replace("_", " ").lower()


@pytest.mark.slow
def test_old_run_resumes_for_one_more_iteration(runs):
    where = ("--runs-dir", str(runs), "--name", "old")
    document = run_command("run", *where, "--iterations", "2", "--gates", "report")
    assert [row["iteration"] for row in document["iterations"]] == [0, 1, 2]
    assert document["iterations"][2]["response_pairs"] > 0
    with Store.read(runs / "old") as store:
        assert store.newest() == 2
        assert store.faults() == []
