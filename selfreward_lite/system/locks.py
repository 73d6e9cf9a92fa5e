"""Locks between processes: one holder at a time, whose name can be read.

The kernel frees a lock when its holder ends, for any reason, so a file left behind blocks nothing.
"""

import fcntl
import os
import time
from pathlib import Path

from selfreward_lite.system.errors import refuse_reading

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


def release(handle: int) -> None:
    """Release a lock."""
    os.close(handle)


def holder(path: Path) -> str | None:
    """Who holds a lock, as given to `take`; None if nobody does."""
    deadline = time.monotonic() + PATIENCE
    while (name := _read_holder(path)) == "" and time.monotonic() < deadline:
        time.sleep(0.002)  # it has just taken the lock, and writes its name now
    return name


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
