"""The card's bench: what it keeps when time runs out or a part fails, what follows from its figures; and all of it on a CPU."""

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfreward_lite import config, plan
from selfreward_lite.bench import card, card_table
from selfreward_lite.bench.card import Wanted
from selfreward_lite.cli import app
from selfreward_lite.errors import UserError
from selfreward_lite.shapes import SHAPES


def wanted(folder, **changes) -> Wanted:
    given = {"shape": "10m", "vram": None, "seconds": 60.0, "only": None, "folder": folder, "command": "bench card"}
    return Wanted(**{**given, **changes})


def test_every_figure_is_kept_as_it_comes_and_what_has_no_time_is_named(tmp_path, monkeypatch):
    out, seen = tmp_path / "card.json", []

    def slow():
        seen.append(json.loads(out.read_text())["found"])
        time.sleep(0.3)
        return {"tokens_per_s": 2.0}, None

    def breaks():
        return {}, "no room on the card"

    parts = [("a", lambda: ({"tokens_per_s": 1.0}, None)), ("b", slow), ("c", breaks), ("d", lambda: 1 / 0)]
    monkeypatch.setattr(card, "_parts", lambda *_: iter(parts))
    monkeypatch.setattr(card, "in_child", lambda _, name, seconds: dict(parts)[name]())
    found = card.measure(wanted(tmp_path, seconds=0.2), out, lambda words: None)
    assert seen[0]["a"]["tokens_per_s"] == 1.0, "written before the next began"
    assert found["left_out"] == ["c", "d"]
    monkeypatch.setattr(card, "_parts", lambda *_: iter(parts[:3]))
    found = card.measure(wanted(tmp_path), out, lambda words: None)
    assert found["failed"] == {"c": "no room on the card"}
    assert json.loads(out.read_text()) == found
    assert found["hours"] == {}, "too little is known"


def a_document(**changes) -> dict:
    found = {
        "q8_0: 64 sequences": {"tokens_per_s": 1000.0, "seconds": 10.0, "generated": 10_000, "read": 20_000},
        "q8_0: prompts alone": {"tokens_per_s": 5000.0},
        "DPO, transformers, 1024 tokens": {"seconds_of_a_pair": 1.0, "tokens_of_a_pair": 2048},
        "DPO, unsloth, 1024 tokens": {"seconds_of_a_pair": 0.5, "tokens_of_a_pair": 2048},
    }
    there = {"name": "NVIDIA GeForce RTX 3090"}
    return {"found": found, "card": there, "predicted": {"seconds": {"M1 x": 3600.0, "M0 y": 9.0}}, **changes}


def test_hours_follow_from_the_figures_and_scale_by_the_vendors(tmp_path):
    asked = wanted(tmp_path, shape="llama-3-8b")
    found = card.hours(asked, a_document())
    settings, llama = config.load("overnight"), SHAPES["llama-3-8b"]
    costs = plan.priced(settings, llama, plan.Rates((10 - 20_000 / 5000) / 10_000, 1 / 5000, 0.5 / 2048), "x")
    expected = sum(plan.seconds(plan.counts(settings, range(1, 2), seed_stage=False), costs).values()) / 3600
    assert found["hours"]["here"] == pytest.approx(expected)
    assert found["hours"]["RTX 3090 (estimate)"] == pytest.approx(expected), "itself"
    assert found["hours"]["RTX 4090 (estimate)"] < expected < found["hours"]["T4 (estimate)"]
    assert found["predicted_hours"] == pytest.approx(1.0)
    none = card.hours(asked, a_document(card=None))
    assert list(none["hours"]) == ["here"], "of no card, no other card follows"


def test_the_same_arithmetic_prices_a_plan():
    settings, llama = config.load("overnight"), SHAPES["llama-3-8b"]
    speeds = plan.KNOWN["RTX 3090"]
    costs = plan.estimated(settings, llama, speeds, "RTX 3090")
    twice = plan.estimated(settings, llama, plan.Speeds(speeds.memory, 2 * speeds.bandwidth, 2 * speeds.operations), "x")
    assert twice.dpo == pytest.approx(costs.dpo / 2)
    assert twice.judgment == pytest.approx(costs.judgment / 2)


def test_the_readmes_table_is_made_of_the_files_that_are_there():
    root = Path(__file__).parent.parent
    documents = [json.loads(path.read_text()) for path in sorted((root / ".github" / "cards").glob("card-*.json"))]
    assert card_table.table(documents) in (root / "README.md").read_text(encoding="utf-8")


def test_a_measured_card_stands_beside_its_estimate():
    known = a_document(shape="llama-3-8b", vram=None, hours={"here": 7.25})
    known["found"] |= {"q8_0: naive loop": {"tokens_per_s": 50.0}, "q8_0: 32 sequences": {"tokens_per_s": 700.0}}
    (row,) = [line for line in card_table.table([known]).splitlines() if line.startswith("| RTX 3090 ")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:6] == ["1000", "20.00", "not measured yet", "0.50", "7.25"]
    assert float(cells[6]) > 0
    assert "not measured yet" in card_table.table([known]).split("RTX 4090")[1]
    for other in ({"vram": 16 * 10**9}, {"shape": "10m"}, {"card": {"name": "NVIDIA GeForce RTX 3090 Laptop GPU"}}):
        assert "7.25" not in card_table.table([known | other]), "of another card, or of a part of it"
    whole = known | {"found": known["found"] | {"more": {}}, "hours": {"here": 8.5}}
    assert "8.50" in card_table.table([whole, known]), "the fuller file of the two"


def test_an_unknown_part_or_shape_is_one_line(tmp_path):
    ended = CliRunner().invoke(app, ["bench", "card", "--only", "magic"])
    assert ended.exit_code == 2
    ended = CliRunner().invoke(app, ["bench", "card", "--shape", "7b", "--out", str(tmp_path / "card.json")])
    assert isinstance(ended.exception, UserError)
    assert str(ended.exception).startswith("--shape 7b: no such shape; choose of tiny, 10m,")
    assert list(tmp_path.iterdir()) == []


def test_the_command_names_what_had_no_time_and_writes_the_prediction(tmp_path):
    out = tmp_path / "card.json"
    command = ["bench", "card", "--shape", "tiny", "--minutes", "0", "--folder", str(tmp_path / "models"), "--out", str(out)]
    ended = CliRunner().invoke(app, command)
    assert ended.exception is None, ended.exception
    said = json.loads(ended.stdout.splitlines()[-1])
    assert "NF4 against its GGUF" in said["left_out"]
    document = json.loads(out.read_text())
    assert document["command"] == "bench card --shape tiny --minutes 0"
    assert document["predicted"]["seconds"] == {}, "of a CPU nothing is predicted"
    assert document["versions"]["llama-cpp-python"]


@pytest.mark.slow
def test_a_measurement_is_done_apart_and_what_goes_wrong_there_is_a_line(tmp_path):
    found, why = card.in_child(wanted(tmp_path), "q8_0: naive loop", 100)
    assert why is None
    assert found["tokens_per_s"] > 0
    assert card.in_child(wanted(tmp_path), "no such part", 100) == ({}, "'no such part'")
    assert card.in_child(wanted(tmp_path), "q8_0: naive loop", 0.01) == ({}, "not done in time, and ended after 0 s")
    broken = tmp_path / "10m-q8_0.gguf"
    broken.write_bytes(b"no model")
    found, why = card.in_child(wanted(tmp_path), "q8_0: naive loop", 100)
    assert found == {}
    assert why


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu_with_the_tiny_shape(tmp_path):
    out = tmp_path / "card.json"
    card.measure(wanted(tmp_path / "models", seconds=540.0, sequences=(1, 8), lengths=(64,)), out, lambda words: None)
    document = json.loads(out.read_text())
    assert document["failed"] == {}, document["failed"]
    assert document["left_out"] == []
    found = document["found"]
    assert found["q8_0: naive loop"]["tokens_per_s"] > 0
    assert found["q4_k_m: 8 sequences"]["tokens_per_s"] > 0
    trained = found["DPO, transformers, 64 tokens"]
    assert (trained["first_margin"], trained["finite"], len(trained["losses"])) == (0.0, True, card.STEPS)
    assert abs(found[f"DPO, transformers, 64 tokens, {card.EARLY}"]["first_margin"]) < 1e-4
    assert found["NF4 against its GGUF"]["difference"] < 0.2
    assert document["hours"]["here"] > 0
