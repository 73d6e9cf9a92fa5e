"""One server: what it is, which models it holds, and a sample drawn on it.

Methods are called from many threads, one for each sample under way.
"""

import math
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from selfreward_lite.engine import reference
from selfreward_lite.engine.answers import Answer, Place
from selfreward_lite.engine.api import Completion, Request
from selfreward_lite.engine.dialects import (
    KINDS,
    Dialect,
    LlamaRouter,
    Paths,
    Vllm,
    list_models,
)
from selfreward_lite.engine.http_client import (
    Client,
    Refusal,
    ServerFault,
    ServerUnfit,
    Timing,
    show,
)
from selfreward_lite.engine.reference import REFERENCE, Expected
from selfreward_lite.system.errors import EngineError
from selfreward_lite.system.files import MANIFEST, hash_file, read_manifest_fact

BLANK = " \t\r\n\f\v*"  # may be between a probe's text and its token
NAMED = 8  # hex digits of a hash in a name


@dataclass(frozen=True)
class ServerSpec:
    """What every server is asked for: the run's base, its files, and the bytes of every token.

    `slots` are the samples under way on a vLLM server; llama-server has its own number.
    """

    paths: Paths
    pieces: Sequence[bytes]
    slots: int


class Counts(NamedTuple):
    """Prompt tokens computed, and tokens of the closing."""

    computed: int
    closed: int


class _Turns:
    """Lets requests in of the base only, or of adapters only; those of the base go first.

    In one batch with an adapter, vLLM on a CPU gives the base the effect of the adapter that was
    loaded last, without a word (0.32; vllm-project/vllm#48421). Its kernels for GPUs do not.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._adapted = self._plain = 0  # requests inside
        self._waiting = 0  # of the base

    @contextmanager
    def take(self, *, is_base: bool) -> Iterator[None]:
        """Wait for the turn of such requests, and hold it."""
        with self._changed:
            self._waiting += is_base
            self._changed.wait_for(lambda: self._is_free(is_base=is_base))
            self._waiting -= is_base
            self._count(1, is_base=is_base)
        try:
            yield
        finally:
            with self._changed:
                self._count(-1, is_base=is_base)
                self._changed.notify_all()

    def _is_free(self, *, is_base: bool) -> bool:
        return not self._adapted if is_base else not (self._plain or self._waiting)

    def _count(self, step: int, *, is_base: bool) -> None:
        if is_base:
            self._plain += step
        else:
            self._adapted += step


class Server:
    """The server at `url`; `connect` asks what it is. `slots` and `context` are its own."""

    def __init__(self, url: str, spec: ServerSpec, timing: Timing) -> None:
        self.url = url
        self.slots = self.context = 0
        self.kind = ""
        self._spec = spec
        self._client = Client(url, timing)
        self._dialect: Dialect | None = None
        self._turns = _Turns()
        self._lock = threading.Lock()
        self._models: dict[str | None, str] = {}  # checked ones, by adapter
        self._generation = 0  # rises with every connection

    def connect(self, least: int = 0) -> None:
        """Ask what the server is, and forget what it held; raises ServerFault or EngineError.

        It is unfit too if its context is below `least`, with which the run has worked.
        """
        with self._lock:
            self._connect(max(least, self.context))

    def forget_models(self) -> None:
        """Check every model again before its next use: it may be another server."""
        with self._lock:
            self._models.clear()

    def check_answers(self) -> None:
        """Raise ServerUnfit or ServerFault unless the run's base answers as in training."""
        self._find_model(None, 0)

    def check_base(self) -> None:
        """Raise ServerUnfit or ServerFault unless the run's base is there, and can be adapted."""
        _, dialect, _ = self._find_model(None, 0)
        if fault := dialect.find_fault():
            raise ServerUnfit(f"{self.url}: {fault}; start it as said above")

    def draw(self, request: Request, sample: int, slot: int) -> tuple[Completion, Counts]:
        """Draw one sample; a model that the server has forgotten is loaded again, once."""
        for is_last in (False, True):
            model, dialect, generation = self._find_model(request.adapter, slot)
            try:
                with self._turn(dialect, is_base=request.adapter is None):
                    return self._draw(dialect, model, request, sample, slot)
            except Refusal as refusal:
                if is_last or not dialect.has_forgotten(refusal):
                    raise ServerUnfit(
                        f"{self.url} refuses request {request.key} of {len(request.tokens)} tokens "
                        f"({refusal}); check its key, version and options"
                    ) from None
            with self._lock:
                if generation == self._generation:  # no other thread has done it
                    self._connect(self.context)
        raise AssertionError("the second attempt returns or raises")

    def close(self) -> None:
        self._client.close()

    # -- what it is ----------

    def _connect(self, least: int) -> None:
        spec = self._spec
        listed = list_models(self._client)
        self.kind = KINDS[listed[0].owned_by]
        if self.kind == "vLLM":
            self._dialect = Vllm(self._client, listed, spec.slots, len(spec.pieces))
        else:
            self._dialect = LlamaRouter(
                self._client, listed, name_base(spec.paths), spec.paths, spec.pieces
            )
        if self._dialect.context < least:
            raise ServerUnfit(
                f"{self.url} comes with a context of {self._dialect.context}, and the run has "
                f"worked with {least}; start it with as much, or give the same command again"
            )
        self.context, self.slots = self._dialect.context, self._dialect.slots
        self._models.clear()
        self._generation += 1

    # -- its models ----------

    def _find_model(self, adapter: str | None, slot: int) -> tuple[str, Dialect, int]:
        """A model's name on the server, loaded and checked at its first use."""
        with self._lock:
            if self._dialect is None:
                raise ServerFault(f"{self.url} has not answered yet", began=False)
            if adapter not in self._models:
                try:
                    self._models[adapter] = self._load(self._dialect, adapter, slot)
                except ServerFault as fault:  # no fault of the request that needs the model
                    raise ServerFault(
                        str(fault), began=False, unreachable=fault.unreachable
                    ) from None
            return self._models[adapter], self._dialect, self._generation

    def _load(self, dialect: Dialect, adapter: str | None, slot: int) -> str:
        """Load a model and compare it with its reference."""
        base, paths = dialect.load_base(), self._spec.paths
        if adapter is None:
            name, folder = base, paths.base.parent
        else:
            path = Path(adapter)
            name, folder = name_adapter(paths, path, dialect.weights_of(path)), path.parent
            dialect.load_adapter(name, path, paths)
        places = reference.load(folder / REFERENCE).places
        try:
            self._check(dialect, base, None if adapter is None else name, places, slot)
        except Refusal as refusal:
            raise ServerUnfit(
                f"{self.url} cannot be asked for log-probabilities ({refusal}); check its "
                "version and options"
            ) from None
        return name

    def _check(
        self, dialect: Dialect, base: str, adapter: str | None, places: list[Expected], slot: int
    ) -> None:
        """Raise ServerUnfit where the server's answers are not those of the reference."""

        def ask(model: str) -> list[Place]:
            with self._turn(dialect, is_base=model == base):
                return [dialect.next_token(model, one.tokens, one.ids, slot)[0] for one in places]

        plain = ask(base)
        fault, name = reference.find_fault(reference.compare(places, plain)), base
        if fault is None and adapter is not None:
            found, name = reference.compare(places, plain, ask(adapter)), adapter
            fault = reference.find_fault(found)
        if fault is not None:
            raise ServerUnfit(f"{self.url} ({self.kind}), model {show(name)}, {fault}")

    def _turn(self, dialect: Dialect, *, is_base: bool) -> AbstractContextManager[None]:
        """What a request must hold while it is under way; nobody may wait for the lock in it."""
        return nullcontext() if dialect.mixes else self._turns.take(is_base=is_base)

    # -- a sample ----------

    def _draw(
        self, dialect: Dialect, model: str, request: Request, sample: int, slot: int
    ) -> tuple[Completion, Counts]:
        probe, closing = request.probe, request.closing
        answer = dialect.generate(
            model,
            request.tokens,
            request.sampling,
            request.seeds[sample],
            request.stop,
            probe.tokens if probe else (),
            slot,
        )
        computed, closed = answer.computed, 0
        text, probed, closed_with, closing_text = self._text(answer.tokens), None, None, ""
        if probe is not None:
            probed, more = self._probe(dialect, model, request, answer, slot)
            computed += more
        if closing is not None:
            behind = closing.tokens_behind(text)
            prompt = (*request.tokens, *answer.tokens, *behind)
            place, more = dialect.next_token(model, prompt, closing.choices, slot)
            closed_with, closing_text = to_probabilities(place.logprobs), self._text(behind)
            computed, closed = computed + more, len(behind)
        completion = Completion(
            request.key,
            sample,
            tuple(answer.tokens),
            text,
            answer.finish,
            len(request.tokens),
            probed,
            closed_with,
            closing_text,
        )
        return completion, Counts(computed, closed)

    def _probe(
        self, dialect: Dialect, model: str, request: Request, answer: Answer, slot: int
    ) -> tuple[tuple[float, ...] | None, int]:
        """The probabilities at the probe's last place, None without one; prompt tokens computed."""
        probe = request.probe
        assert probe is not None
        after = probe.after.rstrip(BLANK).casefold()
        for place in range(len(answer.tokens) - 1, -1, -1):
            before = answer.tokens[:place]
            if answer.tokens[place] not in probe.tokens:
                continue
            if not self._text(before).rstrip(BLANK).casefold().endswith(after):
                continue
            if answer.watched is not None:
                return to_probabilities(answer.watched[place]), 0
            prompt = (*request.tokens, *before)
            found, computed = dialect.next_token(model, prompt, probe.tokens, slot)
            return to_probabilities(found.logprobs), computed
        return None, 0

    def _text(self, tokens: Sequence[int]) -> str:
        pieces = self._spec.pieces
        return b"".join(pieces[token] for token in tokens).decode("utf-8", errors="replace")


def to_probabilities(logprobs: Sequence[float]) -> tuple[float, ...]:
    """Probabilities from their logarithms."""
    return tuple(math.exp(min(0.0, value)) for value in logprobs)


def name_base(paths: Paths) -> str:
    """The name of a run's base for llama-server: its bytes are part of it."""
    manifest = paths.base.parent / MANIFEST
    files = read_manifest_fact(paths.base.parent, "files") if manifest.exists() else {}
    digest = files.get(paths.base.name) or hash_file(paths.base)
    return _name(paths.prefix, "base", digest)


def name_adapter(paths: Paths, adapter: Path, weights: Path) -> str:
    """The name of an adapter on servers, which never means other weights."""
    if not weights.exists():
        raise EngineError(f"{weights} is missing; restore the model's folder from a copy")
    return _name(paths.prefix, adapter.parent.name, hash_file(weights))


def _name(*parts: str) -> str:
    *names, digest = parts
    return re.sub(r"[^A-Za-z0-9_.-]", "-", "-".join([*names, digest[:NAMED]]))
