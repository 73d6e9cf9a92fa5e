"""What a process and all its descendants have in memory, read from Linux's /proc."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
KIB = 1024


@dataclass(frozen=True)
class Memory:
    """Bytes: `held` are the processes' own, `mapped` those of files.

    The system drops pages of files where memory is short, and reads them again. A page that
    processes share counts for each of them.
    """

    held: int
    mapped: int


def read_available() -> int:
    """Bytes that programs can get without swapping."""
    return _read_numbers(PROC / "meminfo")["MemAvailable"]


def read_tree(pid: int) -> Memory:
    """The memory of a process and its descendants; nothing for those that have just ended."""
    held = mapped = 0
    for one in _list_tree(pid):
        try:
            numbers = _read_numbers(PROC / str(one) / "status")  # `smaps` would walk all pages
        except (FileNotFoundError, ProcessLookupError):
            continue
        held += numbers["RssAnon"] + numbers["RssShmem"] + numbers["VmSwap"]
        mapped += numbers["RssFile"]
    return Memory(held, mapped)


def _list_tree(pid: int) -> list[int]:
    """The process and its descendants."""
    children = defaultdict[int, list[int]](list)
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            # A program's name stands in brackets, and may hold any of them.
            parent = text.rpartition(")")[2].split()[1]
            children[int(parent)].append(int(folder.name))
    found = [pid]
    for one in found:  # grows while it is read
        found += children[one]
    return found


def _read_numbers(path: Path) -> dict[str, int]:
    """The lines "Name: 12 kB" of a file, as bytes; none of a process that has ended."""
    numbers = defaultdict[str, int](int)
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            numbers[name] = int(value.split()[0]) * KIB
    return numbers
