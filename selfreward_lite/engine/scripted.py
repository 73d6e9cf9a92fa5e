"""The shipped double of an engine: answers come from a function. For tests, demonstrations and dry runs.

Knows: the engine protocol. Does not know: models. Deterministic: the same requests bring the same completions in the
same order, also where that order is shuffled.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from selfreward_lite.engine.api import Completion, Fed, Finish, Piece, Request

WINDOW = 16  # completions that a shuffled engine holds back at most


class Reply(NamedTuple):
    """A scripted answer with an ending of its own and, where wanted, the probe's probabilities."""

    text: str
    finish: Finish = "stop"
    probe: tuple[float, ...] | None = None


class ScriptedEngine:
    """`reply(request, sample)` gives the text (or a `Reply`), `encode(text)` its token ids.

    With a `shuffle_seed` completions leave in a mixed order, as they do from a batch. `asked` keeps every request.
    """

    parallel = WINDOW
    idle = True  # an answer takes no time

    def __init__(
        self,
        reply: Callable[[Request, int], str | Reply],
        encode: Callable[[str], list[int]],
        *,
        shuffle_seed: int | None = None,
    ) -> None:
        self._reply = reply
        self._encode = encode
        self._shuffle_seed = shuffle_seed
        self._cancelled = False
        self.asked: list[Request] = []

    def complete(self, requests: Iterable[Fed]) -> Iterator[Completion | Piece]:
        """See `base.Engine`; the text of a request that is streamed comes in one piece."""
        self._cancelled = False
        plain = self._plain(requests)
        return (
            plain
            if self._shuffle_seed is None
            else self._shuffled(plain, random.Random(self._shuffle_seed))
        )

    def cancel(self) -> None:
        """End the running `complete` before its next completion."""
        self._cancelled = True

    def close(self) -> None:
        """Nothing to give back."""

    def _plain(self, requests: Iterable[Fed]) -> Iterator[Completion | Piece]:
        for request in requests:
            if not isinstance(request, Request):
                continue  # what is dropped was answered long ago
            self.asked.append(request)
            for sample in range(len(request.seeds)):
                if self._cancelled:
                    return
                said = self._answer(request, sample)
                if request.stream:
                    yield Piece(request.key, sample, said.text)
                yield said

    def _answer(self, request: Request, sample: int) -> Completion:
        said = self._reply(request, sample)
        reply = Reply(said) if isinstance(said, str) else said
        tokens = tuple(self._encode(reply.text))
        return Completion(
            request.key, sample, tokens, reply.text, reply.finish, len(request.tokens), reply.probe
        )

    @staticmethod
    def _shuffled(
        plain: Iterator[Completion | Piece], order: random.Random
    ) -> Iterator[Completion | Piece]:
        held: list[Completion | Piece] = []
        for completion in plain:
            held.append(completion)
            if len(held) == WINDOW:
                yield held.pop(order.randrange(WINDOW))
        order.shuffle(held)
        yield from held
