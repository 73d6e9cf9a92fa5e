"""What every engine promises, in plain values.

Knows: token ids, sampling settings, the path of an adapter. Does not know: roles, templates, scores, files of a run.
An engine takes requests as fast as it can serve them and hands back completions in the order in which they finish.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from selfreward_lite.system.errors import EngineError

Finish = Literal["stop", "length", "refused", "failed"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw tokens: the `top_k` likeliest (0 = all), then `temperature`, then nucleus `top_p`.

    Temperature 0 takes the likeliest token. `max_tokens` bounds the completion, the stop token not counted.
    """

    temperature: float
    top_p: float
    max_tokens: int
    top_k: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """Asks for the probabilities of `tokens` where one of them was sampled right after the text `after`.

    Between `after` and the token only white space and asterisks may stand; case is ignored; the last such place
    counts. Probabilities are the model's own (softmax at temperature 1 over the whole vocabulary), in the order
    of `tokens`.
    """

    tokens: tuple[int, ...]
    after: str


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and the seeds of the samples wanted from it.

    `key` is the caller's name for it, unique among requests under way. `tokens` is the whole prompt, the beginning-of-text
    token included. One completion comes back per seed. `stop` are token ids that end a completion. `adapter` is the
    path of a GGUF LoRA file, or None for the base alone. With `stream` the text comes in pieces too, as it is drawn.
    """

    key: str
    tokens: tuple[int, ...]
    seeds: tuple[int, ...]
    sampling: Sampling
    stop: tuple[int, ...]
    adapter: str | None = None
    probe: Probe | None = None
    stream: bool = False

    def check(self, vocab: int) -> None:
        """Raise EngineError, by name, for a request that makes no sense to a model of `vocab` tokens."""
        if not self.tokens or self.sampling.max_tokens < 1:
            raise EngineError(
                f"request {self.key}: give at least one prompt token and max_tokens of 1 or more"
            )
        if min(self.tokens) < 0 or max(self.tokens) >= vocab:
            raise EngineError(
                f"request {self.key}: a token id lies outside the model's {vocab}; "
                "tokenize with the tokenizer this model was converted from"
            )


@dataclass(frozen=True, slots=True)
class Cancel:
    """In a feed of requests: the one of this key is no longer wanted. Nothing more comes of it, not even a completion."""

    key: str


@dataclass(frozen=True, slots=True)
class Piece:
    """The next bit of a streamed sample's text. All of them, joined, are its completion's text. `at` is when it was drawn, on
    the clock of time.monotonic, where somebody noted it."""

    key: str
    sample: int
    text: str
    at: float | None = None


# What comes in while an engine serves at any time: None says that there is nothing at the moment.
Fed = Request | Cancel | None


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample. `sample` indexes the request's seeds; `tokens` leave the stop token out; `text` shows no control token.

    `finish` is "stop" (a stop token came), "length" (`max_tokens` reached), "refused" (the prompt and its `max_tokens`
    cannot fit the context; no token was made) or "failed" (the engine died on it again and again). `probe` answers the
    request's probe, None if its place never came.
    """

    key: str
    sample: int
    tokens: tuple[int, ...]
    text: str
    finish: Finish
    prompt_tokens: int
    probe: tuple[float, ...] | None = None


class Engine(Protocol):
    """Anything that can complete requests."""

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield one completion per seed of every request, in the order in which they finish.

        `requests` is pulled lazily, only as far ahead as the engine needs to stay full. Closing the iterator early
        drops what is under way. Raises EngineError where the model or an adapter cannot be used.
        """
        ...

    def close(self) -> None:
        """Give the memory back. Closing twice is allowed."""
        ...
