"""What a disk has free, and a refusal before anything is written that it cannot hold.

Knows: bytes. Does not know: what needs them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from selfreward_lite.errors import UserError

MARGIN = 1.1


def check_disk(
    path: Path, needs: dict[str, int], wanted_by: str = "this run", advice: str = "free space, or give another --runs-dir"
) -> None:
    """Raise UserError, with the numbers, where the disk on which `path` lies or will lie cannot hold `needs`."""
    free, needed = free_bytes(path), sum(needs.values()) * MARGIN
    if free < needed:
        parts = ", ".join(f"{what} {in_words(size)}" for what, size in needs.items() if size)
        raise UserError(
            f"the disk of {path} has {in_words(free)} free and {wanted_by} needs {in_words(needed)} "
            f"({parts}, and a tenth to spare); {advice}"
        )


def free_bytes(path: Path) -> int:
    """Return the bytes that are free where `path` lies or, so far as it does not exist yet, will lie."""
    return shutil.disk_usage(next(place for place in (path, *path.absolute().parents) if place.exists())).free


def in_words(count: float) -> str:
    """Return bytes in the unit that people read."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
