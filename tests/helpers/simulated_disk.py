"""A disk that fails on request, under the real functions of Python that write, sync and rename.

What a program sees is kept in a real folder. Beside it stands what would survive a power cut:

- the content of a file as of its last fsync; of what was written since, a power cut keeps all,
  nothing, or a part, with or without zeros up to the new length;
- the names in a folder as of its last fsync; of the changes since (in the order in which they were
  made, across folders) a power cut keeps the first few, each whole: so a rename may be undone, and
  a folder that nobody synced may be gone with all that is in it;
- of SQLite's files: the database as of the last checkpoint, and of its log at least what was synced
  by then, and after that a part, cut at any byte. SQLite reads that log itself. That SQLite syncs
  where it says so is believed, and not tried.

SIGKILL keeps everything that was written. After a fault that ends the process, nothing is written
any more, whatever `finally` blocks try; `restart` puts back what the disk held at that moment.

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
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

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


@dataclass(eq=False)
class File:
    """`safe` is what a power cut leaves at least, `last` the content when its name was removed."""

    safe: bytes = b""
    last: bytes | None = None


@dataclass(eq=False)
class Folder:
    """Names as they are, and as a power cut leaves them at least."""

    names: dict[str, "File | Folder"] = field(default_factory=dict)
    safe: dict[str, "File | Folder"] = field(default_factory=dict)


Change = list[tuple[Folder, str, File | Folder | None]]


@dataclass(frozen=True)
class Saved:
    """What the real folder held, and what was known of it."""

    image: dict[str, bytes | None]
    known: tuple[Folder, list[Change], dict[str, bytes]]


class Disk:
    """A disk at `root`. `reach` decides what happens at a moment; `luck` what a power cut keeps."""

    def __init__(self, root: Path, luck: random.Random) -> None:
        self.root, self.luck = root, luck
        self.reach: Reach = lambda point, kinds: None
        self.is_full = self._is_dead = False
        self._prefix = f"{root}{os.sep}"
        self._top, self._changes = Folder(), list[Change]()
        self._handles: set[int] = set()
        self._databases: list[sqlite3.Connection] = []
        self._logs: dict[str, bytes] = {}  # what is safe of each database's log
        self._image: dict[str, bytes | None] = {}
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
        self._image = self._cut_power() if kind == POWER else self._read_all()
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

    def load(self, image: dict[str, bytes | None]) -> None:
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
        self.load(self._cut_power())

    def save(self) -> "Saved":
        """The disk as it is, to be put back by `restore`."""
        known = copy.deepcopy((self._top, self._changes, self._logs))
        return Saved(self._read_all(), known)

    def restore(self, saved: "Saved") -> None:
        """Put back what was saved, as after SIGKILL at that moment."""
        self.load(saved.image)
        self._top, self._changes, self._logs = copy.deepcopy(saved.known)

    def adopt(self) -> None:
        """Believe that all in the real folder is safe, as on a disk that was just mounted."""
        self._top, self._changes, self._logs = Folder(), [], {}
        for name, content in self._read_all().items():
            if name.endswith("-wal"):
                self._logs[name.removesuffix("-wal")] = content
            else:
                folder, last = self._find(name.split(os.sep), make=True)
                node = Folder() if content is None else File(content)
                folder.names[last] = folder.safe[last] = node

    def remove(self, name: str) -> None:
        """A folder at the top is gone, with all that was in it."""
        shutil.rmtree(self.root / name, ignore_errors=True)
        self._top.names.pop(name, None)
        self._top.safe.pop(name, None)
        self._logs = {log: safe for log, safe in self._logs.items() if not log.startswith(name)}

    def is_dead(self) -> bool:
        """Whether the process has ended, so that nothing reaches the disk."""
        return self._is_dead

    # -- what survives ----------

    def _read_all(self) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        for place, folders, files in os.walk(self.root):
            inside = os.path.relpath(place, self.root)
            for name in folders:
                found[os.path.normpath(os.path.join(inside, name))] = None
            for name in files:
                if not name.endswith("-shm"):
                    path = os.path.join(place, name)
                    found[os.path.normpath(os.path.join(inside, name))] = self._read(path)
        return found

    def _read(self, path: str) -> bytes:
        with io.FileIO(path) as file:
            return file.read()

    def _cut_power(self) -> dict[str, bytes | None]:
        """The files that a power cut leaves; from then on, exactly these are safe."""
        contents = {id(node): self._read(path) for path, node in self._walk(self._top, "")}
        logs = {name: self._cut_log(name) for name in self._logs}
        for change in self._changes[: self.luck.randint(0, len(self._changes))]:
            _apply(change)
        self._changes, self._logs = [], {}
        left: dict[str, bytes | None] = {}
        self._settle(self._top, "", contents, left)
        for name, log in logs.items():
            if name in left and log:
                left[f"{name}-wal"], self._logs[name] = log, log
        return left

    def _walk(self, folder: Folder, place: str) -> Iterator[tuple[str, File]]:
        for name, node in folder.names.items():
            path = f"{place}{os.sep}{name}" if place else f"{self._prefix}{name}"
            if isinstance(node, File):
                yield path, node
            else:
                yield from self._walk(node, path)

    def _settle(
        self, folder: Folder, place: str, contents: dict[int, bytes], left: dict[str, bytes | None]
    ) -> None:
        folder.names = dict(folder.safe)
        for name, node in folder.safe.items():
            path = f"{place}{name}"
            if isinstance(node, Folder):
                left[path] = None
                self._settle(node, f"{path}{os.sep}", contents, left)
            else:
                written = contents.get(id(node), node.safe if node.last is None else node.last)
                node.safe = left[path] = self._keep_some(node.safe, written)

    def _keep_some(self, safe: bytes, written: bytes) -> bytes:
        if safe == written:
            return safe
        cut = self.luck.randint(0, len(written))
        zeros = bytes(len(written) - cut)
        return self.luck.choice((safe, written, written[:cut], written[:cut] + zeros))

    def _cut_log(self, name: str) -> bytes:
        path = f"{self._prefix}{name}-wal"
        if not os.path.exists(path):
            return b""
        safe, written = self._logs[name], self._read(path)
        begun_again = written[:32] != safe[:32]  # the header, which SQLite syncs at once
        least = min(32 if begun_again else len(safe), len(written))
        cut = self.luck.randint(least, len(written))
        return written[:cut] + safe[cut:]

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

    def _find(self, parts: list[str], make: bool = False) -> tuple[Folder, str]:
        folder = self._top
        for part in parts[:-1]:
            node = folder.names.get(part)
            if node is None and make:
                node = folder.names[part] = folder.safe[part] = Folder()
            assert isinstance(node, Folder), f"{parts}: not a known folder"
            folder = node
        return folder, parts[-1]

    def _node(self, place: str) -> File | Folder | None:
        folder, name = self._find(place.split(os.sep))
        return folder.names.get(name)

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

    def _change(self, *parts: tuple[str, File | Folder | None]) -> None:
        change: Change = []
        for place, node in parts:
            folder, name = self._find(place.split(os.sep))
            change.append((folder, name, node))
            if node is None:
                folder.names.pop(name, None)
            else:
                folder.names[name] = node
        self._changes.append(change)

    def _forget(self, place: str) -> None:
        """Note the content of a file that is about to lose its name."""
        node = self._node(place)
        if isinstance(node, File):
            node.last = self._read(f"{self._prefix}{place}")

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
            self._change((place, File()))
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
                self._change((place, File()))
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
        kind = self._moment("write", place, TORN, FULL, ERROR)
        if kind == TORN or self.is_full:
            write(data[: len(data) // 2])
            if kind == TORN:
                self.die(KILL)
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
        node = self._node(place)
        if isinstance(node, File):
            node.safe = self._read(f"{self._prefix}{place}")
        elif node is not None:
            self._sync_names(node)

    def _sync_names(self, folder: Folder) -> None:
        due = [one for one in self._changes if any(part[0] is folder for part in one)]
        for change in due:
            _apply(change)
        self._changes = [one for one in self._changes if one not in due]

    def _replace(self, source, target, *, src_dir_fd=None, dst_dir_fd=None):
        here, there = self._place(source, src_dir_fd), self._place(target, dst_dir_fd)
        if here is None or there is None:
            self._real.replace(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            return
        self._moment("rename", there, FULL, ERROR)
        node = self._node(here)
        self._forget(there)
        self._real.replace(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        self._change((here, None), (there, node))

    _rename = _replace

    def _unlink(self, path, *, dir_fd=None):
        place = self._place(path, dir_fd)
        if place is None or not os.path.lexists(f"{self._prefix}{place}"):
            self._real.unlink(path, dir_fd=dir_fd)
            return
        self._moment("remove", place, ERROR)
        self._forget(place)
        self._real.unlink(path, dir_fd=dir_fd)
        self._change((place, None))

    _remove = _unlink

    def _mkdir(self, path, mode=0o777, *, dir_fd=None):
        place = self._place(path, dir_fd)
        if place is None or os.path.exists(f"{self._prefix}{place}"):
            self._real.mkdir(path, mode, dir_fd=dir_fd)
            return
        if os.path.exists(os.path.dirname(f"{self._prefix}{place}")):
            self._moment("make", f"{place}/", FULL, ERROR)
        self._real.mkdir(path, mode, dir_fd=dir_fd)
        self._change((place, Folder()))

    def _rmdir(self, path, *, dir_fd=None):
        place = self._place(path, dir_fd)
        if place is not None:
            self._moment("remove", f"{place}/", ERROR)
        self._real.rmdir(path, dir_fd=dir_fd)
        if place is not None:
            self._change((place, None))

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
        if place not in self._logs:
            if self._node(place) is None:
                self._sync_database(connection)
            self._logs[place] = b""

    def _sync_database(self, connection: database.Database) -> None:
        """SQLite has synced a database, its log, and their names."""
        place = self._place(connection.folder / database.FILE)
        path = f"{self._prefix}{place}"
        if place is None or not os.path.exists(path):
            return
        folder, name = self._find(place.split(os.sep))
        node = folder.names.setdefault(name, File())
        folder.safe[name] = node
        assert isinstance(node, File)
        node.safe = self._read(path)
        self._logs[place] = self._read(f"{path}-wal") if os.path.exists(f"{path}-wal") else b""


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


def _apply(change: Change) -> None:
    for folder, name, node in change:
        if node is None:
            folder.safe.pop(name, None)
        else:
            folder.safe[name] = node
