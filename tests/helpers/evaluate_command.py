"""The command `evaluate …` on models that answer and judge by a script."""

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click.testing import Result
from scripted_runtime import scripted_runtime
from typer.testing import CliRunner

from selfreward_lite.cli.main import app
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.run import runtime


def script_models(monkeypatch) -> None:
    """Have commands open scripted models."""

    @contextmanager
    def scripted(*_, **__):
        yield scripted_runtime(ChatFormat.load(TINY_MODEL))

    monkeypatch.setattr(runtime, "open_runtime", scripted)


def evaluate(runs: Path, *arguments: str, name: str = "mine") -> tuple[Result, Any]:
    """Return how `evaluate` ended, and the JSON in its last line; its errors are raised."""
    where = ("--name", name, "--runs-dir", str(runs))
    ended = CliRunner().invoke(app, ["evaluate", *arguments, *where])
    if ended.exit_code == 130:
        raise KeyboardInterrupt
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return ended, json.loads(ended.stdout.splitlines()[-1])
