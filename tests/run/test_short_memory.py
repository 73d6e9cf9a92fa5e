"""What a run keeps of a training short of memory, and what may change between two commands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scripted_run import SMALL
from scripted_runtime import scripted_runtime

from selfreward_lite.data.store import Store
from selfreward_lite.report import html, summary
from selfreward_lite.run import loop
from selfreward_lite.run.prepare import load_or_create_settings
from selfreward_lite.system.errors import ConfigError, TrainingError

LEFT_OUT = 2


@pytest.fixture
def short(chat):
    """A runtime whose DPO leaves rows out after a step with all of them."""
    runtime = scripted_runtime(chat)

    def train(job, folder, report):
        if job.method == "sft":
            return replace(runtime.train(job, folder, report), backend="transformers 5")
        for step in range(1, 6):
            report({"step": step, "steps": 9, "values": {"loss": 9.0}})
        report({"message": "2 rows are left out", "left_out": LEFT_OUT, "begun_at": 0})
        done = runtime.train(job, folder, report)
        return replace(
            done,
            rows=done.rows - LEFT_OUT,
            left_out=LEFT_OUT,
            micro_batch=1,
            max_length=120,
            backend="transformers 5",
            number_format="float32",
            loss="mean over a step's pairs",
        )

    return replace(runtime, train=train)


@pytest.mark.slow
def test_rows_left_out_for_memory_are_counted_and_shown(tmp_path, short):
    folder = tmp_path / "run"
    with Store.write(folder) as store:
        wanted = {**SMALL, "iterations": "1", "gates.mode": "report"}
        settings = load_or_create_settings(store, wanted, "tiny")
        said = []
        loop.run(store, settings, short, said.append)
        assert store.drops(1, "training")["too long for the memory"] == LEFT_OUT
        assert "too long for the memory" not in store.drops(0, "training")
        assert store.gates(1)["counted"][0], "rows that were left out are not missing"
        steps = [step for step, name, _ in store.training(1) if name == "loss"]
        assert steps == [1, 2, 3], "those of the training before were forgotten"
        assert "2 rows are left out" in [at.message for at in said]
        (head, rows), page = summary.build_training_table(store), html.render_page(store)
        stages = summary.build_stage_table(store.stages()).rows
    assert head[-1] == "left out"
    assert rows == [
        ["M0", "transformers 5", "–", "–", "–", "–", "0"],
        ["M1", "transformers 5", "float32", "mean over a step's pairs", "1", "120"]
        + ["2 for want of memory"],
    ]
    assert any("2 × too long for the memory" in row[-1] for row in stages)
    assert "2 for want of memory" in page


def begin(folder: Path, chat, method: str) -> None:
    """A run whose training of this method, M0's or M1's, ended in its second step."""
    runtime = scripted_runtime(chat)

    def train(job, at, report):
        if job.method == method:
            report({"step": 1, "steps": 9, "values": {"loss": 0.5}})
            raise TrainingError("died")
        return runtime.train(job, at, report)

    with Store.write(folder) as store:
        settings = load_or_create_settings(store, {**SMALL, "iterations": "1"}, "tiny")
        with pytest.raises(TrainingError):
            loop.run(store, settings, replace(runtime, train=train), lambda at: None)


def change(folder: Path, **wanted: int) -> dict[str, dict[str, int]]:
    with Store.write(folder) as store:
        named = {name.replace("__", "."): str(value) for name, value in wanted.items()}
        load_or_create_settings(store, named, None)
        settings: dict[str, dict[str, int]] = store.fact("settings")
        return settings


def test_micro_batch_may_change_and_max_length_be_lowered(tmp_path, chat):
    folder = tmp_path / "run"
    begin(folder, chat, "sft")
    changed = change(folder, sft__micro_batch=1, dpo__micro_batch=2, dpo__max_length=200)
    assert (changed["sft"]["micro_batch"], changed["dpo"]["micro_batch"]) == (1, 2)
    assert changed["dpo"]["max_length"] == 200
    with pytest.raises(ConfigError, match=r"dpo\.max_length=200, which may be lowered only"):
        change(folder, dpo__max_length=256)
    with pytest.raises(ConfigError, match=r"training of M0 has begun with sft\.max_length=256"):
        change(folder, sft__max_length=200)
    assert change(folder, training__processes=2)["training"] == {"processes": 2}
    with pytest.raises(ConfigError, match=r"started with other settings \(dpo\)"):
        change(folder, dpo__epochs=3)


def test_max_length_of_a_training_under_way_stays(tmp_path, chat):
    folder = tmp_path / "run"
    begin(folder, chat, "dpo")
    with pytest.raises(ConfigError, match=r"M1 has begun with dpo\.max_length=256.*micro_batch"):
        change(folder, dpo__max_length=200)
    assert change(folder, sft__max_length=200)["sft"]["max_length"] == 200
