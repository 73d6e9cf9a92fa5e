"""A disk that fails on request, under the real functions of Python that write, sync and rename.

What a program sees is kept in a real folder; what would survive a power cut, beside it
(`simulated_storage.py`). SIGKILL keeps everything that was written. After a fault that ends the
process, nothing is written any more, whatever `finally` blocks try; `end_command` puts back what
the disk held at that moment.

Not modelled: sectors that go bad, blocks of one file that reach the disk in another order, what a
file system does beyond POSIX, and writes of SQLite itself that are cut off inside a checkpoint.
"""

import builtins
import copy
import errno
import io
import os
import random
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from simulated_storage import File, Folder, Image, Storage

from selfreward_lite.data import database

KILL, POWER, TORN, FULL, ERROR, LOST = "kill", "power", "torn", "full", "error", "lost"
ENDS = (KILL, POWER)
Reach = Callable[[str, tuple[str, ...]], str | None]  # a moment's name, and what may happen there
WRITES = re.compile(r"\s*(INSERT|UPDATE|DELETE|COMMIT|ALTER|CREATE|PRAGMA wal_checkpoint)", re.I)
TABLE = re.compile(r"(?:INTO|UPDATE|FROM|TABLE) (?!OR )(\w+)")
PATCHED = ("open", "write", "truncate", "close", "fsync", "replace", "rename", "unlink", "remove")
PATCHED += ("mkdir", "rmdir", "sendfile")


class Dead(BaseException):
    """The simulated process has ended here."""


@dataclass(frozen=True)
class Saved:
    """What the real folder held, and what was known of it."""

    image: Image
    storage: Storage


class Disk:
    """A disk at `root`. `reach` decides what happens at a moment; `luck` what a power cut keeps."""

    def __init__(self, root: Path, luck: random.Random) -> None:
        self.root, self.luck = root, luck
        self.reach: Reach = lambda point, kinds: None
        self.is_full = self._is_dead = False
        self._prefix = f"{root}{os.sep}"
        self.storage = Storage(str(root))
        self._handles: set[int] = set()
        self._databases: list[sqlite3.Connection] = []
        self._image: Image = {}
        self._real = SimpleNamespace(**{name: getattr(os, name) for name in PATCHED})

    # -- commands ----------

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Python's functions and the store's database use this disk inside the block."""
        with (
            patch.multiple(os, **{name: getattr(self, f"_{name}") for name in PATCHED}),
            patch.object(builtins, "open", self._open_file),
            patch.object(io, "open", self._open_file),
            patch.object(database, "Database", self._make_database()),
        ):
            yield

    def die(self, kind: str) -> None:
        """End the process: by SIGKILL, or as all power goes."""
        is_cut = kind == POWER
        self._image = self.storage.cut_power(self.luck) if is_cut else self.storage.read_all()
        self._is_dead = True
        raise Dead

    def end_command(self) -> None:
        """Free what an ended process held; after its death, put back what the disk held then."""
        for one in self._databases:
            sqlite3.Connection.close(one)
        for handle in self._handles:
            self._real.close(handle)
        self._databases.clear()
        self._handles.clear()
        self.is_full = False
        if self._is_dead:
            self._is_dead = False
            self.load(self._image)

    def load(self, image: Image) -> None:
        """Make the real folder hold files by path; None stands for a folder."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        for name, content in image.items():
            path = self.root / name
            if content is None:
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def cut_power(self) -> None:
        """All power goes while no command runs."""
        self.load(self.storage.cut_power(self.luck))

    def save(self) -> Saved:
        """The disk as it is, to be put back by `restore`."""
        return Saved(self.storage.read_all(), copy.deepcopy(self.storage))

    def restore(self, saved: Saved) -> None:
        """Put back what was saved, as after SIGKILL at that moment."""
        self.load(saved.image)
        here, self.storage = self.storage, copy.deepcopy(saved.storage)
        self.storage.move(here)

    def clear(self, name: str) -> None:
        """All that was in a folder at the top is gone."""
        shutil.rmtree(self.root / name, ignore_errors=True)
        (self.root / name).mkdir()
        self.storage.empty(name)

    def is_dead(self) -> bool:
        """Whether the process has ended, so that nothing reaches the disk."""
        return self._is_dead

    # -- moments ----------

    def _place(self, path, dir_fd=None) -> str | None:
        """A path as seen from the root of the disk, None where it is not on it."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        text = os.fspath(path)
        if not isinstance(text, str):
            return None
        if dir_fd is not None:
            text = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)
        return text[len(self._prefix) :] if text.startswith(self._prefix) else None

    def _moment(self, what: str, place: str, *kinds: str) -> str | None:
        """Reach a moment: end the process, or raise the error that is due there."""
        if self._is_dead:
            raise Dead
        point = re.sub(r"\d+", "#", f"{what} {place}")
        kind = self.reach(point, (*ENDS, *kinds))
        if kind in ENDS:
            self.die(kind)
        if kind == ERROR:
            raise OSError(errno.EIO, os.strerror(errno.EIO), f"{self._prefix}{place}")
        self.is_full = self.is_full or kind == FULL
        if self.is_full and FULL in kinds and TORN not in kinds:
            raise self._full(place)
        return kind

    def _full(self, place: str) -> OSError:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{self._prefix}{place}")

    # -- Python's functions ----------

    def _open_file(
        self,
        file,
        mode="r",
        buffering=-1,
        encoding=None,
        errors=None,
        newline=None,
        closefd=True,
        opener=None,
    ):
        place = None if isinstance(file, int) else self._place(file)
        if place is None or opener is not None:
            more = (buffering, encoding, errors, newline, closefd, opener)
            return _REAL_OPEN(file, mode, *more)
        if not set(mode) & set("wax+"):
            self._moment("read", place, ERROR)
            return _REAL_OPEN(file, mode, buffering, encoding, errors, newline)
        is_new = not os.path.exists(file)
        if is_new or "w" in mode:
            self._moment("create", place, FULL, ERROR)
        raw = _RawFile(file, mode.replace("b", "").replace("t", ""), self, place)
        if is_new:
            self.storage.change((place, File()))
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

    def _open(self, path, flags, mode=0o777, *, dir_fd=None):
        place = self._place(path, dir_fd)
        is_new = place is not None and bool(flags & os.O_CREAT) and not os.path.exists(path)
        if place is not None and is_new:
            self._moment("create", place, FULL, ERROR)
        handle = self._real.open(path, flags, mode, dir_fd=dir_fd)
        if place is not None:
            self._handles.add(handle)
            if is_new:
                self.storage.change((place, File()))
        return handle

    def _close(self, handle):
        self._handles.discard(handle)
        self._real.close(handle)

    def _write(self, handle, data):
        if handle not in self._handles:
            return self._real.write(handle, data)
        return self.write(lambda part: self._real.write(handle, part), self._place(handle), data)

    def write(self, write: Callable[[bytes], int], place: str, data: bytes) -> int:
        """Write, or write half and fail."""
        if self._is_dead:
            return len(data)
        was_full, half = self.is_full, data[: len(data) // 2]
        kind = self._moment("write", place, TORN, FULL, ERROR)
        if kind == TORN:
            write(half)
            self.die(KILL)
        if self.is_full and not was_full and half:
            return write(half)  # as much as there is room for; the next write fails
        if self.is_full:
            raise self._full(place)
        return write(data)

    def _truncate(self, path, length):
        if (place := self._place(path)) is not None:
            self._moment("write", place, FULL, ERROR)
        self._real.truncate(path, length)

    def _fsync(self, handle):
        place = self._place(handle)
        if place is None:
            self._real.fsync(handle)
            return
        if self._moment("sync", place, ERROR, LOST) == LOST:
            return
        self.storage.sync(place)

    def _replace(self, source, target, *, src_dir_fd=None, dst_dir_fd=None):
        here, there = self._place(source, src_dir_fd), self._place(target, dst_dir_fd)
        if here is None or there is None:
            self._real.replace(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            return
        self._moment("rename", there, FULL, ERROR)
        node = self.storage.node(here)
        self.storage.forget(there)
        self._real.replace(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        self.storage.change((here, None), (there, node))

    _rename = _replace

    def _unlink(self, path, *, dir_fd=None):
        place = self._place(path, dir_fd)
        if place is None or not os.path.lexists(f"{self._prefix}{place}"):
            self._real.unlink(path, dir_fd=dir_fd)
            return
        self._moment("remove", place, ERROR)
        self.storage.forget(place)
        self._real.unlink(path, dir_fd=dir_fd)
        self.storage.change((place, None))

    _remove = _unlink

    def _mkdir(self, path, mode=0o777, *, dir_fd=None):
        place = self._place(path, dir_fd)
        if place is None or os.path.exists(f"{self._prefix}{place}"):
            self._real.mkdir(path, mode, dir_fd=dir_fd)
            return
        if os.path.exists(os.path.dirname(f"{self._prefix}{place}")):
            self._moment("make", f"{place}/", FULL, ERROR)
        self._real.mkdir(path, mode, dir_fd=dir_fd)
        self.storage.change((place, Folder()))

    def _rmdir(self, path, *, dir_fd=None):
        place = self._place(path, dir_fd)
        if place is not None:
            self._moment("remove", f"{place}/", ERROR)
        self._real.rmdir(path, dir_fd=dir_fd)
        if place is not None:
            self.storage.change((place, None))

    def _sendfile(self, *_):
        """Copy through `write`, which can fail in the middle."""
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))

    # -- SQLite ----------

    def _make_database(self) -> type[database.Database]:
        disk = self

        class WatchedDatabase(database.Database):
            """The store's connection; every statement that writes is a moment."""

            def __init__(self, *arguments, **named):
                super().__init__(*arguments, **named)
                disk._databases.append(self)

            def execute(self, *arguments):
                disk._reach_statement(self, arguments[0])
                answer = super().execute(*arguments)
                if "journal_mode" in arguments[0]:
                    disk._begin_log(self)
                if "wal_checkpoint" in arguments[0]:
                    disk._sync_database(self)
                return answer

            def executemany(self, *arguments):
                disk._reach_statement(self, arguments[0])
                return super().executemany(*arguments)

            def executescript(self, script):
                disk._reach_statement(self, "CREATE TABLE tables")
                return super().executescript(script)

            def close(self):
                super().close()
                if not disk._is_dead and self in disk._databases:
                    disk._databases.remove(self)
                    disk._sync_database(self)  # the last connection makes a checkpoint

        return WatchedDatabase

    def _reach_statement(self, connection: database.Database, statement: str) -> None:
        if self._is_dead:
            raise Dead
        what, kinds = _name_statement(statement)
        if not what:
            return
        kind = self.reach(what, kinds)
        if kind in ENDS:
            self.die(kind)
        self.is_full = self.is_full or kind == FULL
        if kind == ERROR or (self.is_full and FULL in kinds):
            words, code = "disk I/O error", sqlite3.SQLITE_IOERR
            if kind != ERROR:
                words, code = "database or disk is full", sqlite3.SQLITE_FULL
            with connection.explain_errors():
                error = sqlite3.OperationalError(words)
                error.sqlite_errorcode = code
                raise error

    def _begin_log(self, connection: database.Database) -> None:
        """SQLite has opened a database; it syncs one that it has just made."""
        place = self._place(connection.folder / database.FILE)
        if place not in self.storage.logs:
            if self.storage.node(place) is None:
                self.storage.sync_database(place)
            self.storage.logs[place] = b""

    def _sync_database(self, connection: database.Database) -> None:
        self.storage.sync_database(self._place(connection.folder / database.FILE))


class _RawFile(io.FileIO):
    """A file whose writes reach the disk's moments."""

    def __init__(self, path, mode, disk: Disk, place: str) -> None:
        super().__init__(path, mode)
        self._disk, self._at = disk, place

    def write(self, data):
        return self._disk.write(super().write, self._at, bytes(data))


_REAL_OPEN = open


@cache
def _name_statement(statement: str) -> tuple[str, tuple[str, ...]]:
    """The moment of a statement, and what may happen there; no name where nothing may."""
    if match := WRITES.match(statement):
        table = TABLE.search(statement)
        what = " ".join([match[1], *([table[1].split("_")[0]] if table else [])])
        return f"sqlite {what}", (*ENDS, FULL, ERROR)
    if statement.startswith("SELECT"):
        return "sqlite SELECT", (*ENDS, ERROR)
    return "", ()
