"""The controls that the papers have: no EFT, and training on perfect responses alone."""

import json
from pathlib import Path

import pytest
from scripted_run import run

from selfreward_lite import config
from selfreward_lite.data.records import (
    Judgment,
    Prompt,
    Response,
)
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.chat_template import user
from selfreward_lite.run import plan
from selfreward_lite.run.context import RunContext


def rows_of(folder: Path, iteration: int) -> list[dict]:
    """The scripted trainer keeps the rows that it was given in place of weights."""
    return json.loads(
        (folder / f"M{iteration}" / "adapter" / "adapter_model.safetensors").read_text()
    )


def test_without_eft_m0_is_the_base_and_passes_the_gates(tmp_path):
    run(
        tmp_path / "bare",
        iterations="1",
        **{"seed_stage.eft": "false", "gates.mode": "stop", "gates.max_canaries_chosen": "50"},
    )
    assert rows_of(tmp_path / "bare", 0) == []
    with Store.read(tmp_path / "bare") as store:
        assert store.gates(0)
        assert all(passed for passed, _ in store.gates(0).values())
        assert "moved" not in store.gates(0)
        assert not store.is_done(0, "eft_judgments")
        assert store.metrics(0)["training_rows"] == 0
        settings = config.parse(store.fact("settings"))
        bare = RunContext(
            store, settings, ChatFormat.load(TINY_MODEL), TINY_MODEL, None, lambda at: None
        )
        assert bare.role(0, settings.judge.draw, 0).adapter is None, "llama.cpp is given none"
        assert bare.role(1, settings.judge.draw, 1).adapter is not None
    run(tmp_path / "seed", iterations="0", **{"seed_stage.eft": "false"})
    with Store.write(tmp_path / "seed") as store:
        store.measure(0, training_train_seconds=0.0)  # what a real trainer says of no row
        store.spend(0, "base_eval_judgments", 5.0)
        costs = plan.measure_costs(store, config.parse(store.fact("settings")))
    assert costs["dpo"] > costs["sft"] > 0, "a training that is still to come is not free"


@pytest.mark.slow
def test_positive_examples_are_the_perfect_responses_only(tmp_path, chat):
    run(
        tmp_path / "r",
        iterations="1",
        **{"schedule.0.train_on": "positive", "judge.count": "1", "prompts.count": "20"},
    )
    with Store.read(tmp_path / "r") as store:
        score = {
            one.response_id: one.score for one in store.records(Judgment, iteration=1, model="M0")
        }
        asked = {one.id: one.text for one in store.records(Prompt, iteration=1)}
        perfect = [
            (list(chat.prompt_ids(user(asked[one.prompt_id]))), list(chat.completion_ids(one.text)))
            for one in store.records(Response, iteration=1, model="M0")
            if score.get(one.id) == 5.0 and one.finish == "stop"
        ]
    assert perfect
    assert [
        (row["prompt_ids"], row["completion_ids"]) for row in rows_of(tmp_path / "r", 1)
    ] == perfect
