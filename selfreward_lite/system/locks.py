"""Locks between processes: one holder at a time, whose name can be read.

The kernel frees a lock when its holder ends, for any reason, so a file left behind blocks nothing.
"""

import fcntl
import os
import time
from pathlib import Path

from selfreward_lite.system.errors import refuse_reading

PROC = Path("/proc")
PATIENCE = 0.5  # seconds to retry: `holder` itself holds a lock for an instant


def take(path: Path, who: str) -> int | None:
    """Take a lock and write `who` in it; a handle for `release`, or None if another has it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + PATIENCE
    while not _try_lock(handle, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            os.close(handle)
            return None
        time.sleep(0.02)
    try:
        os.truncate(handle, 0)
        os.write(handle, f"{who}\n".encode())
    except OSError:
        os.close(handle)  # else it would stay locked
        raise
    return handle


def take_folder(folder: Path) -> int | None:
    """Lock a folder itself; a handle for `release`, or None if another process has it.

    A lock file can be removed and made anew, a folder that is written cannot. Network drives lock
    only files that are open for writing: there the handle holds the folder, and locks nothing.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        if _try_lock(handle, fcntl.LOCK_EX):
            return handle
    except OSError:
        return handle
    os.close(handle)
    return None


def release(handle: int) -> None:
    """Release a lock."""
    os.close(handle)


def holder(path: Path) -> str | None:
    """Who holds a lock, as given to `take`; None if nobody does."""
    deadline = time.monotonic() + PATIENCE
    while (name := _read_holder(path)) == "" and time.monotonic() < deadline:
        time.sleep(0.002)  # it has just taken the lock, and writes its name now
    return name


def is_in_place(handle: int, path: Path, who: str = "") -> bool:
    """Whether what is held is still what is at `path`: it was not moved, removed or replaced.

    Some drives number a file anew; there a lock file is the same if it is held by `who`.
    """
    try:
        if os.path.samestat(os.fstat(handle), path.stat()):
            return True
        return bool(who) and holder(path) == who
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_open_in(path: Path, pid: int) -> bool:
    """Whether the process that has this number here has a lock's file open.

    A holder in another container, or on another machine, wrote a number that is somebody else's
    here. True also where the system does not say which files a process has open.
    """
    try:
        lock, files = path.stat(), list((PROC / str(pid) / "fd").iterdir())
    except PermissionError:  # another user's
        return True
    except FileNotFoundError:
        return not (PROC / "self").exists()
    return any(_is_same(lock, file) for file in files)


def _is_same(one: os.stat_result, path: Path) -> bool:
    try:
        return os.path.samestat(one, path.stat())
    except OSError:  # closed meanwhile, or of a drive that is gone
        return False


def _read_holder(path: Path) -> str | None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise refuse_reading(path) from None
    try:
        if _try_lock(handle, fcntl.LOCK_SH):
            return None
        return os.read(handle, 200).decode(errors="replace").strip()
    finally:
        os.close(handle)


def _try_lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
