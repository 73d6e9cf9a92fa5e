"""What a person sees on stderr while a run works: a line a stage, with progress, rate, time left and what was dropped.

Knows: rich, terminals and pipes. Does not know: stages' meaning.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
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
from rich.table import Column

from selfreward_lite.run import ask

_QUIET_SECONDS = 20.0  # into a pipe, a long stage says how far it is this often
console = Console(stderr=True)


def say(text: str) -> None:
    """Print a line as it is, whatever brackets are in it."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


class Display:
    """A watcher for `runner` that draws; use it as a context manager.

    A stage under way is a bar at the bottom of the terminal; one that has ended is a line that stays.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: dict[tuple[int, str], TaskID] = {}
        self._spoke = time.monotonic()
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

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, at: ask.Progress) -> None:
        """Show how far a stage is."""
        key = (at.iteration, at.stage)
        if at.message:
            self._console.print(
                f"M{at.iteration} {at.stage}: {at.message}",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )
        if at.done >= at.total:
            if key in self._bars:
                self._progress.remove_task(self._bars.pop(key))
            self._say(at)
        elif self._console.is_terminal:
            if key not in self._bars:
                self._bars[key] = self._progress.add_task(
                    f"M{at.iteration} {at.stage}", total=at.total, note=""
                )
            self._progress.update(self._bars[key], completed=at.done, total=at.total, note=note(at))
        elif time.monotonic() - self._spoke >= _QUIET_SECONDS:
            self._say(at)

    def _say(self, at: ask.Progress) -> None:
        self._spoke = time.monotonic()
        line = f"M{at.iteration} {at.stage}: {at.done}/{at.total} in {at.seconds:.1f} s{time_left(at)}  {note(at)}"
        self._console.print(line.rstrip(), highlight=False, soft_wrap=True, markup=False)


@contextmanager
def downloads() -> Iterator[Callable[[str, int, int], None]]:
    """Give what is to be told of every file under way: its name, the bytes that are there and those of the whole.

    On a terminal that is a bar a file, elsewhere a line when it is whole.
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


def note(at: ask.Progress) -> str:
    """Return rate, what was dropped and why, and what a trainer last said, in words.

    >>> note(ask.Progress(1, "responses", 10, done=4, tokens=300, seconds=2.0))
    '150 tokens/s'
    """
    parts = []
    if at.tokens and at.seconds > 0:
        parts.append(f"{at.tokens / at.seconds:.0f} tokens/s")
    names = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}
    parts += [f"{word} {at.values[name]:.3f}" for name, word in names.items() if name in at.values]
    if at.drops:
        parts.append(
            "dropped: "
            + ", ".join(f"{count} {reason}" for reason, count in at.drops.most_common(3))
        )
    return "  ".join(parts)


def time_left(at: ask.Progress) -> str:
    """Return how long the rest will take at the rate so far, in words; nothing before the first item.

    >>> time_left(ask.Progress(1, "responses", 10, done=4, seconds=2.0))
    ', 3 s left'
    """
    fresh = at.done - at.already
    if not fresh or at.done >= at.total:
        return ""
    return f", {at.seconds / fresh * (at.total - at.done):.0f} s left"
