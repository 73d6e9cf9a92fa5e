"""Empty arguments and names of runs that leave their folder, for every command."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from repository import ROOT
from typer.main import get_command

from selfreward_lite.cli.main import app
from selfreward_lite.system.arguments import (
    check_run_name,
    check_runs_dir,
    expand_homes,
    refuse_empty,
)
from selfreward_lite.system.errors import UserError

COMMANDS: Any = get_command(app)  # made once: that takes longer than a refusal


def list_commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[list[str], Any]]:
    """Every command with the words that call it."""
    for name, one in (group or COMMANDS).commands.items():
        yield [*path, name], one
        if hasattr(one, "commands"):
            yield from list_commands(one, (*path, name))


def refusal(*arguments: str) -> str:
    ended = CliRunner().invoke(COMMANDS, list(arguments))
    assert isinstance(ended.exception, UserError), (arguments, ended.output)
    return str(ended.exception)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--prompts", ""], "--prompts is empty: give it a value, or leave it out."),
        (["run", "--name="], "--name is empty"),
        (["run", "--runs-dir", "  "], "--runs-dir is empty"),
        (["report", ""], "an argument is empty"),
        (["evaluate", "judge", "--from", "", "--ranked", "oasst"], "--from is empty"),
    ],
)
def test_an_empty_argument_is_refused_by_its_name(arguments, says):
    with pytest.raises(UserError, match=says):
        refuse_empty(arguments)


def test_other_arguments_are_left_alone():
    refuse_empty(["run", "--set", "dpo.beta=0.2", "--prompts", "a b", "--set=seed=1", "-"])


def test_every_option_of_every_command_refuses_an_empty_value():
    asked = [
        ([*words, option.opts[0], ""], option.opts[0])
        for words, command in list_commands()
        for option in command.params
        if option.param_type_name == "option" and not option.is_flag
    ]
    assert len(asked) > 80
    for arguments, name in asked:
        assert refusal(*arguments).startswith(f"{name} is empty"), arguments


def test_every_command_that_takes_a_run_refuses_names_that_leave_the_folder():
    """The option --name, the argument RUN, and `doctor --servers`."""
    asked = []
    for words, command in list_commands():
        for one in command.params:
            if "--name" in one.opts or "--servers" in one.opts:
                asked.append([*words, one.opts[0]])
            elif one.param_type_name == "argument" and one.name == "name":
                asked.append(words)
    assert len(asked) >= 18
    for words in asked:
        assert "'../escaped' cannot name a run" in refusal(*words, "../escaped"), words


@pytest.mark.parametrize("name", ["../escaped", "a b/c", "/tmp/x", "..", ".hidden", " ", "a\0b"])
def test_names_that_leave_the_folder_are_refused(name):
    with pytest.raises(UserError, match="cannot name a run: give a name without a slash"):
        check_run_name(name)


@pytest.mark.parametrize("name", ["tiny", "my run.2", "a:b", "größe", "x" * 200, "M0-", "a\\b"])
def test_plain_names_of_runs_are_accepted(name):
    assert check_run_name(name) == name


def test_slash_of_a_completed_name_is_left_out():
    assert check_run_name("fast/") == "fast"


def test_home_is_expanded_in_every_option(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = ["--runs-dir=~/runs", "--mirror", "~/bk", "--out=~", "~/a b.gguf", "--models-dir=~/x"]
    expected = ["--runs-dir=/home/me/runs", "--mirror", "/home/me/bk", "--out=/home/me"]
    assert expand_homes(given) == [*expected, "/home/me/a b.gguf", "--models-dir=/home/me/x"]
    others = ["s3://b/~/x", "--set", "a=~/x", "./~/x", "--name=~mine", "a~/b", "--mirror=hf://a"]
    assert expand_homes(others) == others
    with pytest.raises(UserError, match="no such home folder"):
        expand_homes(["--runs-dir=~nobody-here/runs"])


@pytest.mark.parametrize("command", [["-m", "selfreward_lite", "status"], ["app.py"]])
def test_commands_and_app_expand_the_home(tmp_path, command):
    (tmp_path / "runs").write_text("a file")
    ended = subprocess.run(
        [sys.executable, *command, "--runs-dir=~/runs"],
        cwd=ROOT,
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"--runs-dir {tmp_path}/runs is a file; give the folder")
    assert not Path(ROOT / "~").exists()


def test_folder_of_one_run_is_no_folder_of_runs(tmp_path):
    assert check_runs_dir(tmp_path / "new") == tmp_path / "new"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.sqlite").touch()
    assert check_runs_dir(tmp_path) == tmp_path
    with pytest.raises(UserError, match=f"is a run itself; .*--runs-dir {tmp_path}, and"):
        check_runs_dir(tmp_path / "mine")
    said = refusal("status", "--runs-dir", str(tmp_path / "mine"))
    assert "is a run itself" in said


def test_the_rival_of_another_run_has_a_plain_name_too():
    said = refusal("evaluate", "--against", "../other/M3")
    assert "'../other' cannot name a run" in said


def test_the_app_refuses_an_empty_folder_of_runs():
    ended = subprocess.run(
        [sys.executable, "app.py", "--runs-dir", ""],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2
    assert re.match("--runs-dir is empty", ended.stderr), ended.stderr
