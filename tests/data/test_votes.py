"""Votes: kept with the run, counted with intervals, exported as ranked data."""

import json
import math
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import scripted_run

from selfreward_lite.data import ranked as ranked_data
from selfreward_lite.data import votes
from selfreward_lite.data.store import Store
from selfreward_lite.data.votes import Vote
from selfreward_lite.method import metrics
from selfreward_lite.run.backup import Backup, restore
from selfreward_lite.system.errors import UserError


def vote(number: int = 0, choice: str = "a", verdict: str | None = "a", **more) -> Vote:
    given = {
        "id": f"v{number}",
        "at": "2026-01-01T00:00:00+00:00",
        "prompt": f"Prompt {number}?",
        "seed": 3,
        "model_a": "M0",
        "model_b": "M3",
        "text_a": f"first {number}",
        "text_b": f"second {number}",
        "choice": choice,
        "blind": True,
        "judge": "M3",
        "verdict": verdict,
        "judged_ab": "A",
        "judged_ba": "B",
    }
    return Vote(**{**given, **more})


def test_votes_are_kept_in_their_order_and_once(tmp_path):
    assert votes.load_votes(tmp_path) == []
    given = [vote(0), vote(1, "tie", None, blind=False), vote(2, "b")]
    for one in (*given, given[0]):
        votes.add_vote(tmp_path, one)
    assert votes.load_votes(tmp_path) == given


def test_a_vote_waits_for_no_run_and_no_run_for_a_vote(tmp_path):
    with Store.write(tmp_path / "run") as store, store.transaction():
        votes.add_vote(tmp_path / "run", vote())
        assert votes.load_votes(tmp_path / "run") == [vote()]
    book = sqlite3.connect(tmp_path / "run" / votes.FILE)
    book.execute("BEGIN EXCLUSIVE")
    with Store.write(tmp_path / "run") as store:
        store.state("x", 1)
    book.close()


def test_a_vote_that_cannot_be_kept_is_said(tmp_path):
    with pytest.raises(UserError, match="the vote could not be kept"):
        votes.add_vote(tmp_path / "nowhere", vote())
    (tmp_path / votes.FILE).write_text(
        "no database, but long enough to be taken for a broken one" * 40
    )
    with pytest.raises(UserError, match="cannot be read"):
        votes.load_votes(tmp_path)


def test_a_tally_counts_sides_and_agreement_where_both_decided():
    given = [
        vote(0, "a", "a"),  # M0 preferred, judge too
        vote(1, "b", "a"),  # M3 preferred, judge not
        vote(2, "a", "a", model_a="M3", model_b="M0"),  # M3 preferred, judge too
        vote(3, "tie", "b"),
        vote(4, "b", "tie"),
        vote(5, "b", None),
        vote(6, "a", "a", model_b="M1"),  # another pair of models
        vote(7, "b", "a", judge="M0", blind=False),  # M3 preferred; another judge, names shown
    ]
    found = metrics.tally_votes(given, "M3", "M0", "M3")
    assert (found.won, found.tied, found.lost) == (5, 1, 1)
    assert (found.win_rate.value, found.win_rate.count) == (5.5 / 7, 7)
    assert (found.agreement.value, found.agreement.count) == (2 / 3, 3)
    mirrored = metrics.tally_votes(given, "M0", "M3", "M0")
    assert found.open == 1
    assert (mirrored.won, mirrored.lost) == (1, 5)
    assert (mirrored.agreement.value, mirrored.agreement.count) == (0.0, 1), "of that judge alone"
    assert mirrored.win_rate.value == pytest.approx(1 - found.win_rate.value)
    assert metrics.tally_votes([], "M3", "M0", "M3").win_rate.count == 0
    assert math.isnan(metrics.tally_votes([], "M3", "M0", "M3").win_rate.value)


def test_a_tally_says_how_often_the_longer_answer_was_preferred():
    """Of the votes of the judge's agreement, so that the two can be compared."""
    given = [
        vote(0, "a", "a", text_a="long", text_b="b"),
        vote(1, "b", "a", text_a="long", text_b="b"),
        vote(2, "b", "b", text_a="a", text_b="long"),
        vote(3, "a", "a", text_a="same", text_b="long"),
        vote(4, "a", "tie", text_a="long", text_b="b"),
        vote(5, "tie", "a", text_a="long", text_b="b"),
    ]
    found = metrics.tally_votes(given, "M3", "M0", "M3")
    assert (found.agreement.value, found.agreement.count) == (3 / 4, 4)
    assert (found.longer.value, found.longer.count) == (2.5 / 4, 4)


def test_votes_are_ranked_data_that_the_seed_stage_reads(tmp_path):
    given = [
        vote(0, "a"),
        vote(1, "b"),
        vote(2, "tie"),
        vote(3, "a", text_b="first 3"),
        vote(4, "a", prompt="prompt 0?"),
    ]
    rows, drops = votes.build_ranked_rows(given)
    assert drops == {"tie": 1, "the same answer twice": 1, "same prompt again": 1}
    ranked, outcome = ranked_data.build_ranked_prompts(rows, "run")
    assert {one.prompt.text: [answer.text for answer in one.responses] for one in ranked} == {
        "prompt 0?": ["first 4", "second 4"],
        "Prompt 1?": ["second 1", "first 1"],
    }
    assert outcome.drops == Counter()


def exported(runs: Path, out: Path) -> subprocess.CompletedProcess:
    command = ["export", "votes", "--runs-dir", runs, "--name", "mine", "--out", out]
    return subprocess.run(
        [sys.executable, "-m", "selfreward_lite", *command], capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_command_writes_them_or_says_how_to_get_some(tmp_path):
    Store.write(tmp_path / "mine").close()
    ended = exported(tmp_path, tmp_path / "out" / "votes.jsonl")
    assert ended.returncode == 2
    assert "compare two models in the app (`python app.py`) and vote" in ended.stderr
    for one in (vote(0), vote(1, "tie")):
        votes.add_vote(tmp_path / "mine", one)
    ended = exported(tmp_path, tmp_path / "out" / "votes.jsonl")
    said = json.loads(ended.stdout.splitlines()[-1])
    assert (said["prompts"], said["left_out"]) == (1, {"tie": 1})
    rows = [
        json.loads(line)
        for line in (tmp_path / "out" / "votes.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [row["rank"] for row in rows] == [None, 0, 1]


def test_a_mirror_takes_them_along_and_a_restored_run_has_them(tmp_path):
    scripted_run.copy(tmp_path / "runs" / "mine", iterations="0")
    votes.add_vote(tmp_path / "runs" / "mine", vote())
    with Store.write(tmp_path / "runs" / "mine") as store:
        Backup(store, tmp_path / "drive", print).copy(last=True)
    restore(tmp_path / "drive", tmp_path / "other" / "mine")
    assert votes.load_votes(tmp_path / "other" / "mine") == [vote()]
    assert not list((tmp_path / "runs" / "mine").glob("snapshot*"))
