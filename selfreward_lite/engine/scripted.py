"""A fake engine whose answers come from a function, for tests, demonstrations and dry runs.

The same requests always give the same completions in the same order, also if it is shuffled.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from selfreward_lite.engine.api import Completion, Fed, Finish, Piece, Request

WINDOW = 16  # completions that a shuffled engine holds back


class Reply(NamedTuple):
    """A scripted answer with its finish and, for a probe and a closing, the probabilities."""

    text: str
    finish: Finish = "stop"
    probe: tuple[float, ...] | None = None
    closing: tuple[float, ...] | None = None
    closing_text: str = ""


class ScriptedEngine:
    """`reply(request, sample)` returns a text or a `Reply`, `encode(text)` its token ids.

    A `shuffle_seed` mixes the order of completions, as a batch does. `asked` keeps all requests.
    """

    parallel = WINDOW
    idle = True  # answers take no time

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
        """See `api.Engine`; a streamed text comes in one piece."""
        self._cancelled = False
        answers = self._answers(requests)
        if self._shuffle_seed is None:
            return answers
        return self._shuffled(answers, random.Random(self._shuffle_seed))

    def cancel(self) -> None:
        """End the running `complete` before its next completion."""
        self._cancelled = True

    def close(self) -> None:
        """There is no memory to free."""

    def _answers(self, requests: Iterable[Fed]) -> Iterator[Completion | Piece]:
        for request in requests:
            if not isinstance(request, Request):
                continue  # a canceled request was answered long ago
            self.asked.append(request)
            for sample in range(len(request.seeds)):
                if self._cancelled:
                    return
                answer = self._reply(request, sample)
                said = Reply(answer) if isinstance(answer, str) else answer
                if request.stream:
                    yield Piece(request.key, sample, said.text)
                yield Completion(
                    request.key,
                    sample,
                    tuple(self._encode(said.text)),
                    said.text,
                    said.finish,
                    len(request.tokens),
                    said.probe,
                    said.closing,
                    said.closing_text,
                )

    @staticmethod
    def _shuffled(
        answers: Iterator[Completion | Piece], order: random.Random
    ) -> Iterator[Completion | Piece]:
        held: list[Completion | Piece] = []
        for answer in answers:
            held.append(answer)
            if len(held) == WINDOW:
                yield held.pop(order.randrange(WINDOW))
        order.shuffle(held)
        yield from held
