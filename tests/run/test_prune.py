"""Pruning: never silently, never a record; what is gone comes back or is known to be gone."""

import json
import shutil
from pathlib import Path

import pytest
import scripted_run
from run_contents import read_contents
from typer.testing import CliRunner

from selfreward_lite.cli import main
from selfreward_lite.data.store import Store


def prune(folder: Path, *options: str):
    return CliRunner().invoke(
        main.app, ["prune", "--name", folder.name, "--runs-dir", str(folder.parent), *options]
    )


@pytest.fixture
def run(tmp_path) -> Path:
    scripted_run.copy(tmp_path / "old", iterations="3")
    return tmp_path / "old"


def records(folder: Path) -> dict:
    return {
        name: value
        for name, value in read_contents(folder).items()
        if name not in ("base", "M1", "M2")
    }


def test_without_yes_it_only_says_what_it_would_do(run):
    before = read_contents(run)
    said = prune(run)
    assert said.exit_code == 0
    assert "made again when the run resumes" in said.stderr
    assert "nothing was removed; --yes removes" in said.stderr
    assert json.loads(said.stdout.splitlines()[-1]) == {"run": "old", "removed": [], "freed": 0}
    assert read_contents(run) == before


def test_what_can_be_made_again_goes_and_comes_back(run):
    before = read_contents(run)
    said = prune(run, "--yes")
    assert json.loads(said.stdout.splitlines()[-1])["removed"] == ["base", "training"]
    assert not (run / "base").exists()
    assert records(run) == {
        name: value for name, value in before.items() if name not in ("base", "M1", "M2")
    }
    with Store.read(run) as store:
        assert store.faults() == [], "what was pruned is no fault"
    scripted_run.run(run, iterations="4")
    after = read_contents(run)
    assert after["base"] == before["base"], "the same base, made again"
    with Store.read(run) as store:
        assert store.newest() == 4
        assert store.faults() == []


def test_models_between_go_only_when_asked_for(run):
    prune(run, "--yes")
    assert all((run / f"M{number}").exists() for number in range(4))
    said = prune(run, "--models", "--yes")
    assert "does not come back" in said.stderr
    assert json.loads(said.stdout.splitlines()[-1])["removed"] == ["M1", "M2"]
    assert [path.name for path in sorted(run.glob("M*"))] == ["M0", "M3"]
    with Store.read(run) as store:
        assert store.faults() == []
        with pytest.raises(Exception, match="has no model M1"):
            store.model(1)
    scripted_run.run(run, iterations="4")
    with Store.read(run) as store:
        assert store.newest() == 4


def test_a_run_under_way_is_left_alone(run):
    with Store.write(run):
        said = prune(run, "--yes")
    assert "is writing this run" in str(said.exception)
    assert (run / "base").exists()


def test_the_checkpoints_of_a_training_that_was_interrupted_stay(run):
    with Store.write(run) as store:
        store.begin_stage(4, "training", 1)
    assert json.loads(prune(run, "--yes").stdout.splitlines()[-1])["removed"] == ["base"]
    assert (run / "training").exists()


def test_a_mistyped_name_makes_no_folder(tmp_path):
    said = prune(tmp_path / "nothing", "--yes")
    assert "no run in" in str(said.exception)
    assert not (tmp_path / "nothing").exists()


def test_finished_run_makes_its_base_again(run):
    """A copy in a mirror has no base, and the app needs it."""
    before = read_contents(run)
    shutil.rmtree(run / "base")
    with Store.read(run) as store:
        assert store.faults() == []
    where = ["--name", run.name, "--runs-dir", str(run.parent)]
    verified = CliRunner().invoke(main.app, ["verify", *where])
    assert verified.exit_code == 0
    assert "base: not here" in " ".join(verified.output.split())
    scripted_run.run(run, iterations="3")
    assert read_contents(run) == before
    with Store.read(run) as store:
        assert store.faults() == []
