"""The command line, stopped inside a given stage, so that a test can look at the run and then kill it.

    python -m tests.helpers.halting_run ITERATION STAGE ITEMS ARGUMENT...

Stops (SIGSTOP) right after the commit with which the stage has ITEMS items; in a stage that is done in one piece, ITEMS tenths
of a second after it began.
"""

import os
import signal
import sys
import threading

from selfreward_lite.cli.main import main
from selfreward_lite.data.store import Store

WHOLE = ("base", "training", "export")


def halt() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def halting(place: tuple[int, str], items: int) -> None:
    """Make the store halt this process at that place."""
    commit, begin = Store.commit, Store.begin_stage

    def commit_then_halt(store, iteration, stage, *more):
        commit(store, iteration, stage, *more)
        if (iteration, stage) == place and len(store.done_items(iteration, stage)) >= items:
            halt()

    def begin_then_halt(store, iteration, stage, total):
        begin(store, iteration, stage, total)
        if (iteration, stage) == place and stage in WHOLE:
            threading.Timer(items / 10, halt).start()

    Store.commit, Store.begin_stage = commit_then_halt, begin_then_halt


if __name__ == "__main__":
    halting((int(sys.argv[1]), sys.argv[2]), int(sys.argv[3]))
    sys.argv[1:] = sys.argv[4:]
    main()
