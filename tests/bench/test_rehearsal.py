"""The rehearsal on a model of two small layers: every step, resuming, what it refuses."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from selfreward_lite.bench import rehearsal
from selfreward_lite.bench.rehearsal import Rehearsal, Step
from selfreward_lite.cli.main import app
from selfreward_lite.models import memory
from selfreward_lite.models.hf_folder import SHAPES
from selfreward_lite.system.errors import EngineError, UserError


@pytest.fixture
def wanted(tmp_path) -> Rehearsal:
    return Rehearsal(
        tmp_path, layers=2, hidden=256, vocab=4096, memory=4 * 2**30, judgments=1, new_tokens=4
    )


@pytest.fixture
def played(monkeypatch) -> list[str]:
    """Steps that do nothing, and the names of those that were done."""
    done = []

    def do_step(wanted, name):
        done.append(name)
        return Step(1.0, 2, 3, 4, {"bytes": 5})

    monkeypatch.setattr(rehearsal, "_do_step", do_step)
    return done


def test_a_full_size_is_the_models_own_and_a_trial_keeps_its_proportions(wanted, tmp_path):
    assert Rehearsal(tmp_path).find_shape() == SHAPES["llama-3-8b"]
    small = wanted.find_shape()
    assert (small.layers, small.hidden, small.ffn, small.vocab) == (2, 256, 1024, 4096)
    assert (small.heads, small.kv_heads, small.head_dim) == (2, 1, 128)
    # 5.7 GB of NF4, 8.5 of Q8_0, two adapters of 168 MB, a GB to spare
    assert rehearsal.estimate_disk(Rehearsal(tmp_path)) == pytest.approx(15.6e9, rel=0.01)
    # 3.6 GB of NF4, 4.2 of embeddings, 0.8 of the adapter with AdamW, 3 to spare
    assert rehearsal.estimate_memory(Rehearsal(tmp_path)) == pytest.approx(11.6e9, rel=0.01)


def test_a_finished_step_is_skipped(wanted, played, tmp_path):
    first = rehearsal.rehearse(wanted, lambda text: None)
    assert played == list(rehearsal.STEPS) == list(first)
    (tmp_path / "3-training.json").unlink()
    again = rehearsal.rehearse(wanted, lambda text: None)
    assert played[len(first) :] == ["training"]
    assert again == first


def test_files_of_another_model_are_not_resumed(wanted, played):
    rehearsal.rehearse(wanted, lambda text: None)
    with pytest.raises(UserError, match=r"1-base\.json is of another model"):
        rehearsal.rehearse(replace(wanted, layers=3), lambda text: None)
    rehearsal.rehearse(replace(wanted, memory=wanted.memory // 2, judgments=9), lambda text: None)


def test_a_machine_that_is_too_small_is_refused_before_the_first_step(wanted, played, monkeypatch):
    monkeypatch.setattr(rehearsal, "free_bytes", lambda path: 10**6)
    with pytest.raises(UserError, match=r"of disk are needed in .*; choose another --folder"):
        rehearsal.rehearse(wanted, lambda text: None)
    monkeypatch.setattr(rehearsal.process_memory, "read_available", lambda: 10**9)
    with pytest.raises(UserError, match=r"allows 4\.3 GB, and 1\.0 GB are available"):
        rehearsal.rehearse(wanted, lambda text: None)
    with pytest.raises(UserError, match=r"allows 1\.0 GB, and 1\.0 GB are available"):
        rehearsal.rehearse(replace(wanted, memory=10**9), lambda text: None)
    assert not played


def test_a_step_that_holds_too_much_is_ended(wanted, monkeypatch):
    monkeypatch.setattr(rehearsal, "POLL", 0.01)
    with pytest.raises(EngineError, match=r"base: its processes held .* more than the 1\.0 MB"):
        rehearsal._do_step(replace(wanted, memory=10**6), "base")


def test_a_step_that_fails_is_one_line_and_is_done_again(wanted):
    with pytest.raises(EngineError, match=r"training: .*nf4"):
        rehearsal._do_step(wanted, "training")
    assert not list(wanted.folder.glob("*.json"))


@pytest.mark.parametrize(
    ("option", "says"),
    [(["--shape", "9b"], "no such shape"), (["--hidden", "300"], "give a multiple of 256")],
)
def test_a_wrong_size_is_one_line(option, says, tmp_path):
    ended = CliRunner().invoke(app, ["bench", "rehearsal", *option, "--folder", str(tmp_path)])
    assert isinstance(ended.exception, UserError)
    assert says in str(ended.exception)


def test_the_command_keeps_its_figures_in_a_file(played, tmp_path):
    out = tmp_path / "kept" / "small.json"
    given = ["--layers", "2", "--hidden", "256", "--memory", "4"]
    given += ["--folder", str(tmp_path), "--out", str(out)]
    ended = CliRunner().invoke(app, ["bench", "rehearsal", *given])
    assert ended.exit_code == 0, ended.exception
    kept = json.loads(out.read_text())
    assert list(kept["steps"]) == list(rehearsal.STEPS)
    assert kept["steps"]["gguf"]["facts"] == {"bytes": 5}
    assert (kept["model"]["shape"]["layers"], kept["model"]["tokenizer"]) == (2, None)


@pytest.mark.slow
def test_all_of_it_runs_on_a_small_model(wanted):
    steps = rehearsal.rehearse(wanted, lambda text: None)
    facts = {name: step.facts for name, step in steps.items()}
    assert facts["base"]["weights"] == memory.count_weights(wanted.find_shape())
    assert facts["gguf"]["bytes"] == wanted.gguf.stat().st_size
    assert facts["training"]["first_margin"] == 0.0
    assert facts["training"]["moved_share"] > 0.4
    assert facts["adapter"]["share"] == pytest.approx(1, abs=rehearsal.MAX_SHARE_ERROR)
    assert facts["adapter"]["difference"] < 0.5
    assert facts["judging"]["judgments"] == len(rehearsal.TEXTS)
    assert all(0 < step.held < wanted.memory for step in steps.values())
    assert steps["judging"].disk == pytest.approx(rehearsal._folder_bytes(wanted.folder), rel=0.01)
    written = json.loads((wanted.folder / "5-judging.json").read_text())
    assert written["facts"] == facts["judging"]
