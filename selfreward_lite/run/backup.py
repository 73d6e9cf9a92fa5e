"""A copy of a run on another disk or a mounted drive, for a machine that may vanish.

    <root>/<run>/run.sqlite                          a complete snapshot, by SQLite's own backup
    <root>/<run>/votes.sqlite                        the votes given in the app meanwhile
    <root>/<run>/M<t>/                               every model that was exported
    <root>/<run>/training/checkpoints/step-<n>/      the newest checkpoint of a training under way

The run itself never lies there: SQLite's locks and log do not work on such drives. The base in GGUF
is not copied; it is made again from the model. A failed copy is reported once and tried again; the
run continues.
"""

import json
import math
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from selfreward_lite.data import votes
from selfreward_lite.data.store import Store
from selfreward_lite.run.ask import Progress, Watch
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import MANIFEST, copy_file, copy_folder

MINUTES = 5.0  # between two copies while a stage is under way
# Between two checkpoints, half a gigabyte each for an 8B: a drive may keep replaced files, and
# count them.
CHECKPOINT_MINUTES = 30.0


class Backup:
    """Copies a run to `root` at the end of every stage, and every few minutes."""

    def __init__(self, store: Store, root: Path, say: Callable[[str], None]) -> None:
        self._store, self._place, self._say = store, root / store.folder.name, say
        here, there = store.folder.resolve(), self._place.resolve()
        if here == there or here in there.parents or there in here.parents:
            raise UserError(
                f"{root} holds the run itself; give another folder to --mirror, best on another "
                "disk"
            )
        self._check()
        self._last = time.monotonic()
        self._checkpoint_copied = -math.inf
        self._failing = False

    def _check(self) -> None:
        """Refuse to overwrite the copy of another run, or a newer copy of this one."""
        there = self._place / "run.sqlite"
        if not there.exists():
            return
        try:
            with closing(
                sqlite3.connect(f"{there.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
            ) as copy:
                facts = dict(copy.execute("SELECT name, value FROM facts"))
                items = copy.execute("SELECT count(*) FROM items").fetchone()[0]
        except sqlite3.Error as error:
            raise UserError(
                f"{there} cannot be read ({error}); move {self._place} away, or give another "
                "--mirror"
            ) from None
        known = sum(row.done for row in self._store.stages())
        if json.loads(facts.get("birth", "null")) != self._store.fact("birth") or items > known:
            raise UserError(
                f"{self._place} holds a copy of another run, or a newer copy of this one; resume "
                "from that with --restore-from where there is no run of this name, or give "
                "another --mirror or --name"
            )

    def watching(self, watch: Watch) -> Watch:
        """A watcher that passes everything on to `watch`, and copies when it is time to."""

        def watched(at: Progress) -> None:
            watch(at)
            if at.done >= at.total or time.monotonic() - self._last > 60 * MINUTES:
                self.copy()

        return watched

    def copy(self, *, last: bool = False) -> None:
        """Update the copy; the `last` one leaves nothing out. A failure is reported, not raised."""
        self._last = time.monotonic()
        try:
            self._copy(last)
        except (OSError, sqlite3.Error, UserError) as error:
            if not self._failing:
                why = getattr(error, "strerror", None) or error
                self._say(
                    f"{self._place}: not copied there ({why}); the run continues, and tries again"
                )
            self._failing = True
            return
        if self._failing:
            self._say(f"{self._place}: copied there again, with all that was missing")
        self._failing = False

    def _copy(self, last: bool) -> None:
        self._place.mkdir(parents=True, exist_ok=True)
        for model in sorted(self._store.folder.glob("M*")):
            copy_folder(model, self._place / model.name)
        if last or time.monotonic() - self._checkpoint_copied > 60 * CHECKPOINT_MINUTES:
            self._copy_checkpoint()
        # After the models, so that no snapshot names a model that is not there.
        self._copy_database("run.sqlite")
        if (self._store.folder / votes.FILE).exists():  # last: nothing in the run depends on it
            self._copy_database(votes.FILE)

    def _copy_database(self, name: str) -> None:
        """Copy a database through a file here, since SQLite writes in many places of a file."""
        here = self._store.folder / "snapshot.sqlite"
        here.unlink(missing_ok=True)
        try:
            with (
                closing(sqlite3.connect(self._store.folder / name)) as source,
                closing(sqlite3.connect(here)) as snapshot,
            ):
                source.backup(snapshot)
            copy_file(here, self._place / name)
        finally:
            here.unlink(missing_ok=True)

    def _copy_checkpoint(self) -> None:
        """Copy the newest checkpoint, and remove older ones."""
        here, there = (
            folder / "training" / "checkpoints" for folder in (self._store.folder, self._place)
        )
        complete = [step for step in here.glob("step-*") if (step / MANIFEST).exists()]
        newest = max(complete, key=lambda step: int(step.name.removeprefix("step-")), default=None)
        if newest is not None:
            copy_folder(newest, there / newest.name)
            self._checkpoint_copied = time.monotonic()
        for other in there.glob("*"):
            if newest is None or other.name != newest.name:
                shutil.rmtree(other)


def restore(root: Path, folder: Path) -> bool:
    """Restore a run from its copy in `root`, unless it is here already.

    Returns whether it was restored. Raises UserError where there is no copy, or a damaged one.
    """
    if (folder / "run.sqlite").exists():
        return False
    source = root / folder.name
    if not (source / "run.sqlite").exists():
        raise UserError(
            f"{source}: no copy of a run there; fix --restore-from or --name, or leave "
            "--restore-from out"
        )
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    # A machine that vanished while copying left *.part files.
    shutil.copytree(source, part, ignore=shutil.ignore_patterns("*.part"))
    try:
        with closing(sqlite3.connect(part / "run.sqlite")) as copy:
            found = copy.execute("PRAGMA quick_check").fetchone()[0]
    except sqlite3.Error as error:
        found = str(error)
    if found != "ok":
        shutil.rmtree(part)
        raise UserError(
            f"{source / 'run.sqlite'} is damaged ({found}); fix --restore-from, or leave it out to "
            "start again"
        )
    part.rename(folder)
    return True
