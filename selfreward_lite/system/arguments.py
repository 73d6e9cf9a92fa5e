"""Arguments: empty values and names that leave the folder of runs are refused, ~ is expanded."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from selfreward_lite.system.errors import UserError
from selfreward_lite.system.surroundings import expand_user


def refuse_empty(arguments: Sequence[str]) -> None:
    """Raise UserError for an empty argument: mostly a variable of the shell that is not set.

    Without this, an empty path would be the current folder, and an empty name the default.
    """
    before = ""
    for one in arguments:
        option = re.fullmatch(r"(--[\w-]+)=\s*", one)
        if option or not one.strip():
            name = option[1] if option else before if before.startswith("--") else "an argument"
            raise UserError(
                f"{name} is empty: give it a value, or leave it out. Where a variable of the "
                "shell stands there, it may not be set"
            )
        before = one


def expand_homes(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with a ~ at the start of a path replaced, as in --runs-dir=~/runs.

    Shells replace it only at the start of an argument, and services and containers have no shell.
    Raises UserError where there is no such home.
    """
    return [_expand_home(one) for one in arguments]


def _expand_home(argument: str) -> str:
    match = re.fullmatch(r"(--[\w-]+=)?(~|~[^/\s]*/.*)", argument, re.DOTALL)
    return f"{match[1] or ''}{expand_user(match[2])}" if match else argument


def check_runs_dir(folder: Path) -> Path:
    """Return the folder of runs. Raises UserError for a file, and for the folder of one run."""
    with suppress(OSError):  # what cannot be looked at is refused where it is used
        if folder.is_file():
            raise UserError(f"--runs-dir {folder} is a file; give the folder that holds all runs")
        if (folder / "run.sqlite").is_file():
            raise UserError(
                f"--runs-dir {folder} is a run itself; give the folder that holds it, "
                f"--runs-dir {folder.absolute().parent}, and the run's name"
            )
    return folder


def check_run_name(name: str) -> str:
    """Return the name of a run. Raises UserError for one that is no plain name of a folder.

    A slash at its end, as shells complete names of folders, is left out.

    >>> check_run_name("my run.2/")
    'my run.2'
    >>> check_run_name("../escaped")
    Traceback (most recent call last):
    selfreward_lite.system.errors.UserError: '../escaped' cannot name a run: give a name without a \
slash, and without a dot at its start; --runs-dir chooses the folder of the runs
    """
    name = name.rstrip("/")
    if not name.strip() or name.startswith(".") or "/" in name or "\0" in name:
        raise UserError(
            f"{name!r} cannot name a run: give a name without a slash, and without a dot at its "
            "start; --runs-dir chooses the folder of the runs"
        )
    return name
