"""Bugs that a simulation must find, planted for as long as a block lasts."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

from selfreward_lite.run import backup, budget
from selfreward_lite.run.context import RunContext
from selfreward_lite.run.steps import export, training
from selfreward_lite.system import files
from selfreward_lite.training.job import Job


@contextmanager
def _no_fsync() -> Iterator[None]:
    """Nothing is synced, but by SQLite."""
    with ExitStack() as stack:
        for module in (files, backup, training):
            stack.enter_context(patch.object(module, "sync", lambda path: None))
        yield


@contextmanager
def _commit_before_write() -> Iterator[None]:
    """The export of an adapter is committed first; the manifest of the model is written then."""
    late: list[tuple] = []
    once, write_manifest = RunContext.once, export.write_manifest

    def write_later(folder: Path, facts: dict) -> None:
        if folder.name == "base":  # is made again where it has none
            write_manifest(folder, facts)
        else:
            late.append((folder, facts))

    def commit_and_write(run, *arguments):
        late.clear()
        once(run, *arguments)
        for one in late:
            write_manifest(*one)

    with (
        patch.object(RunContext, "once", commit_and_write),
        patch.object(export, "write_manifest", write_later),
    ):
        yield


@contextmanager
def _rename_before_fsync() -> Iterator[None]:
    """A file gets its name first, and is synced then; its name never is."""

    @contextmanager
    def atomic_write(out: Path) -> Iterator[Path]:
        part = out.with_name(f".{out.name}.{os.getpid()}.part")
        yield part
        os.replace(part, out)
        files.sync(out)

    def copy_file(source: Path, target: Path) -> None:
        part = target.with_name(f"{target.name}.part")
        shutil.copyfile(source, part)
        os.replace(part, target)
        files.sync(target)

    with (
        patch.object(files, "atomic_write", atomic_write),
        patch.object(backup, "copy_file", copy_file),
    ):
        yield


@contextmanager
def _time_of_day() -> Iterator[None]:
    """A training compares the time of day with its deadline."""

    def is_out_of_time(job: Job) -> bool:
        return job.until is not None and time.time() > job.until

    def deadline(run: RunContext, iteration: int) -> float:
        return time.time() + run.deadline - time.monotonic()

    with (
        patch.object(Job, "is_out_of_time", property(is_out_of_time)),
        patch.object(budget, "training_deadline", deadline),
    ):
        yield


BUGS = {
    "no fsync": _no_fsync,
    "commit before write": _commit_before_write,
    "rename before fsync": _rename_before_fsync,
    "time of day": _time_of_day,
}
