"""Locks between processes: one holder at a time, who says who it is. The kernel frees one when its holder dies, however it dies,
so a file that was left behind never stands in the way.

Knows: flock. Does not know: what is locked.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

PATIENCE = 0.5  # seconds: whoever looks whether a lock is held holds it for an instant


def take(path: Path, who: str) -> int | None:
    """Take a lock, in which `who` is written, and return what `release` wants; None where another process holds it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + PATIENCE
    while not _locked(handle, fcntl.LOCK_EX):
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
    """Give a lock back."""
    os.close(handle)


def holder(path: Path) -> str | None:
    """Return what the holder of a lock said of itself, None where nobody holds it."""
    deadline = time.monotonic() + PATIENCE
    while (said := _said(path)) == "" and time.monotonic() < deadline:
        time.sleep(0.002)  # it has the lock since this instant, and writes its name now
    return said


def _said(path: Path) -> str | None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return (
            None
            if _locked(handle, fcntl.LOCK_SH)
            else os.read(handle, 200).decode(errors="replace").strip()
        )
    finally:
        os.close(handle)


def _locked(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
