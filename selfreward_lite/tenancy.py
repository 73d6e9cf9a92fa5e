"""Who has the card: one process at a time, and a run before an app.

    held       a run: waits until it has the card, and asks whoever has it to give it up
    take       an app: has the card at once, or not at all
    wanted     an app: whether a run waits for the card, which is when it gives it back

Knows: two locks in the user's cache folder. Does not know: cards, models, pages. A card that two processes fill is how a night of
work ends in its third hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from selfreward_lite import locks
from selfreward_lite.errors import UserError

FOLDER = Path.home() / ".cache" / "selfreward_lite"
POLL = 0.5  # seconds between two looks


def take(who: str) -> int | None:
    """Take the card and return what `release` wants; None where another process has it, or a run waits for it."""
    return None if wanted() else locks.take(_file("card"), who)


def release(handle: int) -> None:
    """Give the card back."""
    locks.release(handle)


def holder() -> str | None:
    """Return who waits for the card, in words, or else who has it; None for nobody."""
    return locks.holder(_file("card.wanted")) or locks.holder(_file("card"))


def wanted() -> bool:
    """Whether a run waits for the card."""
    return locks.holder(_file("card.wanted")) is not None


@contextmanager
def held(who: str, say: Callable[[str], None]) -> Iterator[None]:
    """Have the card while the block runs; until then wait, and say once for whom."""
    handle = _wait(_file("card"), who, say)
    try:
        yield
    finally:
        locks.release(handle)


def _wait(path: Path, who: str, say: Callable[[str], None]) -> int:
    handle = locks.take(path, who)
    if handle is not None:
        return handle
    say(f"the card is held by {locks.holder(path) or 'another process'}: waiting for it; end that process, or interrupt this one")
    asking = None
    try:
        while handle is None:
            asking = asking if asking is not None else locks.take(_file("card.wanted"), who)
            time.sleep(POLL)
            handle = locks.take(path, who)
    finally:
        if asking is not None:
            locks.release(asking)
    return handle


def _file(name: str) -> Path:
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{FOLDER}: {error.strerror}; it says who has the card: make it writable, or set HOME") from None
    return FOLDER / f"{name}.lock"
