"""`bench tiny`: what it averages, what it claims and when it must not, and that it resumes."""

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_run import SMALL
from scripted_runtime import scripted_runtime
from scripted_world import BAD_MODELS, World
from typer.testing import CliRunner

from selfreward_lite.bench import seeds
from selfreward_lite.bench.seeds import ModelRow, Trial
from selfreward_lite.cli.main import app
from selfreward_lite.data.records import Prompt, Response
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny.score import BEST, score_answer
from selfreward_lite.engine.scripted import ScriptedEngine
from selfreward_lite.system.errors import TrainingError

SETTINGS = {**SMALL, "gates.mode": "stop", "iterations": "1", "evaluation.prompts": "30"}


def opener(chat, spoilt=None, made: list | None = None):
    """Scripted runtimes for an experiment; every engine that is opened is put into `made`."""

    @contextmanager
    def open_fakes():
        def open_engine(base: Path, _):
            engine = ScriptedEngine(World(chat, spoilt or {}).reply, chat.text_ids)
            if made is not None:
                made.append(engine)
            return engine

        yield replace(scripted_runtime(chat), open_engine=open_engine)

    return open_fakes


def run_tiny(folder, numbers, open_runtime, said=None, **settings) -> list[Trial]:
    say = (lambda text: None) if said is None else said.append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeds, "open_runtime", open_runtime)
        return seeds.run_tiny(folder, numbers, {**SETTINGS, **settings}, lambda at: None, say)


def values(trial: Trial) -> list[dict[str, float]]:
    return [dict(one.values) for one in trial.rows]


@pytest.mark.slow
def test_every_seed_runs_once_and_a_finished_bench_asks_nothing(tmp_path, chat):
    said: list[str] = []
    first = run_tiny(tmp_path, [7, 8], opener(chat), said)
    assert [trial.seed for trial in first] == [7, 8]
    assert said == ["seed 7: tiny (1 of 2)", "seed 8: tiny (2 of 2, about 0.0 h left)"]
    assert all(trial.stopped is None for trial in first)
    assert [[row.iteration for row in trial.rows] for trial in first] == [[-1, 0, 1]] * 2
    assert values(first[0])[1:] != values(first[1])[1:], "seeds differ"
    engines: list[ScriptedEngine] = []
    again = run_tiny(tmp_path, [7, 8], opener(chat, made=engines), said)
    assert engines == []
    assert again == first


@pytest.mark.slow
def test_a_refused_model_is_a_result_too(tmp_path, chat):
    found = run_tiny(tmp_path, [7], opener(chat, BAD_MODELS["length explosion"][1]))
    assert "M1 was refused" in found[0].stopped
    assert len(found[0].rows) == 2, "base and M0"
    assert seeds.check_claims(found)["every seed ran to the end"] is False


def row(win: float, exact: float, right: float, judge: float) -> dict[str, float]:
    return {
        "win_rate_vs_seed": win,
        "exact_score": exact,
        "answer_right": right,
        "answer_right_error": 0.01,
        "judge_pair_accuracy": judge,
    }


@pytest.mark.slow
def test_claims_are_made_of_what_a_run_reports(tmp_path, chat):
    found = run_tiny(tmp_path, [7], opener(chat), iterations="2")
    assert len(found[0].rows) == 4
    assert seeds.check_claims(found)["every seed ran to the end"]
    for one in found[0].rows[1:]:
        assert set(row(0, 0, 0, 0)) <= set(one.values)
    assert "longer_pair_accuracy" in seeds.COLUMNS
    levels = [one.values["longer_pair_accuracy"] for one in found[0].rows]
    assert len(set(levels)) == 1, "every model judges the same pairs, the base too"


def trials(**changes: dict[int, float]) -> list[Trial]:
    """Two seeds on which every claim holds; `changes` of the first: column={row: value}."""
    rows = [
        row(0, 3.4, 0.70, 0.80),
        row(0.5, 3.6, 0.80, 0.90),
        row(0.7, 4.0, 0.90, 0.92),
        row(0.9, 4.5, 0.95, 0.95),
    ]
    changed = [dict(one) for one in rows]
    for column, places in changes.items():
        for place, value in places.items():
            changed[place][column] = value
    return [
        Trial(seed, [ModelRow("tiny", seed, t, one) for t, one in enumerate(found, -1)], 1.0, None)
        for seed, found in ((1, changed), (2, rows))
    ]


def averages(found: list[Trial]) -> dict[int, seeds.Means]:
    return seeds.average_models(found)


def test_averages_are_means_with_standard_errors_over_seeds():
    means = averages(trials(win_rate_vs_seed={3: 0.8}))
    assert means[2]["win_rate_vs_seed"] == pytest.approx((0.85, 0.05))
    assert means[-1]["exact_score"] == pytest.approx((3.4, 0.0))
    assert list(means) == [-1, 0, 1, 2]
    assert seeds.average_values([{"x": 0.9}, {"x": 0.8}, {}], ["x", "y"]) == {
        "x": pytest.approx((0.85, 0.05))
    }


def test_no_model_wins_where_m0_is_perfect(tmp_path, chat):
    found = run_tiny(tmp_path, [7], opener(chat), iterations="0")
    with Store.read(tmp_path / "seed-7") as store:
        texts = {one.id: one.text for one in store.records(Prompt, origin="held_out")}
        given = {
            one.prompt_id: one.text for one in store.records(Response, iteration=0, model="M0")
        }
    won = [
        0.5 if score_answer(text, given.get(name, "")).score == BEST else 1.0
        for name, text in texts.items()
    ]
    limit = found[0].rows[0].values["win_rate_limit"]
    assert limit == pytest.approx(sum(won) / len(won))
    assert 0.5 < limit < 1.0


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"win_rate_vs_seed": {3: 0.49}}, "the last model beats M0 on every seed"),
        ({"win_rate_vs_seed": {3: 0.7}}, "mean win rate of the last model is at least 0.85"),
        ({"exact_score": {2: 3.1}}, "the mean exact score rises at every step"),
        (
            {"answer_right": {1: 0.99, 2: 0.99, 3: 0.6}},
            "right answers rise from M0 to the last model",
        ),
        ({"answer_right": {3: 0.86}}, "right answers never fall by more than two standard errors"),
        (
            {"judge_pair_accuracy": {3: 0.7}},
            "judge pair accuracy of the last model is at least M0's less 0.02",
        ),
        (
            {"judge_pair_accuracy": {1: 0.75}},
            "the seed stage raises judge pair accuracy by at least 0.05",
        ),
    ],
)
def test_every_claim_can_fail(changes, claim):
    assert all(seeds.check_claims(trials()).values())
    assert seeds.check_claims(trials(**changes))[claim] is False


def test_no_claim_holds_with_a_seed_that_stopped():
    good = trials()
    early = replace(good[0], rows=good[0].rows[:2], stopped="M1 was refused")
    for found in ([early, good[1]], [good[1], early], [early]):
        assert set(seeds.check_claims(found).values()) == {False}
    assert list(averages([early, good[1]])) == [-1, 0, 1, 2], "as far as the longest"


@pytest.mark.slow
def test_a_training_that_fails_ends_its_seed_and_not_the_bench(tmp_path, chat):
    def dies(job, folder, report):
        if job.method == "dpo" and job.seed == 7:
            raise TrainingError("the loss is not a number at step 3; lower the learning rate")
        return scripted_runtime(chat).train(job, folder, report)

    @contextmanager
    def open_fakes():
        with opener(chat)() as runtime:
            yield replace(runtime, train=dies)

    said: list[str] = []
    found = run_tiny(tmp_path, [7, 8], open_fakes, said)
    assert [trial.stopped is None for trial in found] == [False, True]
    assert "not a number" in found[0].stopped
    assert said[1].startswith("seed 7: tiny stopped: the loss is not a number")


def test_a_small_fall_of_right_answers_is_noise():
    assert seeds.check_claims(trials(answer_right={3: 0.88}))[
        "right answers never fall by more than two standard errors"
    ]


def test_the_command_prints_means_limits_and_verdicts(tmp_path, monkeypatch):
    good = trials()
    early = replace(good[0], rows=good[0].rows[:2], stopped="M1 was refused")
    for trial, limit in zip((early, good[1]), (0.9, 0.8), strict=True):
        trial.rows[0].values["win_rate_limit"] = limit
    monkeypatch.setattr(seeds, "run_tiny", lambda *_: [early, good[1]])
    ended = CliRunner().invoke(app, ["bench", "tiny", "--runs-dir", str(tmp_path)])
    assert ended.exception is None, ended.exception
    document = json.loads(ended.stdout.splitlines()[-1])
    assert document["seeds"] == [1, 2]
    assert document["mean_and_error"][0]["exact_score"] == pytest.approx([3.4, 0.0])
    assert document["mean_and_error"][3]["exact_score"] == [4.5, None], "of one seed no error"
    assert document["win_rate_limit"] == pytest.approx([0.85, 0.05])
    assert set(document["verdicts"].values()) == {False}
    assert "seeds that have it" in ended.stderr
    (reached,) = [line for line in ended.stderr.splitlines() if "seeds that have it" in line]
    assert [word for word in reached.split() if word.isdigit()] == ["2", "2", "1", "1"]
    assert "refused" in ended.stderr
