"""Early warnings: each warns of what it is for, and says what it means."""

import math

import pytest
import scripted_run

from selfreward_lite.data.records import Judgment, Outcome, Prompt, Response, make_id
from selfreward_lite.data.store import Store
from selfreward_lite.report import early_warnings as signs
from selfreward_lite.report.early_warnings import SIGNS, Reading, early_warnings


@pytest.fixture
def run(tmp_path):
    scripted_run.copy(tmp_path / "mine", **{"prompts.count": "30"})
    with Store.write(tmp_path / "mine") as store:
        yield store


def values(store: Store, model: str) -> dict[str, float]:
    return {one.sign.name: one.value for one in early_warnings(store) if one.model == model}


def test_every_sign_is_read_off_a_run_that_has_it(run):
    assert set(values(run, "M2")) == {sign.name for sign in SIGNS} - _untrained()
    assert {one.model for one in early_warnings(run)} == {"M0", "M1", "M2"}
    assert "length ratio" not in values(run, "M0"), "there is none before it"


def _untrained() -> set[str]:
    """Scripted trainers report no rewards."""
    return {f"log-probability of {which}, change" for which in ("chosen", "rejected")}


@pytest.mark.parametrize(
    ("metric", "value", "sign"),
    [
        ("repetitive_share", 0.5, "share that repeats itself"),
        ("cut_share", 0.2, "share that ends by itself"),
        ("judge_read_share", 0.5, "share of judgments read"),
        ("judge_written_share", 0.1, "share of judgments forced"),
        ("judge_pair_accuracy", 0.0, "judge's pair accuracy less that of the longer answer"),
        ("canary_score", 5.0, "hostile responses, points above honest bad ones"),
    ],
)
def test_a_bad_measurement_warns_and_is_told_what_it_means(run, metric, value, sign):
    run.measure(2, **{metric: value, "honest_bad_score": 1.0})
    (found,) = [one for one in early_warnings(run) if one.model == "M2" and one.sign.name == sign]
    assert found.warns
    assert f"M2, {sign}: {found.sign.means}" in signs.list_advice(early_warnings(run))
    head, rows = signs.build_sign_table(early_warnings(run))
    assert head == ["sign", "should be", "M0", "M1", "M2"]
    assert next(row for row in rows if row[0] == sign)[4].startswith("⚠ ")


@pytest.mark.parametrize(("judge", "warns"), [(0.69, True), (0.68, True), (0.7, False)])
def test_a_judge_must_be_above_the_longer_answer(run, judge, warns):
    run.measure(2, judge_pair_accuracy=judge, longer_pair_accuracy=0.69)
    name = "judge's pair accuracy less that of the longer answer"
    (found,) = [one for one in early_warnings(run) if one.model == "M2" and one.sign.name == name]
    assert (found.value, found.warns) == (pytest.approx(judge - 0.69), warns)
    assert found.sign.limits == "above 0"


def test_who_wrote_scores_is_unknown_in_older_runs(run):
    run._db.execute("DELETE FROM metrics WHERE name = 'judge_written_share'")
    assert "share of judgments forced" not in values(run, "M2")
    assert "share of judgments read" in values(run, "M2")


def test_saturation_is_seen_in_the_scores_that_were_trained_on(run):
    run._db.execute(
        "UPDATE record_judgment SET score = 5.0 WHERE iteration = 2 AND score IS NOT NULL"
    )
    found = {one.sign.name: one for one in early_warnings(run) if one.model == "M2"}
    assert (
        found["mean score given"].value,
        found["share of top scores"].value,
        found["tie rate"].value,
    ) == (5.0, 1.0, 1.0)
    assert all(
        found[name].warns for name in ("mean score given", "share of top scores", "tie rate")
    )


def test_log_probabilities_are_the_late_rewards_over_beta(run):
    for step in range(1, 9):
        run.log_training(2, step, {"rewards/chosen": -0.02 * (step > 6), "rewards/rejected": -0.1})
    found = {one.sign.name: one for one in early_warnings(run) if one.model == "M2"}
    assert found["log-probability of chosen, change"].value == pytest.approx(-0.02 / 0.1)
    assert found["log-probability of chosen, change"].warns
    assert found["log-probability of rejected, change"].value == pytest.approx(-1.0)
    assert not found["log-probability of rejected, change"].warns


def test_rank_agreement_is_kendalls_tau_over_the_same_answers(tmp_path):
    with Store.write(tmp_path / "r") as store:
        store.state("run", "seed 0")
        prompt = Prompt(make_id("seed 0", Prompt, 0, "ranked", 0), 0, "ranked", 0, "p")
        answers = [
            Response(
                make_id("seed 0", Response, 0, "human", prompt.id, rank),
                0,
                "human",
                prompt.id,
                rank,
                "t",
                "stop",
                0,
                rank,
            )
            for rank in range(3)
        ]
        judged = [
            Judgment(
                f"{model}{place}", model, f"M{model}", answer.id, 0, "t", "stop", 1, score, None
            )
            for model, scores in ((0, (5.0, 3.0, 1.0)), (1, (3.0, 5.0, 1.0)))
            for place, (answer, score) in enumerate(zip(answers, scores, strict=True))
        ]
        store.commit(0, "x", "all", Outcome((prompt, *answers, *judged)))
        assert signs.rank_agreement(store, 1) == pytest.approx(1 / 3)  # two of three pairs agree
        assert signs.rank_agreement(store, 2) is None


def test_not_a_number_warns():
    assert all(sign.warns(math.nan) for sign in SIGNS)
    assert Reading("M1", SIGNS[0], 4.9).warns
    assert not Reading("M1", SIGNS[0], 4.6).warns


def test_without_a_model_there_is_nothing_to_warn_of(tmp_path):
    with Store.write(tmp_path / "new") as store:
        assert early_warnings(store) == []
        assert signs.list_advice([]) == []
