"""Who holds which cells of the key-value memory, and which prompt beginnings are already computed.

Knows: counts of cells, token ids, sequence numbers. Does not know: llama.cpp, sampling, text. Pure Python and numpy, so
that admission can be proved without a model. `Cells` counts shared cells once and exactly: a sequence is a leaf of a
tree whose nodes are runs of cells, and a run is free when nothing below holds it any more. `Roots` are the few
sequences that keep computed prompts alive, the least recently used leaving first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(slots=True, eq=False)
class Span:
    """Consecutive cells of a sequence, positions `start` to `end`; `holders` counts sequences and runs that need it."""

    parent: Span | None
    end: int
    holders: int = 1

    @property
    def start(self) -> int:
        return self.parent.end if self.parent else 0

    @property
    def length(self) -> int:
        return self.end - self.start


class Cells:
    """Counts cells promised to sequences. Never more than `capacity` if callers ask `free` first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0

    @property
    def free(self) -> int:
        return self.capacity - self.used

    def branch(self, leaf: Span | None, keep: int, extra: int) -> Span:
        """Promise `extra` new cells to a sequence that shares the first `keep` positions of `leaf`."""
        parent = self._cut(leaf, keep)
        if parent:
            parent.holders += 1
        self.used += extra
        return Span(parent, keep + extra)

    def release(self, leaf: Span) -> None:
        """Drop one hold; runs that nobody else needs become free."""
        run: Span | None = leaf
        while run:
            run.holders -= 1
            if run.holders:
                return
            self.used -= run.length
            run = run.parent

    def gain(self, leaf: Span) -> int:
        """How many cells `release(leaf)` would free."""
        run: Span | None = leaf
        total = 0
        while run and run.holders == 1:
            total += run.length
            run = run.parent
        return total

    def _cut(self, leaf: Span | None, keep: int) -> Span | None:
        """The run that ends exactly at `keep` on the way up from `leaf`, splitting one in two where needed."""
        if keep == 0:
            return None
        run = leaf
        while run and run.start >= keep:
            run = run.parent
        if run is None or run.end < keep:
            raise ValueError(f"cannot keep {keep} positions of a shorter sequence")
        if run.end == keep:
            return run
        run.parent = Span(run.parent, keep)
        return run.parent


@dataclass(slots=True, eq=False)
class Root:
    """A computed (or half computed) prompt that samples fork from. `pins` counts requests that still need it."""

    sequence: int
    tokens: np.ndarray
    computed: int
    leaf: Span
    pins: int = 0

    @property
    def complete(self) -> bool:
        return self.computed == len(self.tokens)


class Roots:
    """A small pool of roots. Pinned ones stay; idle ones leave, least recently used first, when room is needed."""

    def __init__(self, cells: Cells, sequences: Iterable[int], drop: Callable[[int], None]) -> None:
        self._cells = cells
        self._spare = list(sequences)
        self._drop = drop
        self._live: dict[int, Root] = {}  # oldest use first

    def __len__(self) -> int:
        return len(self._live)

    def best(self, tokens: np.ndarray) -> tuple[Root | None, int]:
        """The root with the longest common beginning, computed or not, and that length (None, 0 if none shares any)."""
        found, longest = None, 0
        for root in self._live.values():
            common = common_prefix(root.tokens, tokens)
            if common > longest or (common == longest and found and root.computed > found.computed):
                found, longest = root, common
        return found, longest

    def add(self, tokens: np.ndarray, source: Root | None, keep: int) -> Root:
        """A new root that shares the first `keep` positions of `source`. Ask `make_room` first."""
        leaf = self._cells.branch(source.leaf if source else None, keep, len(tokens) - keep)
        root = Root(self._spare.pop(), tokens, keep, leaf)
        self._live[root.sequence] = root
        return root

    def touch(self, root: Root) -> None:
        self._live[root.sequence] = self._live.pop(root.sequence)

    def make_room(self, cells: int, sequences: int = 0) -> bool:
        """Evict idle roots until so many cells and root sequences are free. False if that cannot be reached."""
        while len(self._spare) < sequences:
            if not self._evict(lambda root: True):
                return False
        while self._cells.free < cells:
            if not self._evict(lambda root: self._cells.gain(root.leaf) > 0):
                return False
        return True

    def evict_idle(self) -> int:
        """Evict every idle root; returns how many."""
        before = len(self._live)
        while self._evict(lambda root: True):
            pass
        return before - len(self._live)

    def remove(self, root: Root) -> None:
        del self._live[root.sequence]
        self._spare.append(root.sequence)
        self._cells.release(root.leaf)
        self._drop(root.sequence)

    def _evict(self, wanted: Callable[[Root], bool]) -> bool:
        for root in self._live.values():
            if not root.pins and wanted(root):
                self.remove(root)
                return True
        return False


def common_prefix(left: np.ndarray, right: np.ndarray) -> int:
    """Length of the common beginning of two arrays of token ids."""
    shorter = min(len(left), len(right))
    unequal = left[:shorter] != right[:shorter]
    first = int(unequal.argmax()) if shorter else 0
    return first if shorter and unequal[first] else shorter
