"""The benches: what they average, what they claim and when they must not, and that they go on where they stopped."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_run import SMALL
from scripted_runtime import scripted_runtime
from scripted_world import BAD_MODELS, World

from selfreward_lite.bench import seeds
from selfreward_lite.bench.seeds import Result
from selfreward_lite.data.records import Prompt, Response
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny.score import BEST, score_answer
from selfreward_lite.engine.scripted import ScriptedEngine
from selfreward_lite.system.errors import TrainingError

WANTED = {**SMALL, "gates.mode": "stop", "iterations": "1", "evaluation.prompts": "30"}


def opener(chat, spoilt=None, made: list | None = None):
    """Scripted runtime for a bench; every engine that is opened is put into `made`."""

    @contextmanager
    def open_fakes():
        def open_engine(base: Path, _):
            engine = ScriptedEngine(World(chat, spoilt or {}).reply, chat.text_ids)
            if made is not None:
                made.append(engine)
            return engine

        yield replace(scripted_runtime(chat), open_engine=open_engine)

    return open_fakes


def test_every_seed_is_run_once_and_a_finished_bench_asks_nothing(tmp_path, chat):
    said: list[str] = []
    first = seeds.run_seeds(tmp_path, [7, 8], WANTED, opener(chat), lambda at: None, said.append)
    assert [result.seed for result in first] == [7, 8]
    assert said == ["seed 7 (1 of 2)", "seed 8 (2 of 2)"]
    assert all(result.stopped is None and len(result.rows) == 3 for result in first)
    assert first[0].document["iterations"] != first[1].document["iterations"], "seeds differ"
    engines: list[ScriptedEngine] = []
    again = seeds.run_seeds(
        tmp_path, [7, 8], WANTED, opener(chat, made=engines), lambda at: None, said.append
    )
    assert engines == []
    assert [result.rows for result in again] == [result.rows for result in first]


def test_a_refused_model_is_a_result_too(tmp_path, chat):
    results = seeds.run_seeds(
        tmp_path,
        [7],
        WANTED,
        opener(chat, BAD_MODELS["length explosion"][1]),
        lambda at: None,
        lambda text: None,
    )
    assert "M1 was refused" in results[0].stopped
    assert len(results[0].rows) == 2, "base and M0"
    assert seeds.verdicts(results)["every seed ran to the end"] is False


def row(win: float, exact: float, right: float, judge: float) -> dict[str, float]:
    return {
        "win_rate_vs_seed": win,
        "exact_score": exact,
        "answer_right": right,
        "answer_right_error": 0.01,
        "judge_pair_accuracy": judge,
    }


def test_claims_are_made_of_what_a_run_really_reports(tmp_path, chat):
    found = seeds.run_seeds(
        tmp_path,
        [7],
        {**WANTED, "iterations": "2"},
        opener(chat),
        lambda at: None,
        lambda text: None,
    )
    assert len(found[0].rows) == 4
    assert seeds.verdicts(found)["every seed ran to the end"]
    for name in row(0, 0, 0, 0):
        assert [name for place in found[0].rows[1:] if place[name] is None] == []


def results(**changes: dict[int, float]) -> list[Result]:
    """Two seeds on which everything holds; `changes` sets a column of the first seed's row: column={row: value}."""
    rows = [
        row(0, 3.4, 0.70, 0.80),
        row(0.5, 3.6, 0.80, 0.90),
        row(0.7, 4.0, 0.90, 0.92),
        row(0.9, 4.5, 0.95, 0.95),
    ]
    changed = [dict(one) for one in rows]
    for column, values in changes.items():
        for place, value in values.items():
            changed[place][column] = value
    return [
        Result(seed, {"base": found[0], "iterations": found[1:]}, None, limit)
        for seed, found, limit in ((1, changed, 0.9), (2, rows, 0.8))
    ]


def test_averages_are_means_with_standard_errors_over_seeds():
    means = seeds.averages(results(win_rate_vs_seed={3: 0.8}))
    assert means[3]["win_rate_vs_seed"] == pytest.approx((0.85, 0.05))
    assert means[0]["exact_score"] == pytest.approx((3.4, 0.0))
    assert len(means) == 4
    assert seeds.win_rate_limit(results()) == pytest.approx((0.85, 0.05))
    assert seeds.win_rate_limit([replace(results()[0], win_rate_limit=None)]) is None


def test_no_model_wins_where_m0_is_perfect(tmp_path, chat):
    found = seeds.run_seeds(
        tmp_path,
        [7],
        {**WANTED, "iterations": "0"},
        opener(chat),
        lambda at: None,
        lambda text: None,
    )
    with Store.read(tmp_path / "seed-7") as store:
        texts = {one.id: one.text for one in store.records(Prompt, origin="held_out")}
        given = {
            one.prompt_id: one.text for one in store.records(Response, iteration=0, model="M0")
        }
    won = [
        0.5 if score_answer(text, given.get(name, "")).score == BEST else 1.0
        for name, text in texts.items()
    ]
    assert found[0].win_rate_limit == pytest.approx(sum(won) / len(won))
    assert 0.5 < found[0].win_rate_limit < 1.0


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
    assert all(seeds.verdicts(results()).values())
    assert seeds.verdicts(results(**changes))[claim] is False


def test_with_a_seed_that_stopped_no_claim_holds():
    good = results()
    early = replace(
        good[0],
        document={"base": good[0].rows[0], "iterations": good[0].rows[1:2]},
        stopped="M1 was refused",
    )
    for found in ([early, good[1]], [good[1], early], [early]):
        assert set(seeds.verdicts(found).values()) == {False}
    assert seeds.reached([early, good[1]]) == [2, 2, 1, 1]


def test_a_training_that_fails_ends_its_seed_and_not_the_bench(tmp_path, chat):
    def dies(job, folder, report):
        if job.method == "dpo" and job.seed == 7:
            raise TrainingError("the loss is not a number at step 3; lower the learning rate")
        return scripted_runtime(chat).train(job, folder, report)

    @contextmanager
    def open_fakes():
        with opener(chat)() as runtime:
            yield replace(runtime, train=dies)

    found = seeds.run_seeds(
        tmp_path, [7, 8], WANTED, open_fakes, lambda at: None, lambda text: None
    )
    assert [result.stopped is None for result in found] == [False, True]
    assert "not a number" in found[0].stopped


def test_a_small_fall_of_right_answers_is_noise():
    assert seeds.verdicts(results(answer_right={3: 0.88}))[
        "right answers never fall by more than two standard errors"
    ]


# -- one setting at a time ----------
