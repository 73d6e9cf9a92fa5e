"""The command line, stopped inside a stage so that a test can read the run and then kill it.

    python -m tests.helpers.halting_run ITERATION STAGE ITEMS ARGUMENT...

It stops (SIGSTOP) right after the commit of the stage's item number ITEMS; in a stage without
items, ITEMS tenths of a second after the stage began.
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
    """Make the store stop this process at that iteration and stage."""
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
