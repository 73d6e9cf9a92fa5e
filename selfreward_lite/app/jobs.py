"""Runs as background processes: start or resume one, accept a refused model, stop one.

A run started here goes on when the app ends. Its log is beside its folder, as NAME.log.
"""

import os
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from selfreward_lite import config
from selfreward_lite.data.store import Store
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.processes import (
    child_environment,
    explain_exit,
    last_lines,
    run_module,
    start_module,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}")

# Settings that name files or servers. The app must not set them: a visitor could read any file, or
# have this machine call any address.
_FILES = (
    "engine.servers",
    "engine.shared",
    "model.base",
    "model.origin",
    "model.gguf_file",
    "seed_stage.ranked",
    "prompts.file",
    "gates.judge_set",
)
_SECTIONS = {name.split(".")[0] for name in _FILES}
_PATIENCE = 20.0  # seconds for a new process to lock its run


@dataclass(frozen=True)
class RunRequest:
    """A run to start or resume. None: the value of the preset, or of the run."""

    name: str
    preset: str | None = None
    iterations: int | None = None
    seed: int | None = None
    hours: float | None = None
    settings: tuple[str, ...] = ()  # "dpo.beta=0.2"
    past_gates: bool = False

    def overrides(self) -> dict[str, str]:
        """Return settings that override the preset.

        Raises UserError for one that names files or servers.
        """
        given = {"iterations": self.iterations, "seed": self.seed}
        found = config.parse_overrides(self.settings, given)
        for key in found:
            if key in (*_FILES, *_SECTIONS) or not re.fullmatch(r"[a-z_.0-9]+", key):
                raise UserError(
                    f"{key} names files or servers, so it works on the command line only: "
                    f"`run --set {key}=…`"
                )
        return found

    def arguments(self) -> list[str]:
        """Return the request as arguments of the command line."""
        options = {
            "--name": self.name,
            "--preset": self.preset,
            "--iterations": self.iterations,
            "--seed": self.seed,
            "--hours": self.hours,
            "--gates": "report" if self.past_gates else None,
        }
        pairs = [*options.items(), *(("--set", setting) for setting in self.settings)]
        return [f"{part}" for pair in pairs if pair[1] is not None for part in pair]


def start_run(runs_dir: Path, request: RunRequest, cwd: Path) -> None:
    """Start or resume a run as a process in `cwd`, where relative paths in its settings begin.

    Raises UserError for a bad name or setting, or if a process is writing this run already.
    """
    name = request.name
    if not NAME.fullmatch(name) or name.endswith(".log"):
        raise UserError(
            f"{name!r} cannot name a run: use up to 60 letters, digits, hyphens, underscores, dots"
        )
    folder, overrides = runs_dir / name, request.overrides()
    if request.hours is not None and not 0 < request.hours <= 8760:
        raise UserError("hours: more than 0, and at most a year (8760)")
    if not (folder / "run.sqlite").exists():
        config.load(request.preset or "tiny", overrides)  # shows a mistake here, not in the log
    elif Store.writer(folder) is not None:
        writer = Store.describe_writer(folder)
        raise UserError(f"{writer} is running {name} already; watch it, or stop it first")
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        _log(folder).write_bytes(b"")
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be written ({error.strerror}); start the app with a "
            "--runs-dir that you can write"
        ) from None
    # Appending keeps lines intact where two processes start at once.
    with _log(folder).open("ab") as log:
        process = start_module(
            "selfreward_lite",
            *("run", "--runs-dir", str(runs_dir), *request.arguments()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd=cwd,
            start_new_session=True,
            env=child_environment() | {"PYTHONUNBUFFERED": "1", "COLUMNS": "120"},
        )
    threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie
    deadline = time.monotonic() + _PATIENCE
    while Store.writer(folder) is None and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    if process.returncode:
        raise UserError(explain_exit(process.returncode, last_log_lines(folder, 1), "the run"))


def accept_candidate(folder: Path) -> None:
    """Promote the model that a gate refused; checking a large model's files takes a while.

    Raises UserError, with the command's last line, where that fails.
    """
    arguments = ("accept", "--runs-dir", str(folder.parent), "--name", folder.name)
    ended = run_module("selfreward_lite", *arguments, env=child_environment())
    if ended.returncode:
        raise UserError(explain_exit(ended.returncode, ended.stderr.splitlines(), "accept"))


def stop_run(folder: Path) -> bool:
    """Ask the process that writes a run to end, as Ctrl-C does; returns whether there was one.

    Raises UserError for a process of another user, container or machine.
    """
    writer = Store.writer(folder)
    if writer is None:
        return False
    if not Store.is_writer(folder, writer):
        raise UserError(
            f"{folder.name} is written in another container or on another machine, as process "
            f"{writer} there; end it where it was started"
        )
    try:
        os.kill(writer, signal.SIGTERM)
    except ProcessLookupError:
        return False  # it has just ended
    except PermissionError:
        raise UserError(
            f"process {writer} belongs to another user; end it where it was started"
        ) from None
    return True


def last_log_lines(folder: Path, lines: int = 12) -> list[str]:
    """Return the last lines of a run's log; none for a run that was started elsewhere."""
    return last_lines(_log(folder), lines)


def _log(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")
