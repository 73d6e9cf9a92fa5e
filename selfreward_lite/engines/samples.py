"""What the batcher keeps of a request: a job until all its samples have started, a slot for each sample under way.

Knows: a request's numbers, the run of cells it stands on. Does not know: when it is served.
"""

from __future__ import annotations

from codecs import IncrementalDecoder
from dataclasses import dataclass, field
from typing import Any

from selfreward_lite.engines.base import Request
from selfreward_lite.engines.kv import Root, Run


@dataclass(slots=True, eq=False)
class Job:
    """An admitted request with samples still to start."""

    request: Request
    root: Root | None
    started: int = 0

    @property
    def base(self) -> int:
        return len(self.request.tokens) - 1

    @property
    def need(self) -> int:
        return 1 + self.request.sampling.max_tokens

    @property
    def ready(self) -> bool:
        return self.root is None or self.root.computed >= self.base


@dataclass(slots=True, eq=False)
class Slot:
    """A sample under way; `token` at `position` is what it computes next. `decoder` is there where its text is streamed."""

    sequence: int
    request: Request
    sample: int
    sampler: Any
    leaf: Run
    token: int
    position: int
    stop: frozenset[int]
    watched: frozenset[int]
    decoder: IncrementalDecoder | None = None
    tokens: list[int] = field(default_factory=list)
    probe: tuple[float, ...] | None = None
