"""What a command finds when it starts: where it was started, and its three standard files."""

import io
import os
import pwd
import signal
import stat
import sys
from pathlib import Path

from selfreward_lite.system.errors import UserError

# Variables that libraries read as numbers when they are imported: an error that names none.
NUMBERS = (
    "HF_HUB_DOWNLOAD_TIMEOUT",
    "HF_HUB_ETAG_TIMEOUT",
    "TQDM_DELAY",
    "TQDM_MAXINTERVAL",
    "TQDM_MININTERVAL",
    "TQDM_NCOLS",
    "TQDM_NROWS",
    "TQDM_POSITION",
    "TQDM_SMOOTHING",
)


def check_surroundings() -> None:
    """Make the process one that libraries can work in. Raises UserError where that cannot be.

    A standard file that is closed becomes /dev/null, so that no file of a run takes its number.
    What the terminal's encoding has no letter for is printed as it is escaped. A user whom the
    system does not know gets a name, which some libraries ask for. Ended children can be asked how
    they ended, which a starter that ignores SIGCHLD would prevent.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Figures need no window. A notebook's backend, which its children inherit, may not exist here.
    os.environ.pop("MPLBACKEND", None)
    _check_numbers()
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


def _check_numbers() -> None:
    for name in NUMBERS:
        try:
            float(os.environ.get(name, "0"))
        except ValueError:
            raise UserError(
                f"{name}={os.environ[name]} in the environment: libraries want a number there; "
                "correct or unset it, and give the same command again"
            ) from None


def leave_terminal() -> None:
    """Write to nobody from now on, in place of a terminal that was closed: that would fail."""
    with open(os.devnull, "r+b", buffering=0) as nobody:
        for number in range(3):
            # `isatty` is no longer true of it.
            if stat.S_ISCHR(os.fstat(number).st_mode):
                os.dup2(nobody.fileno(), number)


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
