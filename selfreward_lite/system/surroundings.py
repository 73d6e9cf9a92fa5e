"""What a command finds when it starts: where it was started, and its three standard files."""

import io
import os
import pwd
import sys
from pathlib import Path

from selfreward_lite.system.errors import UserError


def check_surroundings() -> None:
    """Make the process one that libraries can work in. Raises UserError where that cannot be.

    A standard file that is closed becomes /dev/null, so that no file of a run takes its number.
    What the terminal's encoding has no letter for is printed as it is escaped. A user whom the
    system does not know gets a name, which some libraries ask for.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            f"the folder in which this was started is gone ({error.strerror}); change to another "
            "and give the same command again"
        ) from None
    if not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        try:
            pwd.getpwuid(os.getuid())
        except KeyError:
            os.environ["LOGNAME"] = f"uid-{os.getuid()}"


def find_home() -> Path | None:
    """The user's home; None where neither HOME nor the system names one."""
    home = Path(os.path.expanduser("~"))
    return home if home.is_absolute() else None


def expand_user(text: str) -> Path:
    """A path with ~ replaced; raises UserError where there is no such home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(
            f"{text}: there is no such home folder; write the whole path, or ./ before the ~"
        ) from None
