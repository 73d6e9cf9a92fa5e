"""`export base`: a run's base as a folder for servers."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfreward_lite import config
from selfreward_lite.cli.main import app
from selfreward_lite.data.store import Store
from selfreward_lite.models.checks import check_folder
from selfreward_lite.system.errors import UserError


@pytest.mark.slow
def test_the_base_is_written_as_a_folder_for_servers(tmp_path):
    with Store.write(tmp_path / "mine") as store:
        store.state("settings", config.load("tiny").model_dump(mode="json"))
    options = ["--name", "mine", "--runs-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["export", "base", *options])
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    assert (said["weights"], said["dtype"]) == ("nf4", "bfloat16")
    check_folder(Path(said["folder"]))
    again = CliRunner().invoke(app, ["export", "base", *options])
    assert isinstance(again.exception, UserError)
    assert "is there already" in str(again.exception)
