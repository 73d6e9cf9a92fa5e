"""The app as users start it, but for its runs: a click that would start one ends in one line.

python fuzzed_app.py RUNS_DIR PORT
"""

import sys
from pathlib import Path
from typing import Any, NoReturn

from selfreward_lite.app import jobs, page
from selfreward_lite.app.library import RunLibrary
from selfreward_lite.system.errors import UserError


def refuse(*_: Any, **__: Any) -> NoReturn:
    """Stand for what would start a process."""
    raise UserError("a run would start here")


if __name__ == "__main__":
    jobs.start_module = jobs.run_module = refuse
    page.serve(RunLibrary(Path(sys.argv[1])), int(sys.argv[2]), False, None)
