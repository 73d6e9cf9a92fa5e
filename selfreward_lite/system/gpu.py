"""The cards of this machine, as their driver describes them, which of them is used, and what a compute capability means.

Knows: nvidia-smi, CUDA_VISIBLE_DEVICES. Does not know: torch, llama.cpp; asking costs milliseconds, and no memory of the card.
"""

# Who has the card: one process at a time, and a run before an app.
#
#     held       a run: waits until it has the card, and asks whoever has it to give it up
#     take       an app: has the card at once, or not at all
#     wanted     an app: whether a run waits for the card, which is when it gives it back
#
# Knows: two locks in the user's cache folder. Does not know: cards, models, pages. A card that two processes fill is how a night of
# work ends in its third hour.

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from selfreward_lite.system import locks
from selfreward_lite.system.errors import UserError

OLDEST = (7, 5)  # Turing: torch 2.13 brings no kernels for anything older
BF16 = (8, 0)  # what torch says of a T4 is not to be trusted (unslothai/unsloth#504)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu:
    """A card as the driver describes it; memory in bytes."""

    name: str
    driver: str
    capability: tuple[int, int]
    free: int
    total: int

    @property
    def architecture(self) -> str:
        """The compute capability as compilers name it.

        >>> Gpu("Tesla T4", "580.1", (7, 5), 0, 0).architecture
        '75'
        """
        return "".join(map(str, self.capability))


def list_gpus() -> list[Gpu]:
    """Return the cards that the driver names, and CUDA_VISIBLE_DEVICES where it is set; none where there is no driver."""
    asked = "index,uuid,name,driver_version,compute_cap,memory.free,memory.total"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return []
    return read(said.stdout, os.environ.get("CUDA_VISIBLE_DEVICES")) if said.returncode == 0 else []


def read(said: str, visible: str | None = None) -> list[Gpu]:
    """Read what nvidia-smi printed: number, id, name, driver, compute capability, free and all memory in MiB, a line a card.

    `visible` names those that are wanted, by numbers or the beginnings of their ids, in the order that is wanted; None for all. A
    part of a card (MIG) cannot be told by this: then it is all of them.

    >>> read("0, GPU-1f, NVIDIA GeForce RTX 4090, 580.1, 8.9, 23028, 24564\\n")[0].capability
    (8, 9)
    """
    found: dict[tuple[str, str], Gpu] = {}
    for line in said.splitlines():
        try:
            index, uuid, name, driver, capability, free, total = (
                part.strip() for part in line.split(",")
            )
            major, minor = map(int, capability.split("."))
            found[index, uuid] = Gpu(
                name, driver, (major, minor), int(free) * 2**20, int(total) * 2**20
            )
        except ValueError:  # [N/A], as of a card that has no memory of its own
            _log.warning(
                "nvidia-smi does not tell of a card what must be known to use it: %s", line
            )
    if visible is None or visible.startswith("MIG"):
        return list(found.values())
    wanted = [one.strip() for one in visible.split(",") if one.strip()]
    return [
        card
        for one in wanted
        for (index, uuid), card in found.items()
        if one == index or (len(one) > 3 and uuid.startswith(one))
    ]


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
    say(
        f"the card is held by {locks.holder(path) or 'another process'}: waiting for it; end that process, or interrupt this one"
    )
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
        raise UserError(
            f"{FOLDER}: {error.strerror}; it says who has the card: make it writable, or set HOME"
        ) from None
    return FOLDER / f"{name}.lock"
