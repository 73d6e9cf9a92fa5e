"""What no command takes: an empty value, and a run's name that would leave the folder of runs."""

import re
from collections.abc import Sequence

from selfreward_lite.system.errors import UserError


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


def check_run_name(name: str) -> str:
    """Return the name of a run. Raises UserError for one that is no plain name of a folder.

    >>> check_run_name("my run.2")
    'my run.2'
    >>> check_run_name("../escaped")
    Traceback (most recent call last):
    selfreward_lite.system.errors.UserError: '../escaped' cannot name a run: give a name without a \
slash, and without a dot at its start; --runs-dir chooses the folder of the runs
    """
    if not name.strip() or name.startswith(".") or "/" in name or "\0" in name:
        raise UserError(
            f"{name!r} cannot name a run: give a name without a slash, and without a dot at its "
            "start; --runs-dir chooses the folder of the runs"
        )
    return name
