"""Output of the commands: lines, tables and progress on stderr, one JSON document on stdout."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from selfreward_lite.data.database import is_database
from selfreward_lite.run import ask
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import FULL, atomic_write
from selfreward_lite.system.gpu import gpu_lock, list_gpus
from selfreward_lite.system.machine import Finding

_QUIET_SECONDS = 20.0  # without a terminal, a long stage prints its progress this often
console = Console(stderr=True, emoji=False)  # a name such as a:fire:b is none


def say(text: str, style: str | None = None, to: Console = console) -> None:
    """Print a line as it is, without markup."""
    to.print(text, style=style, highlight=False, soft_wrap=True, markup=False)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a table without markup, if it has rows; an empty row is a line between sections."""
    if not rows:
        return
    table = Table(*map(escape, head), title=escape(title) or None, title_justify="left")
    for row in rows:
        if row:
            table.add_row(*map(Text, row))
        else:
            table.add_section()
    console.print(table)


def emit(document: object) -> None:
    """Print a JSON document as the last line of stdout; NaN, which JSON lacks, becomes null."""
    plain = json.loads(json.dumps(document), parse_constant=lambda _: None)
    try:
        print(json.dumps(plain), flush=True)
    except OSError:
        sys.stdout = None  # else Python would try again at its end, and print that error too
        raise


def write_file(path: Path, text: str) -> None:
    """Write a text file, and make its folder if needed. Raises UserError where that fails.

    A file name in the text need not be UTF-8; such a letter is written as it is escaped. A run's
    records are not overwritten.
    """
    try:
        if path.is_file() and is_database(path):
            raise UserError(f"{path} holds the records of a run; give another --out")
        content = text.encode("utf-8", errors="backslashreplace")
        if path.exists() and not path.is_file():  # such as a pipe, or /dev/stdout
            path.write_bytes(content)
        else:  # a link keeps leading to the file
            target = Path(os.path.realpath(path))
            with atomic_write(target) as part:  # a full disk leaves the old one
                part.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); give another --out"
        ) from None


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """What is written at `out` in the block. Raises UserError that names it where that fails.

    A folder that is new is removed again: half an export is none.
    """
    new = not os.path.exists(out)
    try:
        yield
    except BaseException as error:
        if new:
            shutil.rmtree(out, ignore_errors=True)
        if not isinstance(error, OSError) or not _is_about(error, out):
            raise
        advice = "free space there, or give" if error.errno in FULL else "give"
        why = error.strerror or str(error)
        raise UserError(f"{out}: cannot be written ({why}); {advice} another --out") from None


def _is_about(error: OSError, out: Path) -> bool:
    """Whether an error is of a path at, above or below `out`; copying names its source first."""
    paths = [Path(os.fsdecode(one)) for one in (error.filename2, error.filename) if one]
    return (
        error.errno in FULL
        or not paths
        or out.is_relative_to(paths[0])
        or (paths[0].is_relative_to(out))
    )


def hold_gpu(command: str) -> AbstractContextManager[None]:
    """The GPU, if there is one, for this command alone; an app that uses it gives it up."""
    return gpu_lock(f"{command}, process {os.getpid()}", say) if list_gpus() else nullcontext()


class Display:
    """Shows the progress of a run; a context manager.

    A stage in progress is a bar at the bottom of the terminal, a finished one a line that stays.
    """

    def __init__(self, console: Console = console) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._last_line = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=24, table_column=Column(min_width=10)),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=9)),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn(
                "{task.fields[note]}",
                table_column=Column(no_wrap=True, ratio=1, overflow="ellipsis"),
            ),
            console=console,
            disable=not console.is_terminal,
            expand=True,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, at: ask.Progress) -> None:
        """Show the progress of a stage."""
        stage = f"M{at.iteration} {at.stage}"
        if at.message:
            say(f"{stage}: {at.message}", to=self._console)
        if at.done >= at.total:
            if stage in self._bars:
                self._progress.remove_task(self._bars.pop(stage))
            self._print(stage, at)
        elif self._console.is_terminal:
            if stage not in self._bars:
                self._bars[stage] = self._progress.add_task(stage, total=at.total, note="")
            self._progress.update(
                self._bars[stage], completed=at.done, total=at.total, note=format_note(at)
            )
        elif time.monotonic() - self._last_line >= _QUIET_SECONDS:
            self._print(stage, at)

    def _print(self, stage: str, at: ask.Progress) -> None:
        self._last_line = time.monotonic()
        done = f"{at.done}/{at.total} in {at.seconds:.1f} s{format_time_left(at)}"
        say(f"{stage}: {done}  {format_note(at)}".rstrip(), to=self._console)


@contextmanager
def show_downloads() -> Iterator[Callable[[str, int, int], None]]:
    """A function that shows a download: file name, bytes received, bytes in total.

    On a terminal it draws a bar per file, elsewhere it prints a line when a file is complete.
    """
    bars: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def show(file: str, done: int, total: int) -> None:
            if file not in bars:
                bars[file] = progress.add_task(file, total=total)
            progress.update(bars[file], completed=done)
            if done >= total and not console.is_terminal:
                say(f"{file}: {total / 1e6:.1f} MB downloaded")

        yield show


@contextmanager
def show_tensors() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that shows how many tensors are quantized: a bar, which is gone at the end."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    disabled = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=disabled) as progress:
        bar = progress.add_task("tensors", total=None, visible=False)
        yield lambda at: progress.update(bar, completed=at["done"], total=at["total"], visible=True)


def format_note(at: ask.Progress) -> str:
    """Tokens per second, the trainer's last values, and what was dropped and why.

    >>> format_note(ask.Progress(1, "responses", 10, done=4, tokens=300, seconds=2.0))
    '150 tokens/s'
    """
    parts = []
    if at.tokens and at.seconds > 0:
        parts.append(f"{at.tokens / at.seconds:.0f} tokens/s")
    names = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}
    parts += [f"{word} {at.values[name]:.3f}" for name, word in names.items() if name in at.values]
    if at.drops:
        drops = (f"{count} {reason}" for reason, count in at.drops.most_common(3))
        parts.append(f"dropped: {', '.join(drops)}")
    return "  ".join(parts)


def format_time_left(at: ask.Progress) -> str:
    """Seconds left at the rate so far, as text; "" before the first item.

    >>> format_time_left(ask.Progress(1, "responses", 10, done=4, seconds=2.0))
    ', 3 s left'
    """
    fresh = at.done - at.already
    if not fresh or at.done >= at.total:
        return ""
    return f", {at.seconds / fresh * (at.total - at.done):.0f} s left"


def print_findings(found: list[Finding]) -> list[str]:
    """Print findings, and as JSON; returns the names of the bad ones."""
    colors = {"good": "green", "note": "yellow", "bad": "red"}
    for one in found:
        head = Text(f"{one.what:<10} {one.state}  ", style=colors[one.state])
        console.print(head + Text(one.words), soft_wrap=True)
        if one.fix:
            say(f"{'':<14} → {one.fix}")
    emit([asdict(one) for one in found])
    return [one.what for one in found if one.state == "bad"]
