"""Runs as processes of their own: begun, watched, stopped, and never part of whoever did that.

    begin      `python -m selfreward_lite run …` in a process that goes on when its starter ends, by whatever means
    accept     `python -m selfreward_lite accept …`, which promotes what a gate refused
    stop       ask the process that writes a run to end; what is committed stays, `begin` goes on from there
    view       how far a run is, from its folder alone: whoever looks, however often, sees the same

Knows: the command line of `run` and `accept`, the lock that names its process, its log. Does not know: pages, what a stage does.
The log of a run that was begun here lies beside its folder, as NAME.log; one that was begun in a terminal speaks there.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfreward_lite import config
from selfreward_lite.data.store import Store
from selfreward_lite.system.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}")

# What would have this machine read a file, or fetch one: whoever can open the page could then read it too.
_FILES = ("model.base", "model.origin", "model.gguf_file", "seed_stage.ranked", "prompts.file")
_PATIENCE = 20.0  # seconds until a run that was begun has said that it is there
_TAIL = 8000  # bytes of a log that are read


@dataclass(frozen=True)
class RunRequest:
    """What is to be run. None means: as the preset, or the run that is gone on with, has it."""

    name: str
    preset: str | None = None
    iterations: int | None = None
    seed: int | None = None
    hours: float | None = None
    settings: tuple[str, ...] = ()  # "dpo.beta=0.2"
    past_gates: bool = False

    def overrides(self) -> dict[str, str]:
        """Return the settings that are laid over the preset. Raises ConfigError for one that cannot be given here."""
        found = config.parse_overrides(list(self.settings))
        whole = {name.split(".")[0] for name in _FILES}
        if files := [
            key
            for key in found
            if key in (*_FILES, *whole) or not re.fullmatch(r"[a-z_.0-9]+", key)
        ]:
            raise UserError(
                f"{files[0]} names files, and can be given on the command line only: `run --set {files[0]}=…`"
            )
        given = {"iterations": self.iterations, "seed": self.seed}
        return found | {key: str(value) for key, value in given.items() if value is not None}

    def arguments(self) -> list[str]:
        """Return the arguments of the command line that say the same."""
        found = ["--name", self.name]
        for option, value in (
            ("--preset", self.preset),
            ("--iterations", self.iterations),
            ("--seed", self.seed),
            ("--hours", self.hours),
        ):
            found += [option, f"{value}"] if value is not None else []
        for setting in self.settings:
            found += ["--set", setting]
        return [*found, "--gates", "report"] if self.past_gates else found


def let_children_import() -> None:
    """Let every process that is started from here find this package, whatever folder it is started in."""
    package = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [package, os.environ.get("PYTHONPATH")])
    )


def begin(runs_dir: Path, wanted: RunRequest, here: Path) -> None:
    """Start a run, or go on with it, as a process in the folder `here`, which is where relative paths in its settings begin.

    Raises UserError where that cannot be: a bad name, a mistyped setting, a process that writes this run already.
    """
    if not NAME.fullmatch(wanted.name) or wanted.name.endswith(".log"):
        raise UserError(
            f"{wanted.name!r} is no name for a run: letters, digits, - _ . and no more than 60 of them"
        )
    folder = runs_dir / wanted.name
    overrides = wanted.overrides()
    if wanted.hours is not None and not 0 < wanted.hours <= 8760:
        raise UserError("hours: more than 0, and at most a year (8760)")
    if not (folder / "run.sqlite").exists():
        config.load(wanted.preset or "tiny", overrides)  # a mistake is said here, not in a log
    elif (process := Store.writer(folder)) is not None:
        raise UserError(
            f"process {process} is at {wanted.name} already; watch it, or stop it first"
        )
    runs_dir.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "selfreward_lite",
        "run",
        "--runs-dir",
        str(runs_dir),
        *wanted.arguments(),
    ]
    _log(folder).write_bytes(
        b""
    )  # what it said before is over; to append keeps lines whole where two begin at once
    with _log(folder).open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd=here,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"},
        )
    threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie
    deadline = time.monotonic() + _PATIENCE
    while Store.writer(folder) is None and time.monotonic() < deadline:
        if process.poll() is not None:
            if process.returncode:
                raise UserError(
                    " ".join(last_words(folder, 1))
                    or f"the run ended with code {process.returncode} and no word"
                )
            return
        time.sleep(0.05)


def accept(runs_dir: Path, run: str) -> None:
    """Promote the candidate of a run that a gate refused; reading a large model's files to see that they are whole takes a while.

    Raises UserError, with the command's own words, where that cannot be.
    """
    command = [
        sys.executable,
        "-m",
        "selfreward_lite",
        "accept",
        "--runs-dir",
        str(runs_dir),
        "--name",
        run,
    ]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if ended.returncode:
        raise UserError(
            " ".join(ended.stderr.splitlines()[-1:])
            or f"accept ended with code {ended.returncode} and no word"
        )


def stop(folder: Path) -> bool:
    """Ask the process that writes a run to end, as Ctrl-C does; returns whether there was one."""
    process = Store.writer(folder)
    if process is None:
        return False
    try:
        os.kill(process, signal.SIGTERM)
    except ProcessLookupError:
        return False  # it has ended meanwhile
    except PermissionError:
        raise UserError(
            f"process {process} belongs to somebody else; end it where it was started"
        ) from None
    return True


def last_words(folder: Path, lines: int = 12) -> Sequence[str]:
    """Return the last lines of what a run that was begun here said; nothing where it was begun elsewhere."""
    log = _log(folder)
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        return file.read().decode("utf-8", errors="replace").splitlines()[-lines:]


def _log(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")
