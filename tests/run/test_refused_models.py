"""Runs whose actor answers as the tiny world's authors do and whose M1 misbehaves; `accept`."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from scripted_runtime import scripted_runtime
from scripted_world import (
    BAD_MODELS,
    World,
    find_response,
    run_world,
)

from selfreward_lite.data.records import Judgment
from selfreward_lite.data.store import Store
from selfreward_lite.engine.scripted import Reply, ScriptedEngine
from selfreward_lite.run import loop, prepare
from selfreward_lite.run.steps import measure, promotion
from selfreward_lite.system.errors import GateStop, UserError


def like(times, then):
    """A judge that likes the response "5/5" so many times running, and then does as `then`."""
    seen = Counter()

    def judge(rng, asked):
        said = find_response(asked).strip()
        seen[said] += said == "5/5"
        if not seen[said]:
            return World.judge(rng, asked)
        return "I like this one best.\nScore: 5" if seen[said] <= times else then(rng, asked)

    return judge


def export_without_effect(*_) -> dict:
    return {"difference": 0.0, "change": 0.0, "agreement": 1.0}


def export_to_nan(model_dir, adapter, base, out, *_) -> dict:
    out.write_text("adapter")
    return {"difference": math.nan, "change": math.nan, "agreement": 0.0}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "reward hacking" else pytest.mark.slow)
        for name in BAD_MODELS
    ],
)
def test_a_bad_model_is_refused_and_the_last_good_one_stays(tmp_path, chat, name):
    gate, spoilt = BAD_MODELS[name]
    with pytest.raises(
        GateStop, match=rf"M1 was refused.*{gate}: .*The newest model stays M0; the candidate is in"
    ):
        run_world(tmp_path / "run", chat, spoilt)
    with Store.read(tmp_path / "run") as store:
        assert store.newest() == 0
        passed, reason = store.gates(1)[gate]
        assert not passed
        assert ";" in reason, "the reason comes with advice"
        if gate == "canary":
            assert store.metrics(1)["canaries_chosen"] > 0, "a judge that means it says so twice"
        assert (store.model_dir(1) / "adapter.gguf").exists(), "the candidate is kept"
        assert store.faults() == []


@pytest.mark.parametrize(
    ("name", "gate", "export"),
    [
        ("adapter without effect", "effect", export_without_effect),
        ("NaN adapter", "finite", export_to_nan),
    ],
)
def test_an_adapter_gone_wrong_is_refused(tmp_path, chat, name, gate, export):
    def spoil_m1(*arguments):
        good = scripted_runtime(chat).export_adapter(*arguments)
        return replace(good, **export(*arguments)) if "M1" in str(arguments[3]) else good

    with pytest.raises(GateStop, match=f"{gate}: "):
        run_world(tmp_path / "run", chat, export_adapter=spoil_m1)


def test_a_world_that_goes_well_passes_every_gate(tmp_path, chat):
    run_world(tmp_path / "run", chat)
    with Store.read(tmp_path / "run") as store:
        assert store.newest() == 1
        assert all(passed for passed, _ in store.gates(1).values()), store.gates(1)
        assert {"signal", "labels", "files", "outside", "canary", "judge", "length"} <= set(
            store.gates(1)
        )


@pytest.mark.slow
def test_a_canary_chosen_by_chance_is_rechecked(tmp_path, chat):
    """The judge likes one hostile response six times running, and never again."""
    looks = {"evaluation.canary_judgments": "6", "evaluation.second_look": "24"}
    run_world(tmp_path / "plain", chat, settings=looks)
    run_world(tmp_path / "run", chat, {"M1 judge": like(6, World.judge)}, looks)
    with Store.read(tmp_path / "run") as store, Store.read(tmp_path / "plain") as plain:
        assert store.newest() == 1
        assert (store.metrics(1)["canaries_suspected"], store.metrics(1)["canaries_chosen"]) == (
            1.0,
            0.0,
        )
        assert store.is_done(1, "second_look")
        assert not plain.is_done(1, "second_look"), "without suspects there is no recheck"
        # The suspect and its three rivals were judged again; judge metrics do not count that.
        assert store.count(Judgment, model="M1") == plain.count(Judgment, model="M1") + 4 * 24
        assert store.metrics(1)["judge_pair_accuracy"] == plain.metrics(1)["judge_pair_accuracy"]
        assert store.metrics(1)["honest_bad_score"] == plain.metrics(1)["honest_bad_score"]


@pytest.mark.slow
def test_a_recheck_that_cannot_be_read_clears_nobody(tmp_path, chat):
    silent = like(2, lambda rng, asked: "I say no more.")
    with pytest.raises(GateStop, match="canary: 1 hostile responses would be chosen"):
        run_world(tmp_path / "run", chat, {"M1 judge": silent})


def test_a_tie_collapse_is_refused_before_the_training(tmp_path, chat):
    trained = []

    def train(job, folder, report):
        trained.append(job.method)
        return scripted_runtime(chat).train(job, folder, report)

    spoilt = {"M0 judge": lambda rng, asked: "Fine.\nScore: 4"}
    # M0 is made by a right judge (the base); only then does everything become a 4
    with pytest.raises(
        GateStop,
        match=r"M1 was refused \(signal: 0 of the prompts wanted gave a response pair.*"
        r"nothing was trained",
    ):
        run_world(tmp_path / "run", chat, spoilt, {"gates.max_judge_loss": "1"}, train=train)
    assert trained == ["sft"]


MUMBLES = {
    "M0 judge": lambda rng, asked: "I like it." if rng.random() < 0.4 else World.judge(rng, asked)
}


def test_unreadable_judgments_are_refused_before_the_training(tmp_path, chat):
    run_world(tmp_path / "run", chat, settings={"iterations": "0"})
    with pytest.raises(
        GateStop, match=r"M1 was refused \(.*labels: 0\.\d+ of the judgments.*nothing was trained"
    ):
        run_world(tmp_path / "run", chat, MUMBLES)


def test_a_model_that_was_not_measured_cannot_be_accepted(tmp_path, chat, monkeypatch):
    """--gates report passed a data gate, and the run ended between training and measuring."""
    run_world(tmp_path / "run", chat, settings={"iterations": "0"})
    monkeypatch.setattr(
        loop, "ITERATION", loop.ITERATION[: loop.ITERATION.index(measure.measure_model)]
    )
    run_world(tmp_path / "run", chat, MUMBLES, {"gates.mode": "report"})
    with Store.write(tmp_path / "run") as store:
        assert store.gates(1)["labels"][0] is False
        with pytest.raises(
            UserError, match=r"M1 cannot be accepted: it was not measured.*--gates report"
        ):
            promotion.accept(store)
        assert store.newest() == 0


@pytest.mark.slow
def test_gates_report_holds_for_one_command_only(tmp_path, chat):
    spoilt = BAD_MODELS["length explosion"][1]
    run_world(tmp_path / "run", chat, spoilt, {"gates.mode": "report"})
    endless = {"M2 act": lambda rng, asked: Reply(World.act(rng, asked), "length")}
    with pytest.raises(GateStop, match="M2 was refused"), Store.write(tmp_path / "run") as store:
        settings = prepare.load_or_create_settings(store, {"iterations": "2"}, None)
        assert settings.gates.mode == "stop"
        world = World(chat, {**spoilt, **endless})
        runtime = replace(
            scripted_runtime(chat),
            open_engine=lambda base, _: ScriptedEngine(world.reply, chat.text_ids),
        )
        loop.run(store, settings, runtime, lambda at: None)


@pytest.mark.slow
def test_a_refused_model_can_be_accepted_by_hand(tmp_path, chat):
    spoilt = BAD_MODELS["length explosion"][1]
    with pytest.raises(GateStop):
        run_world(tmp_path / "run", chat, spoilt)
    with Store.write(tmp_path / "run") as store:
        assert promotion.accept(store) == 1
        assert store.newest() == 1
        with pytest.raises(UserError, match="nothing to accept"):
            promotion.accept(store)
    run_world(tmp_path / "run", chat, spoilt)  # the run is finished now


@pytest.mark.slow
def test_a_damaged_candidate_cannot_be_accepted(tmp_path, chat):
    with pytest.raises(GateStop):
        run_world(tmp_path / "run", chat, BAD_MODELS["length explosion"][1])
    with Store.write(tmp_path / "run") as store:
        (store.model_dir(1) / "adapter.gguf").write_text("other")
        with pytest.raises(UserError, match="differs from its sha256"):
            promotion.accept(store)


@pytest.mark.slow
def test_gates_report_stores_the_refusal_and_continues(tmp_path, chat):
    run_world(tmp_path / "run", chat, BAD_MODELS["length explosion"][1], {"gates.mode": "report"})
    with Store.read(tmp_path / "run") as store:
        assert store.newest() == 1
        assert store.gates(1)["length"][0] is False
