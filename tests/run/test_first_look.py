"""A base that cannot judge is told so after at most a hundred judgments."""

import random
from contextlib import suppress

import pytest
from scripted_world import World, run_world

from selfreward_lite.data.records import Judgment, Prompt
from selfreward_lite.data.store import Store
from selfreward_lite.engine.scripted import Reply
from selfreward_lite.run.steps.seed_stage import FIRST_LOOK
from selfreward_lite.system.errors import GateStop

LARGER = {"seed_stage.eval_prompts": "40", "seed_stage.train_examples": "400"}


def always_four(rng: random.Random, asked: str) -> str:
    return "Hm.\nScore: 4"


def writes_nothing(rng: random.Random, asked: str) -> Reply:
    """Cannot write a score, but its probabilities know one."""
    score = int(World.judge(rng, asked)[-1])
    shares = [0.02] * 6
    shares[score] = 0.5
    return Reply("Well, well.", closing=tuple(shares), closing_text="\nScore: ")


def inverted(rng: random.Random, asked: str) -> str:
    return f"Hm.\nScore: {5 - int(World.judge(rng, asked)[-1])}"


@pytest.mark.parametrize(
    ("judge", "reason"),
    [
        (always_four, "scores are 4, so the judge tells nothing apart"),
        (writes_nothing, "scores were written as asked, so EFT has nothing to learn from"),
        (inverted, "so chance is better"),
    ],
)
def test_base_that_cannot_judge_ends_the_run_early(tmp_path, chat, judge, reason):
    with pytest.raises(GateStop, match=reason):
        run_world(tmp_path / "run", chat, {"base judge": judge}, LARGER)
    with Store.read(tmp_path / "run") as store:
        assert 0 < store.count(Judgment) <= 100
        assert reason in store.refusals(0)["ability"]
        assert not store.is_done(0, "base_eval_judgments")


@pytest.mark.slow
def test_told_to_report_the_run_goes_on(tmp_path, chat):
    wanted = {**LARGER, "gates.mode": "report", "iterations": "0"}
    with pytest.raises(GateStop, match="nothing to train M0 on"):
        run_world(tmp_path / "run", chat, {"base judge": always_four}, wanted)
    with Store.read(tmp_path / "run") as store:
        assert store.is_done(0, "base_eval_judgments") and "ability" in store.refusals(0)


@pytest.mark.slow
def test_without_eft_a_base_that_writes_nothing_goes_on_with_forced_scores(tmp_path, chat):
    """The run says so, and its iterations make pairs of forced scores."""
    said: list[str] = []
    judges = {"base judge": writes_nothing, "M0 judge": writes_nothing}
    run_world(
        tmp_path / "run",
        chat,
        judges,
        {**LARGER, "seed_stage.eft": "false", "gates.mode": "report"},
        watch=lambda progress: said.append(progress.message),
    )
    assert any(
        "the base as judge: 0 of 99 scores were written as asked, 99 forced" in one for one in said
    )
    with Store.read(tmp_path / "run") as store:
        drawn = store.made_by(Judgment, 0, 1)
        assert drawn and {one.source for one in drawn} == {"forced"}
        assert store.gates(1)["signal"][0]


def test_where_constraints_decide_a_base_that_cannot_judge_is_only_warned_of(tmp_path, chat):
    said: list[str] = []
    wanted = {
        **LARGER,
        "pairs.verify": "score",
        "prompts.constraints": "1",
        "seed_stage.eft": "false",
        "iterations": "0",
    }
    judges = {"base judge": always_four, "M0 judge": always_four}

    def watch(progress):
        said.append(progress.message)

    with suppress(GateStop):  # of later gates
        run_world(tmp_path / "run", chat, judges, wanted, watch=watch)
    assert any(one.startswith("warning: 99 of 99 scores are 4") for one in said)
    with Store.read(tmp_path / "run") as store:
        assert store.gates(0)["ability"][0] is True
        assert store.is_done(0, "base_eval_judgments")


def test_forced_scores_are_no_labels_where_eft_taught_to_write_them(tmp_path, chat):
    wanted = {"gates.mode": "report", "iterations": "1"}
    with suppress(GateStop):  # without pairs there is nothing to train M1 on
        run_world(tmp_path / "run", chat, {"M0 judge": writes_nothing}, wanted)
    with Store.read(tmp_path / "run") as store:
        assert {one.source for one in store.made_by(Judgment, 0, 1)} == {"forced"}
        assert store.refusals(1)["labels"].startswith("0 of the judgments to train on")


def test_a_resumed_run_judges_nothing_twice(tmp_path, chat):
    for _ in range(2):
        with pytest.raises(GateStop):
            run_world(tmp_path / "run", chat, {"base judge": always_four}, LARGER)
    with Store.read(tmp_path / "run") as store:
        assert {one.index for one in store.records(Judgment)} == {FIRST_LOOK}
        assert store.count(Judgment) <= 100


@pytest.mark.parametrize(
    "wanted",
    [200, pytest.param(1_600, marks=pytest.mark.slow)],
    ids=["two rounds", "all data in one round"],
)
def test_eft_stops_when_it_cannot_reach_a_tenth(tmp_path, chat, wanted):
    """With three different scores for four answers, no set agrees with the ranks."""

    def blind(rng: random.Random, asked: str) -> str:
        return f"Hm.\nScore: {rng.choice((1, 2, 3))}"

    with pytest.raises(GateStop, match=r"ranked prompts gave \d+ EFT examples, so all of them"):
        run_world(
            tmp_path / "run",
            chat,
            {"base judge": blind},
            {**LARGER, "seed_stage.attempts": "1", "seed_stage.train_examples": f"{wanted}"},
        )
    with Store.read(tmp_path / "run") as store:
        assert store.refusals(0).keys() == {"yield"}, "and status says so"
        ranked, asked = store.count(Prompt, origin="ranked"), store.done_items(0, "eft_judgments")
        assert wanted > 200 or len(asked) < ranked / 2, "most were never asked"
