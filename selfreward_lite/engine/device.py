"""A model in memory, as the scheduler needs it; `llama.LlamaDevice` is the real one."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from selfreward_lite.engine.api import Sampling


class Rows(NamedTuple):
    """The columns of a batch."""

    tokens: list[int]
    positions: list[int]
    sequences: list[int]

    def add(self, tokens: Sequence[int], position: int, sequence: int) -> None:
        """Add the rows of tokens of one sequence, from a position on."""
        self.tokens.extend(tokens)
        self.positions.extend(range(position, position + len(tokens)))
        self.sequences.extend([sequence] * len(tokens))


class Device(Protocol):
    """A model in memory, as the scheduler needs it. A row is one entry of a batch.

    `cells` is the size of the KV cache, `limit` the longest sequence, `rows` the largest batch.
    """

    cells: int
    limit: int
    rows: int
    vocab: int

    def decode(self, rows: Rows, wanted: Sequence[int]) -> int: ...
    def make_sampler(self, sampling: Sampling, seed: int) -> Any: ...
    def sample(self, samplers: list[Any], rows: Sequence[int]) -> list[int]: ...
    def free_sampler(self, sampler: Any) -> None: ...
    def row_logits(self, row: int) -> np.ndarray: ...
    def fork(self, source: int, target: int, length: int) -> None: ...
    def drop(self, sequence: int, start: int = 0) -> None: ...
    def clear(self) -> None: ...
    def use_adapter(self, adapter: str | None) -> None: ...
    def is_unchanged(self, adapter: str | None) -> bool: ...
    def token_bytes(self, token: int) -> bytes: ...
    def take_errors(self) -> str: ...
