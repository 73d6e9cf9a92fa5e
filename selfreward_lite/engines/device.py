"""What the scheduler needs of a model in memory, and what it counts while it uses it.

Knows: rows of a batch, sequence numbers. Does not know: llama.cpp. A test can play the device in pure Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from selfreward_lite.engines.base import Sampling


class Device(Protocol):
    """What the scheduler needs of a model in memory. Rows are the entries of one batch."""

    cells: int
    limit: int
    rows: int
    vocab: int

    def decode(self, tokens: list[int], positions: list[int], sequences: list[int], wanted: int) -> int: ...
    def sampler(self, sampling: Sampling, seed: int) -> Any: ...
    def sample(self, samplers: list[Any]) -> list[int]: ...
    def free_sampler(self, sampler: Any) -> None: ...
    def row_logits(self, row: int) -> np.ndarray: ...
    def fork(self, source: int, target: int, length: int) -> None: ...
    def drop(self, sequence: int, start: int = 0) -> None: ...
    def clear(self) -> None: ...
    def use(self, adapter: str | None) -> None: ...
    def fresh(self, adapter: str | None) -> bool: ...
    def piece(self, token: int) -> bytes: ...
    def complaint(self) -> str: ...


@dataclass(slots=True)
class Stats:
    """Counters since the engine was made. `prompt_requested` is what an engine that shares nothing would compute; the busy
    steps are those during which samples were still waiting for a slot."""

    prompt_requested: int = 0
    prompt_computed: int = 0
    generated: int = 0
    steps: int = 0
    slot_steps: int = 0
    occupancy: float = 0.0
    busy_steps: int = 0
    busy_slot_steps: int = 0
    seconds_decode: float = 0.0
    seconds_sample: float = 0.0
    seconds_total: float = 0.0
