"""A device that computes nothing, with llama.cpp's unified KV cache: which cells a batch reads.

Cells are taken as `llama_kv_cache::find_slot` of the pinned version takes them: onwards from where
the last batch ended, or from the beginning once enough is free there. Every row of a batch attends
over all cells up to the last one in use, in steps of 256.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selfreward_lite.engine.api import Request, Sampling, Stats
from selfreward_lite.engine.device import Rows
from selfreward_lite.engine.scheduler import Scheduler

STEP = 256  # llama.cpp computes attention over so many cells more or fewer
WORD, END = 5, 7  # what is drawn: the token of every sample, and the one that ends it


@dataclass
class PlayedCache:
    """A `device.Device`. `length` of a request's samples is drawn by their seed.

    `reads` notes, of every batch in which samples waited for a slot, its sampled rows and the cells
    that each of them attends over.
    """

    cells: int
    rows: int
    limit: int = 8192
    vocab: int = 1000
    reads: list[tuple[int, int]] = field(default_factory=list)
    scheduler: Scheduler | None = None

    def __post_init__(self) -> None:
        self.users = np.zeros(self.cells, np.int16)  # sequences that need a cell
        self.held: dict[int, list[int]] = {}  # of each sequence, its cells by position
        self.head = 0

    def decode(self, rows: Rows, wanted: Sequence[int]) -> int:
        used, size = int((self.users > 0).sum()), len(rows.tokens)
        start = 0 if self.head > used + 2 * size else self.head
        free = np.flatnonzero(self.users == 0)
        taken = np.concatenate([free[free >= start], free[free < start]])[:size].tolist()
        assert len(taken) == size, "admission let in more than the cache holds"
        for sequence, position, cell in zip(rows.sequences, rows.positions, taken, strict=True):
            held = self.held.setdefault(sequence, [])
            assert len(held) == position, "positions of a sequence follow each other"
            held.append(cell)
            self.users[cell] += 1
        self.head = taken[-1] + 1
        last = int(np.flatnonzero(self.users).max()) + 1
        if self.scheduler and self.scheduler._is_busy and wanted:
            self.reads.append((len(wanted), min(self.cells, -(-last // STEP) * STEP)))
        return 0

    def fork(self, source: int, target: int, length: int) -> None:
        self.held[target] = self.held[source][:length]
        self.users[self.held[target]] += 1

    def drop(self, sequence: int, start: int = 0) -> None:
        held = self.held.get(sequence, [])
        self.users[held[start:]] -= 1
        self.held[sequence] = held[:start]

    def clear(self) -> None:
        for sequence in self.held:
            self.drop(sequence)

    def make_sampler(self, sampling: Sampling, seed: int) -> list[int]:
        return [0, min(seed, sampling.max_tokens)]

    def sample(self, samplers: list[Any], rows: Sequence[int]) -> list[int]:
        for sampler in samplers:
            sampler[0] += 1
        return [END if drawn > length else WORD for drawn, length in samplers]

    def free_sampler(self, sampler: Any) -> None: ...

    def row_logits(self, row: int) -> np.ndarray:
        return np.zeros(self.vocab, np.float32)

    def use_adapter(self, adapter: str | None) -> None: ...

    def is_unchanged(self, adapter: str | None) -> bool:
        return True

    def token_bytes(self, token: int) -> bytes:
        return b"x"

    def take_errors(self) -> str:
        return ""


def play(
    requests: Iterable[Request], *, parallel: int, roots: int, cells: int, rows: int
) -> tuple[float, float, Stats]:
    """Serve requests; returns samples a batch and cells a row while samples waited, and counters.

    A request's seeds are the lengths of its samples.
    """
    device = PlayedCache(cells, rows)
    scheduler = Scheduler(device, parallel, roots)
    device.scheduler = scheduler
    for _ in scheduler.run(requests):
        pass
    samples, reads = zip(*device.reads, strict=True)
    return float(np.mean(samples)), float(np.mean(reads)), scheduler.stats
