"""Which cells of the KV cache a sequence uses, and which prompts are cached for others to share.

Pure Python and numpy, so that admission can be tested without a model. `Cells` counts shared cells
once: a sequence is a leaf of a tree of spans, and a span is free when nothing below it needs it.
`PrefixCache` keeps a few computed prompts, and evicts the least recently used first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(eq=False)
class Span:
    """Cells for positions `start` to `end`; `holders` counts sequences and spans that need it."""

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
    """Counts the cells that are `free`; never fewer than none if callers check first."""

    def __init__(self, capacity: int) -> None:
        self.free = capacity

    def allocate(self, leaf: Span | None, keep: int, extra: int) -> Span:
        """Give a sequence `extra` new cells behind the first `keep` positions of `leaf`."""
        span = leaf if keep else None
        while span and span.start >= keep:
            span = span.parent
        if keep and (span is None or span.end < keep):
            raise ValueError(f"cannot keep {keep} positions of a shorter sequence")
        if span and span.end > keep:  # it is split there
            span.parent = Span(span.parent, keep)
            span = span.parent
        if span:
            span.holders += 1
        self.free -= extra
        return Span(span, keep + extra)

    def release(self, leaf: Span) -> None:
        """Drop one hold; spans that nothing else needs become free."""
        span: Span | None = leaf
        while span:
            span.holders -= 1
            if span.holders:
                return
            self.free += span.length
            span = span.parent

    def releasable(self, leaf: Span) -> int:
        """How many cells `release(leaf)` would free."""
        span: Span | None = leaf
        total = 0
        while span and span.holders == 1:
            total += span.length
            span = span.parent
        return total


@dataclass(eq=False)
class Root:
    """A prompt in the cache that samples fork from; `pins` counts requests that still need it."""

    sequence: int
    tokens: np.ndarray
    computed: int
    leaf: Span
    pins: int = 0

    @property
    def is_complete(self) -> bool:
        return self.computed == len(self.tokens)


class PrefixCache:
    """A few roots. Pinned ones stay; idle ones are evicted if room is needed."""

    def __init__(self, cells: Cells, sequences: Iterable[int], drop: Callable[[int], None]) -> None:
        self._cells = cells
        self._free_sequences = list(sequences)
        self._drop = drop
        self._roots: dict[int, Root] = {}  # by sequence, least recently used first

    def find_longest(self, tokens: np.ndarray) -> tuple[Root | None, int]:
        """The root that shares most of the beginning of `tokens`, and how much: (None, 0) if none.

        Tokens of a root that are not computed yet count too.
        """
        found, longest = None, 0
        for root in self._roots.values():
            common = common_prefix(root.tokens, tokens)
            if common > longest or (common == longest and found and root.computed > found.computed):
                found, longest = root, common
        return found, longest

    def add(self, tokens: np.ndarray, source: Root | None, keep: int) -> Root:
        """Add a root that shares `keep` positions of `source`; call `make_room` first."""
        leaf = self._cells.allocate(source.leaf if source else None, keep, len(tokens) - keep)
        root = Root(self._free_sequences.pop(), tokens, keep, leaf)
        self._roots[root.sequence] = root
        return root

    def touch(self, root: Root) -> None:
        """Note that a root was just used."""
        self._roots[root.sequence] = self._roots.pop(root.sequence)

    def make_room(self, cells: int, sequences: int = 0, keep: Root | None = None) -> bool:
        """Evict idle roots but `keep` until so many cells and sequences are free, if possible."""
        while (short := len(self._free_sequences) < sequences) or self._cells.free < cells:
            for root in self._roots.values():
                is_idle = not root.pins and root is not keep
                if is_idle and (short or self._cells.releasable(root.leaf)):
                    self.remove(root)
                    break
            else:
                return False
        return True

    def evict_idle(self) -> int:
        """Evict every idle root; returns how many."""
        idle = [root for root in self._roots.values() if not root.pins]
        for root in idle:
            self.remove(root)
        return len(idle)

    def remove(self, root: Root) -> None:
        del self._roots[root.sequence]
        self._free_sequences.append(root.sequence)
        self._cells.release(root.leaf)
        self._drop(root.sequence)


def common_prefix(left: np.ndarray, right: np.ndarray) -> int:
    """Length of the common beginning of two arrays of token ids."""
    shorter = min(len(left), len(right))
    unequal = left[:shorter] != right[:shorter]
    first = int(unequal.argmax()) if shorter else 0
    return first if shorter and unequal[first] else shorter
