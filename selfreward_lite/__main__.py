"""`python -m selfreward_lite`, and the command `selfreward-lite`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def main() -> None:
    """Run the command line, or say in one line why it cannot start here."""
    if os.name == "nt":  # runs are locked with POSIX locks, and stages fork
        _refuse(
            "selfreward_lite runs on Linux and macOS. On Windows use WSL: "
            "`wsl --install`, then the same commands in its Linux"
        )
    if not os.path.isdir(os.path.dirname(os.path.abspath(__file__))):
        _refuse("selfreward_lite does not run from an archive: unpack it, or install it with pip")
    for name in ("COLUMNS", "LINES"):
        # Some programs set 0 for "not known"; rich would print nothing at all, also no error.
        if not os.environ.get(name, "0").strip("0"):
            os.environ.pop(name, None)
    with explain_imports():
        from selfreward_lite.cli.main import main as run_command_line
    run_command_line()


@contextmanager
def explain_imports() -> Iterator[None]:
    """Say in one line which package of others is missing or broken, and end."""
    try:
        yield
    except KeyboardInterrupt:  # nothing has started that could be interrupted
        sys.exit(130)
    except Exception as error:
        if hiding := _list_hiding():
            _refuse(
                f"rename {hiding[0]}: it hides a package, or a part of Python, that "
                f"selfreward_lite needs ({' '.join(str(error).split())})"
            )
        if not isinstance(error, ImportError):
            raise
        name = error.name or "a package"
        if name.startswith("selfreward_lite"):
            raise
        again = "or install selfreward_lite again with pip"
        if isinstance(error, ModuleNotFoundError):
            _refuse(
                f"the package {name} is missing: run `pip install -r requirements.txt` "
                f"(with a GPU: requirements-gpu.txt), {again}"
            )
        _refuse(
            f"{name} cannot be imported ({' '.join(str(error).split())}): where LD_LIBRARY_PATH is "
            f"set, as by conda, unset it; else `pip install -r requirements.txt`, {again}"
        )


def _list_hiding() -> list[str]:
    """The files in the current folder that were imported although they are not this package's.

    `python -m` looks for every package there first.
    """
    here = os.path.realpath(os.curdir)
    files = [
        getattr(module, "__file__", None)
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] not in ("__main__", "__mp_main__", "app", "selfreward_lite")
    ]
    return [one for one in files if one and os.path.dirname(os.path.realpath(one)) == here]


def _refuse(reason: str) -> None:
    """Print the reason and end with the exit code of a user's mistake."""
    print(reason, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
