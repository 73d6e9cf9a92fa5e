"""One of the processes that train together, played. Started in place of `training.rank`.

PLAY is JSON: for each process a list of steps, such as ["say", {"short": true}] or ["die", 9].
"""

import json
import os
import signal
import sys
from pathlib import Path


def play(step: list) -> None:
    verb, *value = step
    match verb:
        case "say":
            print(json.dumps(value[0]), flush=True)
        case "print":  # as a library does
            print(value[0], flush=True)
        case "show":
            shown = {name: os.environ.get(name) for name in value[0]}
            print(json.dumps({"report": {**shown, "micro_batch": sys.argv[3]}}), flush=True)
        case "note":  # its number, so that a test can look after it
            Path(value[0]).write_text(str(os.getpid()))
        case "wait":  # for its input to end, as when the launcher is gone
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.read(0, 1)
        case "die":
            os.kill(os.getpid(), value[0])
        case "exit":
            sys.exit(value[0])


if __name__ == "__main__":
    for one in json.loads(os.environ["PLAY"])[int(os.environ["RANK"])]:
        play(one)
