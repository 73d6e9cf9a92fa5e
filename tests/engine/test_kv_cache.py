"""Counting cells and caching prompts, without a model."""

from __future__ import annotations

import random

import numpy as np
import pytest

from selfreward_lite.engine.kv_cache import Cells, PrefixCache, common_prefix


def tokens(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def test_shared_cells_count_once_until_the_last_holder_leaves():
    cells = Cells(100)
    root = cells.allocate(None, 0, 40)
    left = cells.allocate(root, 30, 5)  # cuts the root in 30 + 10
    right = cells.allocate(root, 40, 7)
    assert 100 - cells.free == 52
    assert cells.releasable(root) == 0
    cells.release(root)
    assert 100 - cells.free == 52
    cells.release(right)
    assert 100 - cells.free == 35  # right's 7 and the root's last 10
    cells.release(left)
    assert 100 - cells.free == 0


def test_keeping_more_than_there_is_fails():
    cells = Cells(10)
    with pytest.raises(ValueError, match="keep 4"):
        cells.allocate(cells.allocate(None, 0, 3), 4, 1)


def test_random_trees_agree_with_a_set_of_cells():
    """Independent bookkeeping: each sequence as the set of its cells."""
    draw, cells, names = random.Random(5), Cells(10**9), iter(range(10**9))
    live: list[tuple[object, list[int]]] = []
    for _ in range(2000):
        if live and draw.random() < 0.45:
            leaf, _ = live.pop(draw.randrange(len(live)))
            cells.release(leaf)
        else:
            leaf, held = draw.choice(live) if live and draw.random() < 0.8 else (None, [])
            keep, extra = draw.randint(0, len(held)), draw.randint(1, 9)
            live.append(
                (
                    cells.allocate(leaf, keep, extra),
                    held[:keep] + [next(names) for _ in range(extra)],
                )
            )
        assert 10**9 - cells.free == len(set().union(*(held for _, held in live)))


def test_common_prefix():
    assert common_prefix(tokens(1, 2, 3), tokens(1, 2, 4, 5)) == 2
    assert common_prefix(tokens(1, 2), tokens(1, 2, 3)) == 2
    assert common_prefix(tokens(), tokens(1)) == 0


def test_roots_find_longest_prefix_and_evict_least_recently_used():
    dropped: list[int] = []
    roots = PrefixCache(Cells(20), [7, 8], dropped.append)
    first = roots.add(tokens(1, 2, 3), None, 0)
    second = roots.add(tokens(1, 2, 9, 9), first, 2)
    assert roots.find_longest(tokens(1, 2, 9, 5)) == (second, 3)
    assert roots.find_longest(tokens(4)) == (None, 0)
    roots.touch(first)
    assert roots.make_room(1, sequences=1)
    assert dropped == [second.sequence]


def test_pinned_roots_stay():
    cells = Cells(10)
    roots = PrefixCache(cells, [0, 1], lambda sequence: None)
    root = roots.add(tokens(1, 2, 3, 4, 5, 6), None, 0)
    root.pins = 1
    assert not roots.make_room(5)
    root.pins = 0
    assert roots.make_room(5)
    assert cells.free == 10
