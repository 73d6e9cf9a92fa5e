"""What the processes of one training tell each other; a training in one process has no others.

Each function with a value is a question to all: every process must ask it, at the same point.
"""

from collections.abc import Sequence

import torch
from torch import distributed


def count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process; the first, 0, reports and writes files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def add_up(values: Sequence[float]) -> list[float]:
    """The sums of all processes' values."""
    return _reduce(values, distributed.ReduceOp.SUM)


def find_largest(value: float) -> float:
    """The largest of all processes' values."""
    return _reduce([value], distributed.ReduceOp.MAX)[0]


def find_smallest(value: float) -> float:
    """The smallest of all processes' values."""
    return -find_largest(-value)


def is_any(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return bool(find_largest(flag))


def _reduce(values: Sequence[float], how: distributed.ReduceOp.RedOpType) -> list[float]:
    if count() == 1:
        return list(values)
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    reduced = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(reduced, how)
    return [float(value) for value in reduced.tolist()]
