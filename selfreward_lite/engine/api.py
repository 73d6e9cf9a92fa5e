"""What every engine promises, in plain values: requests in, completions out.

An engine accepts requests as fast as it can serve them, and returns completions in the order in
which they finish.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from pydantic import TypeAdapter

from selfreward_lite.config.settings import EngineSettings, Section
from selfreward_lite.config.settings import Sampling as Sampling  # part of a request
from selfreward_lite.system.errors import EngineError

TokenIds = tuple[int, ...]
Finish = Literal["stop", "length", "refused", "failed"]


@dataclass(frozen=True)
class Probe:
    """Asks for the probabilities of `tokens` where one of them is sampled right after `after`.

    Only white space and asterisks may be between `after` and the token; case is ignored; the last
    such place counts. Probabilities are the model's own (softmax at temperature 1 over the whole
    vocabulary), in the order of `tokens`.
    """

    tokens: TokenIds
    after: str


@dataclass(frozen=True)
class Bracket:
    """Something that a sample may leave open, such as a block of code.

    It is open if the last `opens` of the text has no `ends` behind it; where both are the same, if
    their number is odd. `tokens` end it.
    """

    opens: str
    ends: str
    tokens: TokenIds

    def is_open(self, text: str) -> bool:
        """Return whether a text leaves it open.

        >>> Bracket("```", "```", ()).is_open("```python"), Bracket("(", ")", ()).is_open("(a)")
        (True, False)
        """
        if self.opens == self.ends:
            return text.count(self.opens) % 2 == 1
        return text.rfind(self.opens) > text.rfind(self.ends)


@dataclass(frozen=True)
class Closing:
    """What goes on behind every finished sample, in its own sequence: one more step, no new prompt.

    What the sample left open (`brackets`, in order) is ended, then `tokens` follow, and the
    probabilities of the `choices` for the next token are read. They are the model's own, as those
    of a `Probe`.
    """

    tokens: TokenIds
    choices: TokenIds
    brackets: tuple[Bracket, ...] = ()

    @property
    def longest(self) -> int:
        """The most tokens that it can add."""
        return len(self.tokens) + sum(len(one.tokens) for one in self.brackets)

    def tokens_behind(self, text: str) -> TokenIds:
        """Return the tokens that follow a sample of this text."""
        ends = [one.tokens for one in self.brackets if one.is_open(text)]
        return (*(token for tokens in ends for token in tokens), *self.tokens)


@dataclass(frozen=True)
class Request:
    """One prompt, and the seeds of the samples to draw; each seed gets a completion.

    `key` is the caller's name for it, unique among requests under way. `tokens` is the whole
    prompt, with the beginning-of-text token. `stop` are token ids that end a completion. `adapter`
    is the path of a GGUF LoRA file, None for the base alone. With `stream` the text also comes in
    pieces, as it is drawn. With a `closing`, every sample ends with it.
    """

    key: str
    tokens: TokenIds
    seeds: tuple[int, ...]
    sampling: Sampling
    stop: TokenIds
    adapter: str | None = None
    probe: Probe | None = None
    stream: bool = False
    closing: Closing | None = None

    @property
    def new_tokens(self) -> int:
        """The most tokens of a sample behind its prompt, with its closing."""
        return self.sampling.max_tokens + (self.closing.longest if self.closing else 0)

    def check(self, vocab: int) -> None:
        """Raise EngineError for a request that a model of `vocab` tokens cannot serve."""
        if not self.tokens:
            raise EngineError(f"request {self.key}: give at least one prompt token")
        closing = self.closing
        if closing and not (closing.tokens and closing.choices):
            raise EngineError(f"request {self.key}: a closing needs tokens and choices")
        given = [*self.tokens, *(closing.choices if closing else ())]
        if closing:
            given += [*closing.tokens, *(i for one in closing.brackets for i in one.tokens)]
        if min(given) < 0 or max(given) >= vocab:
            raise EngineError(
                f"request {self.key}: a token id is outside the model's {vocab}; "
                "tokenize with the tokenizer this model was converted from"
            )


REQUEST = TypeAdapter(Request)


@dataclass(frozen=True)
class Cancel:
    """In a feed: the request of this key is no longer wanted; it gets no further completion."""

    key: str


@dataclass(frozen=True)
class Piece:
    """The next part of a streamed sample's text; all parts joined are its completion's text.

    `at` is when it was drawn, on the clock of time.monotonic, if that was noted.
    """

    key: str
    sample: int
    text: str
    at: float | None = None


# What a feed of requests yields; None means that there is nothing at the moment.
Fed = Request | Cancel | None


@dataclass(frozen=True)
class Completion:
    """One sample; `sample` is the index of its seed, `tokens` exclude the stop token.

    `text` shows no control token. `finish` is "stop" (a stop token came), "length" (`max_tokens`
    reached), "refused" (prompt, `max_tokens` and closing do not fit the context; no token was made)
    or "failed" (the engine died on it every time). `probe` answers the request's probe, None if its
    place never came. `closing` are the probabilities of the closing's choices behind
    `closing_text`, which is no part of `text`.
    """

    key: str
    sample: int
    tokens: TokenIds
    text: str
    finish: Finish
    prompt_tokens: int
    probe: tuple[float, ...] | None = None
    closing: tuple[float, ...] | None = None
    closing_text: str = ""


@dataclass
class Stats:
    """Counters since the engine was made; loading the model is in none of the seconds.

    `prompt_requested` is what an engine that shares nothing would compute. `closed` counts the
    tokens of closings. Busy steps are those during which samples were waiting for a slot.
    """

    prompt_requested: int = 0
    prompt_computed: int = 0
    generated: int = 0
    closed: int = 0
    steps: int = 0
    busy_steps: int = 0
    busy_slot_steps: int = 0
    seconds_sample: float = 0.0
    seconds_total: float = 0.0

    def add_step(self, samples: int, *, is_busy: bool) -> None:
        """Count a step with a token of so many samples."""
        self.steps += 1
        self.busy_steps += is_busy
        self.busy_slot_steps += samples * is_busy

    def since(self, before: Self) -> Self:
        """What was counted after `before`."""
        earlier = asdict(before)
        return replace(self, **{name: now - earlier[name] for name, now in asdict(self).items()})


def failed_completions(
    request: Request, samples: Iterable[int], finish: Finish = "failed"
) -> list[Completion]:
    """Completions without a token, for samples that cannot be drawn."""
    count = len(request.tokens)
    return [Completion(request.key, sample, (), "", finish, count) for sample in samples]


class Engine(Protocol):
    """Anything that can complete requests."""

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield one completion per seed of every request, in the order in which they finish.

        `requests` is read lazily, only as far ahead as the engine needs to stay full. Closing the
        iterator drops what is under way. Raises EngineError if the model or an adapter cannot be
        used.
        """
        ...

    def close(self) -> None:
        """Free the memory. Closing twice is allowed."""
        ...


# -- which engine to start ----------


class LlamaSpec(EngineSettings):
    """The llama.cpp engine on one GGUF model. What a run does not set is for checks and benches.

    `exact` keeps the KV cache in float32, switches flash attention and repacked weights off, and
    leaves a GPU without layers alone: other requests in the
    batch then change a logit by 1e-5 instead of 5e-3 (measured on a CPU, logits of spread 4).
    `check_adapters` refuses an adapter that changes nothing. `micro_batch` (tokens computed at
    once) is chosen by the engine if None.
    """

    model: Path
    exact: bool = False
    check_adapters: bool = True
    micro_batch: int | None = None

    def with_fewer_cells(self) -> Self:
        """The same engine with about three quarters of its cells.

        Sequences with cells of their own keep them, and become fewer.
        """
        if self.unified:
            return self.model_copy(update={"context": 3 * self.context // 4})
        parallel = max(1, 3 * self.parallel // 4)
        context = self.sequence_cells * (parallel + self.roots)
        return self.model_copy(update={"parallel": parallel, "context": context})


class ScriptedSpec(Section):
    """A ScriptedEngine made by `factory`, a "module:function" called with `arguments`."""

    factory: str
    arguments: dict[str, Any] = {}
    gpu_layers: int = 0


EngineSpec = LlamaSpec | ScriptedSpec
SPEC: TypeAdapter[EngineSpec] = TypeAdapter(EngineSpec)
