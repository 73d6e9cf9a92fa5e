"""A copy of a run in a folder on another disk or in a bucket, for a machine that may vanish.

In a folder, such as a mounted drive (`bucket.py` says what a bucket holds):

    <root>/<run>/run.sqlite                          a complete snapshot, by SQLite's own backup
    <root>/<run>/votes.sqlite                        the votes given in the app meanwhile
    <root>/<run>/M<t>/                               every model that was exported
    <root>/<run>/M<t>/adapter/                       of a model that was trained, until its export
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
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from selfreward_lite.data import votes
from selfreward_lite.data.store import Store
from selfreward_lite.run.ask import Progress, Watch
from selfreward_lite.run.bucket import Bucket, File, Manifest, Unreachable, is_address
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import (
    MANIFEST,
    copy_file,
    copy_files,
    copy_folder,
    hash_file,
    make_folder,
    sync,
)

MINUTES = 5.0  # between two copies while a stage is under way
# Between two checkpoints, half a gigabyte each for an 8B: a drive may keep replaced files, and
# count them.
CHECKPOINT_MINUTES = 30.0
RECORDS, CHECKPOINTS = "run.sqlite", "training/checkpoints"


class Backup:
    """Copies a run to `root` at the end of every stage, and every few minutes.

    Raises UserError where the copy of another run, or a newer copy of this one, would be lost.
    """

    def __init__(self, store: Store, root: Path | str, say: Callable[[str], None]) -> None:
        self._copies: _BucketCopy | _FolderCopy = (
            _BucketCopy(store, str(root)) if is_address(root) else _FolderCopy(store, Path(root))
        )
        self._say = say
        try:
            self._copies.check()
        except Unreachable as error:
            raise UserError(
                f"{self._copies.place}: cannot be used ({error.strerror}); fix the address, its "
                "keys or the network, or leave --mirror out"
            ) from None
        self._last = time.monotonic()
        self._checkpoint_copied = -math.inf
        self._failing = False

    def watching(self, watch: Watch) -> Watch:
        """A watcher that passes everything on to `watch`, and copies when it is time to."""

        def watched(at: Progress) -> None:
            watch(at)
            # A failure may take a minute, which the ends of short stages should not wait for.
            ended = at.done >= at.total and not self._failing
            if ended or time.monotonic() - self._last > 60 * MINUTES:
                self.copy()

        return watched

    def copy(self, *, last: bool = False) -> None:
        """Update the copy; the `last` one leaves nothing out. A failure is reported, not raised."""
        self._last = time.monotonic()
        try:
            self._copy(last)
        except (OSError, sqlite3.Error, UserError) as error:
            if last or not self._failing:
                why = getattr(error, "strerror", None) or error
                then = "the run continues, and tries again"
                if last:
                    then = "the same command tries again"
                self._say(f"{self._copies.place}: not copied there ({why}); {then}")
            self._failing = True
            return
        if self._failing:
            self._say(f"{self._copies.place}: copied there again, with all that was missing")
        self._failing = False

    def _copy(self, last: bool) -> None:
        due = last or time.monotonic() - self._checkpoint_copied > 60 * CHECKPOINT_MINUTES
        if self._copies.update(checkpoint=due):
            self._checkpoint_copied = time.monotonic()


class _FolderCopy:
    """The copy in a folder."""

    def __init__(self, store: Store, root: Path) -> None:
        self._store, self._root, self.place = store, root, root / store.folder.name

    def check(self) -> None:
        """Refuse the run's own folder, the copy of another run, and a newer copy of this one."""
        here, there = self._store.folder.resolve(), self.place.resolve()
        if here == there or here in there.parents or there in here.parents:
            raise UserError(
                f"{self._root} holds the run itself; give another folder to --mirror, best on "
                "another disk"
            )
        path = self.place / "run.sqlite"
        if not path.exists():
            return
        try:
            with closing(_open_copy(path)) as copy:
                facts = dict(copy.execute("SELECT name, value FROM facts"))
                items = _count_items(copy)
        except sqlite3.Error as error:
            raise UserError(
                f"{path} cannot be read ({error}); move {self.place} away, or give another --mirror"
            ) from None
        _compare(self._store, json.loads(facts.get("birth", "null")), items, self.place)

    def update(self, *, checkpoint: bool) -> bool:
        """Copy what changed; returns whether a checkpoint was among it."""
        make_folder(self.place)
        for model in sorted(self._store.folder.glob("M*")):
            copy_folder(model, self.place / model.name)
        if (trained := _find_trained(self._store)) is not None:
            copy_files(trained, self.place / trained.parent.name / trained.name)
        copied = checkpoint and self._copy_checkpoint()
        # After the models, so that no snapshot names a model that is not there.
        for name in _list_databases(self._store):
            with _take_snapshot(self._store, name) as snapshot:
                copy_file(snapshot, self.place / name)
        return copied

    def _copy_checkpoint(self) -> bool:
        """Copy the newest checkpoint, and remove older ones."""
        newest, there = _find_checkpoint(self._store), self.place / CHECKPOINTS
        if newest is not None:
            copy_folder(newest, there / newest.name)
        for other in there.glob("*"):
            if newest is None or other.name != newest.name:
                shutil.rmtree(other)
        return newest is not None


class _BucketCopy:
    """The copy in a bucket."""

    def __init__(self, store: Store, address: str) -> None:
        self._store, self._bucket = store, Bucket(address, store.folder.name)
        self.place = self._bucket.shown

    def check(self) -> dict[str, File]:
        """The files that are there; refuses another run's copy, and a newer one of this run."""
        before = self._bucket.read_newest()
        if before is None:
            return {}
        _compare(self._store, before.birth, before.items, self.place)
        return before.files

    def update(self, *, checkpoint: bool) -> bool:
        """Copy what changed; returns whether a checkpoint was among it."""
        before = self.check()  # again: another machine may have resumed this run meanwhile
        newest = _find_checkpoint(self._store) if checkpoint else None
        here = [one for one in self._store.folder.glob("M*") if (one / MANIFEST).exists()]
        here += [one for one in (newest, _find_trained(self._store)) if one is not None]
        replaced = [f"{self._name(one)}/" for one in here] + [f"{CHECKPOINTS}/"] * checkpoint
        # What else is there stays, such as models that were pruned here; unless it was lost there.
        files = {
            name: file
            for name, file in before.items()
            if not name.startswith(tuple(replaced)) and self._bucket.has(file)
        }
        for folder in here:
            files |= self._copy_folder(folder, before)
        # After the models, so that no snapshot names a model that is not there.
        items = 0
        for name in _list_databases(self._store):
            with _take_snapshot(self._store, name) as snapshot:
                files[name] = self._bucket.put(snapshot)
                if name == RECORDS:
                    with closing(_open_copy(snapshot)) as copy:
                        items = _count_items(copy)
        birth = self._store.fact("birth")
        self._bucket.finish(Manifest(birth=birth, items=items, files=files))
        return newest is not None

    def _copy_folder(self, folder: Path, before: dict[str, File]) -> dict[str, File]:
        """The files of a folder that has a manifest; nothing is read if the same one is there."""
        name = self._name(folder)
        there = {one: file for one, file in before.items() if one.startswith(f"{name}/")}
        manifest = there.get(f"{name}/{MANIFEST}")
        same = manifest is not None and manifest.sha256 == hash_file(folder / MANIFEST)
        if same and all(map(self._bucket.has, there.values())):
            return there
        return {
            self._name(path): self._bucket.put(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix != ".part"
        }

    def _name(self, path: Path) -> str:
        return path.relative_to(self._store.folder).as_posix()


def _compare(store: Store, birth: str | None, items: int, place: Path | str) -> None:
    """Refuse to overwrite the copy of another run, or a newer copy of this one."""
    known = sum(row.done for row in store.stages())
    if birth != store.fact("birth") or items > known:
        raise UserError(
            f"{place} holds a copy of another run, or a newer copy of this one; resume from that "
            "with --restore-from where there is no run of this name, or give another --mirror or "
            "--name"
        )


def _open_copy(path: Path) -> sqlite3.Connection:
    """A database that nobody writes, read without making files beside it."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


def _count_items(copy: sqlite3.Connection) -> int:
    count: int = copy.execute("SELECT count(*) FROM items").fetchone()[0]
    return count


def _list_databases(store: Store) -> list[str]:
    """The records; the votes if there are any, last, since nothing in the run depends on them."""
    return [RECORDS] + [votes.FILE] * (store.folder / votes.FILE).exists()


@contextmanager
def _take_snapshot(store: Store, name: str) -> Iterator[Path]:
    """A complete copy of a database, in a file here: SQLite writes in many places of a file."""
    store.sync()  # a power cut may not leave less here than in a copy: it would be another run's
    here = store.folder / "snapshot.sqlite"
    here.unlink(missing_ok=True)
    try:
        with (
            closing(sqlite3.connect(store.folder / name)) as source,
            closing(sqlite3.connect(here)) as snapshot,
        ):
            source.backup(snapshot)
        yield here
    finally:
        here.unlink(missing_ok=True)


def _find_checkpoint(store: Store) -> Path | None:
    """The newest complete checkpoint."""
    folder = store.folder / CHECKPOINTS
    complete = [step for step in folder.glob("step-*") if (step / MANIFEST).exists()]
    return max(complete, key=lambda step: int(step.name.removeprefix("step-")), default=None)


def _find_trained(store: Store) -> Path | None:
    """The adapter of a model that was trained and not exported yet: hours of work, recorded."""
    candidate = store.next_model()
    folder = store.model_dir(candidate)
    if (folder / MANIFEST).exists() or not store.is_done(candidate, "training"):
        return None
    return folder / "adapter"


def check_place(root: str) -> None:
    """Raise UserError if `root` is an address that cannot be used, before any work is done."""
    if is_address(root):
        Bucket(root, "")


def has_copy(root: Path | str, name: str) -> bool:
    """Whether there is a copy of the run `name` at `root`, be it damaged.

    A machine that vanished while it made the first one left a folder without records.
    """
    if not is_address(root):
        return (Path(root) / name / RECORDS).exists()
    bucket = Bucket(str(root), name)
    with _restoring(bucket):
        return bucket.read_newest() is not None


def restore(root: Path | str, folder: Path) -> bool:
    """Restore a run from its copy at `root`, unless it is here already.

    Returns whether it was restored. Raises UserError where there is no copy, or a damaged one.
    """
    if (folder / RECORDS).exists():
        return False
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"{folder} has files and no {RECORDS}: a part of a run; move it away, and give the "
            "same command again"
        )
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        source = (_restore_bucket if is_address(root) else _restore_folder)(root, folder.name, part)
        _check_records(part / RECORDS, source)
    except UserError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    part.rename(folder)
    sync(folder.parent)
    return True


def _restore_folder(root: Path | str, name: str, part: Path) -> str:
    """Copy a run from a folder to `part`; returns where its records were."""
    source = Path(root) / name
    if not (source / RECORDS).exists():
        raise _no_copy(source)
    copy_files(source, part)  # without the *.part of a machine that vanished while copying
    return str(source / RECORDS)


def _restore_bucket(root: Path | str, name: str, part: Path) -> str:
    """Copy a run from a bucket to `part`; returns where its records were."""
    bucket = Bucket(str(root), name)
    with _restoring(bucket):
        manifest = bucket.read_newest()
        if manifest is None:
            raise _no_copy(bucket.shown)
        bucket.download(manifest, part)
    return f"{bucket.shown}: {RECORDS}"


def _no_copy(source: Path | str) -> UserError:
    return UserError(
        f"{source}: no copy of a run there; fix --restore-from or --name, or leave --restore-from "
        "out"
    )


@contextmanager
def _restoring(bucket: Bucket) -> Iterator[None]:
    """An unreachable bucket is an error that the user can fix."""
    try:
        yield
    except Unreachable as error:
        raise UserError(
            f"{bucket.shown}: cannot be read ({error.strerror}); fix the address, its keys or the "
            "network, or leave --restore-from out"
        ) from None


def _check_records(path: Path, source: str) -> None:
    """Raise UserError, naming `source`, unless the database at `path` is whole."""
    try:
        with closing(sqlite3.connect(path)) as copy:
            found = copy.execute("PRAGMA quick_check").fetchone()[0]
    except sqlite3.Error as error:
        found = str(error)
    if found != "ok":
        raise UserError(
            f"{source} is damaged ({found}); fix --restore-from, or leave it out to start again"
        )
