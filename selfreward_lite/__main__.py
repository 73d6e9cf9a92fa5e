"""`python -m selfreward_lite`, and the command `selfreward-lite`."""

import os
import sys


def main() -> None:
    """Run the command line, or say in one line why it cannot start here."""
    if os.name == "nt":  # runs are locked with POSIX locks, and stages fork
        _refuse(
            "selfreward_lite runs on Linux and macOS. On Windows use WSL: "
            "`wsl --install`, then the same commands in its Linux"
        )
    for name in ("COLUMNS", "LINES"):
        # Some programs set 0 for "not known"; rich would print nothing at all, also no error.
        if not os.environ.get(name, "0").strip("0"):
            os.environ.pop(name, None)
    try:
        from selfreward_lite.cli.main import main as run_command_line
    except KeyboardInterrupt:  # nothing has started that could be interrupted
        sys.exit(130)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("selfreward_lite"):
            raise
        _refuse(
            f"the package {error.name} is missing: run `pip install -r requirements.txt` "
            "(with a GPU: requirements-gpu.txt), or install selfreward_lite again with pip"
        )
    run_command_line()


def _refuse(reason: str) -> None:
    """Print the reason and end with the exit code of a user's mistake."""
    print(reason, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
