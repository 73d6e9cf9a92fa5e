import os
import sys


def refuse(reason: str) -> None:
    """End before anything could be imported, as a mistake that can be mended ends."""
    print(reason, file=sys.stderr)
    sys.exit(2)


if os.name == "nt":  # a run is locked as POSIX locks, and stages fork
    refuse(
        "selfreward_lite runs on Linux and macOS; on Windows, in its Linux: `wsl --install`, then the same commands there"
    )
try:
    from selfreward_lite.cli.main import main
except KeyboardInterrupt:  # before there is anything to interrupt
    sys.exit(130)
except ModuleNotFoundError as error:
    if (error.name or "").startswith("selfreward_lite"):
        raise
    refuse(f"the package {error.name} is missing: run `pip install -r requirements.txt`")

main()
