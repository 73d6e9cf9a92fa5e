"""The cards of this machine, as their driver describes them, and what a compute capability means.

Knows: nvidia-smi. Does not know: torch, llama.cpp; asking costs milliseconds, and no memory of the card.
"""

from __future__ import annotations

import logging
import os
import subprocess
from dataclasses import dataclass

OLDEST = (7, 5)  # Turing: torch 2.13 brings no kernels for anything older
# For every process of ours that computes on a card: the first that the driver names. CUDA itself would count the fastest first.
ONE_CARD = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0"}
BF16 = (8, 0)  # what torch says of a T4 is not to be trusted (unslothai/unsloth#504)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Card:
    """A card as the driver describes it; memory in bytes."""

    name: str
    driver: str
    capability: tuple[int, int]
    free: int
    total: int

    @property
    def architecture(self) -> str:
        """The compute capability as compilers name it.

        >>> Card("Tesla T4", "580.1", (7, 5), 0, 0).architecture
        '75'
        """
        return "".join(map(str, self.capability))


def cards() -> list[Card]:
    """Return the cards that the driver names; none where there is no driver. Of those that CUDA_VISIBLE_DEVICES names, where it
    is set, the first: no process of ours uses another."""
    asked = "name,driver_version,compute_cap,memory.free,memory.total"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        command.append(f"--id={visible.split(',')[0]}")
    try:
        said = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return []
    return read(said.stdout) if said.returncode == 0 else []


def read(said: str) -> list[Card]:
    """Read what nvidia-smi printed: name, driver, compute capability, free and all memory in MiB, a line a card.

    >>> read("NVIDIA GeForce RTX 4090, 580.1, 8.9, 23028, 24564\\n")[0].capability
    (8, 9)
    """
    found = []
    for line in said.splitlines():
        try:
            name, driver, capability, free, total = (part.strip() for part in line.split(","))
            major, minor = map(int, capability.split("."))
            found.append(Card(name, driver, (major, minor), int(free) * 2**20, int(total) * 2**20))
        except ValueError:  # [N/A], as of a card that has no memory of its own
            _log.warning("nvidia-smi does not tell of a card what must be known to use it: %s", line)
    return found
