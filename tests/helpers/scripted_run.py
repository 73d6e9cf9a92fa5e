"""A complete run on the scripted runtime.

`scripted_run.py FOLDER PAUSE TRAIN_SECONDS` makes it in its own process, which a test can kill.
"""

import atexit
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

from scripted_runtime import scripted_runtime

from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.run import loop, prepare
from selfreward_lite.run.ask import Watch

SMALL = {
    "evaluation.canary_judgments": "1",
    "evaluation.second_look": "3",
    "prompts.count": "8",
    "responses.count": "3",
    "judge.count": "3",
    "seed_stage.train_examples": "24",
    "seed_stage.eval_prompts": "6",
    "evaluation.prompts": "8",
    "evaluation.judgments": "2",
    "iterations": "2",
    "gates.mode": "report",
}


def run(
    folder: Path,
    pause: float = 0.0,
    train_seconds: float = 0.0,
    watch: Watch = lambda at: None,
    **settings: str,
) -> None:
    chat = ChatFormat.load(TINY_MODEL)
    with Store.write(folder) as store:
        chosen = prepare.load_or_create_settings(store, {**SMALL, **settings}, "tiny")
        loop.run(
            store,
            chosen,
            scripted_runtime(chat, pause=pause, train_seconds=train_seconds),
            watch,
        )


def copy(folder: Path, **settings: str) -> None:
    """Copy a finished run, which is made once for each `settings`, to the new `folder`."""
    shutil.copytree(_make(tuple(sorted(settings.items()))), folder)


@cache
def _make(settings: tuple[tuple[str, str], ...]) -> Path:
    kept = tempfile.TemporaryDirectory()
    atexit.register(kept.cleanup)
    made = Path(kept.name) / "mine"
    run(made, **dict(settings))
    return made


if __name__ == "__main__":
    run(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
