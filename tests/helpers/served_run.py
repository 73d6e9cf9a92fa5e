"""A small run of the tiny world by the commands that a user gives, here and on servers."""

import json
import os
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

from repository import ROOT

from selfreward_lite.data.records import KINDS
from selfreward_lite.data.store import Store

SMALL = (
    "engine.parallel=8",
    "seed_stage.train_examples=40",
    "seed_stage.eval_prompts=5",
    "prompts.count=12",
    "evaluation.prompts=10",
    "evaluation.outside_prompts=4",
    "evaluation.canary_judgments=1",
)
LIMIT = 1800  # seconds of one command


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "selfreward_lite", *words]


def run_command(runs: Path, iterations: int, *urls: str, more: tuple[str, ...] = ()) -> list[str]:
    settings = [*SMALL, *more]
    if urls:
        settings += ["engine.kind=server", f"engine.servers={json.dumps(urls)}"]
    options = [word for setting in settings for word in ("--set", setting)]
    words = ("run", "--runs-dir", str(runs), "--iterations", str(iterations))
    return command(*words, "--gates", "report", *options)


def finish(words: list[str], folder: Path = ROOT, code: int = 0) -> str:
    """Run a command in a folder, which must end with this code; returns what it says."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        words, capture_output=True, text=True, cwd=folder, env=environment, timeout=LIMIT
    )
    assert ended.returncode == code, ended.stderr
    return ended.stderr


def read_new(runs: Path, before: Path) -> dict[type, dict[str, tuple]]:
    """The records that a copy has and the runs it was copied from have not, by kind and id."""
    found = {}
    with Store.read(runs / "tiny") as store, Store.read(before / "tiny") as old:
        for kind in KINDS:
            known = {one.id for one in old.records(kind)}
            found[kind] = {
                one.id: astuple(one) for one in store.records(kind) if one.id not in known
            }
    return found
