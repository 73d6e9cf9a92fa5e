"""What a power cut leaves of a folder, beside what a program sees in it.

- the content of a file as of its last fsync; of what was written since, a power cut keeps all,
  nothing, or a part, with or without zeros up to the new length;
- the names in a folder as of its last fsync; of the changes since (in the order in which they were
  made, across folders) a power cut keeps the first few, each whole: so a rename may be undone, and
  a folder that nobody synced may be gone with all that is in it;
- of SQLite's files: the database as of the last checkpoint, and of its log at least what was synced
  by then, and after that a part, cut at any byte. SQLite reads that log itself. That SQLite syncs
  where it says so is believed, and not tried.
"""

import io
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

Image = dict[str, bytes | None]  # files by path; None stands for a folder


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


class Storage:
    """The names and contents below `root`, which lie in a real folder, and what of them is safe."""

    def __init__(self, root: str) -> None:
        self._prefix = f"{root}{os.sep}"
        self.top, self.changes = Folder(), list[Change]()
        self.logs: dict[str, bytes] = {}  # what is safe of each database's log

    def adopt(self) -> None:
        """Believe that all in the real folder is safe, as on a disk that was just mounted."""
        self.top, self.changes, self.logs = Folder(), [], {}
        for name, content in self.read_all().items():
            if name.endswith("-wal"):
                self.logs[name.removesuffix("-wal")] = content or b""
            else:
                folder, last = self.find(name, make=True)
                node = Folder() if content is None else File(content)
                folder.names[last] = folder.safe[last] = node

    def find(self, place: str, make: bool = False) -> tuple[Folder, str]:
        """The folder that holds a path, and the path's last name."""
        folder, parts = self.top, place.split(os.sep)
        for part in parts[:-1]:
            node = folder.names.get(part)
            if node is None and make:
                node = folder.names[part] = folder.safe[part] = Folder()
            assert isinstance(node, Folder), f"{place}: not in a known folder"
            folder = node
        return folder, parts[-1]

    def node(self, place: str) -> File | Folder | None:
        """What has a path now."""
        folder, name = self.find(place)
        return folder.names.get(name)

    def change(self, *parts: tuple[str, File | Folder | None]) -> None:
        """Let names stand for other nodes, or for none; a power cut undoes all of it or nothing."""
        change: Change = []
        for place, node in parts:
            folder, name = self.find(place)
            change.append((folder, name, node))
            if node is None:
                folder.names.pop(name, None)
            else:
                folder.names[name] = node
        self.changes.append(change)

    def sync(self, place: str) -> None:
        """Make a file's content or a folder's names safe."""
        node = self.node(place)
        if isinstance(node, File):
            node.safe = self.read(place)
        elif node is not None:
            due = [one for one in self.changes if any(part[0] is node for part in one)]
            for change in due:
                _apply(change)
            self.changes = [one for one in self.changes if one not in due]

    def forget(self, place: str) -> None:
        """Note the content of a file that is about to lose its name."""
        node = self.node(place)
        if isinstance(node, File):
            node.last = self.read(place)

    def sync_database(self, place: str) -> None:
        """SQLite has synced a database, its log, and their names."""
        folder, name = self.find(place)
        node = folder.names.setdefault(name, File())
        folder.safe[name] = node
        assert isinstance(node, File)
        node.safe = self.read(place)
        self.logs[place] = self._read_log(place)

    def move(self, here: "Storage") -> None:
        """Stand for the real folder of another one, which holds the same."""
        self._prefix = here._prefix

    def empty(self, name: str) -> None:
        """All that was in a folder at the top is gone."""
        self.top.names[name] = self.top.safe[name] = Folder()
        self.logs = {log: safe for log, safe in self.logs.items() if not log.startswith(name)}

    def read_all(self) -> Image:
        """Everything in the real folder, without the memory that SQLite shares."""
        found: Image = {}
        for place, folders, files in os.walk(self._prefix):
            inside = os.path.relpath(place, self._prefix)
            for name in (*folders, *files):
                path = os.path.normpath(os.path.join(inside, name))
                if not name.endswith("-shm"):
                    found[path] = None if name in folders else self.read(path)
        return found

    def read(self, place: str) -> bytes:
        """The content of a file now."""
        with io.FileIO(f"{self._prefix}{place}") as file:
            return file.read()

    def cut_power(self, luck: random.Random) -> Image:
        """The files that a power cut leaves; from then on, exactly these are safe."""
        contents = {id(node): self.read(place) for place, node in _walk(self.top)}
        logs = {name: self._cut_log(name, luck) for name in self.logs}
        for change in self.changes[: luck.randint(0, len(self.changes))]:
            _apply(change)
        self.changes, self.logs = [], {}
        left: Image = {}
        _settle(self.top, "", contents, left, luck)
        for name, log in logs.items():
            if name in left and log:
                left[f"{name}-wal"] = self.logs[name] = log
        return left

    def _read_log(self, place: str) -> bytes:
        return self.read(f"{place}-wal") if os.path.exists(f"{self._prefix}{place}-wal") else b""

    def _cut_log(self, place: str, luck: random.Random) -> bytes:
        safe, written = self.logs[place], self._read_log(place)
        if not written:
            return b""
        begun_again = written[:32] != safe[:32]  # the header, which SQLite syncs at once
        least = min(32 if begun_again else len(safe), len(written))
        cut = luck.randint(least, len(written))
        return written[:cut] + safe[cut:]


def _walk(folder: Folder, place: str = "") -> Iterator[tuple[str, File]]:
    for name, node in folder.names.items():
        if isinstance(node, File):
            yield f"{place}{name}", node
        else:
            yield from _walk(node, f"{place}{name}{os.sep}")


def _settle(
    folder: Folder, place: str, contents: dict[int, bytes], left: Image, luck: random.Random
) -> None:
    """Keep what is safe of a folder, and some of what was written since."""
    folder.names = dict(folder.safe)
    for name, node in folder.safe.items():
        path = f"{place}{name}"
        if isinstance(node, Folder):
            left[path] = None
            _settle(node, f"{path}{os.sep}", contents, left, luck)
            continue
        written = contents.get(id(node), node.last)
        if written is not None:
            node.safe = _keep_some(node.safe, written, luck)
        left[path], node.last = node.safe, None


def _keep_some(safe: bytes, written: bytes, luck: random.Random) -> bytes:
    if safe == written:
        return safe
    cut = luck.randint(0, len(written))
    zeros = bytes(len(written) - cut)
    return luck.choice((safe, written, written[:cut], written[:cut] + zeros))


def _apply(change: Change) -> None:
    for folder, name, node in change:
        if node is None:
            folder.safe.pop(name, None)
        else:
            folder.safe[name] = node
