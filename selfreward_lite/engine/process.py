"""Runs any engine in a child process, so that a crash in native code costs one restart and no work.

Knows: how to start, feed, watch and restart a child; which samples are still owed. Does not know: llama.cpp, nor what
the requests mean. Lines of JSON cross the pipes (`child.py` draws them); nothing is pickled.

A death is survived by starting again and asking only for the samples not yet delivered; new requests wait until those
are settled. After three deaths without a completion in between, the requests under way are tried one at a time, and
one that kills the child alone is answered with "failed". If everything kills it, that is an EngineError.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfreward_lite.engine.api import Completion, Request
from selfreward_lite.engine.worker import Message, completion_from_plain, request_to_plain
from selfreward_lite.system.errors import EngineError
from selfreward_lite.system.processes import DEATH, JsonProcess, child_environment, describe_exit

DEATHS_BEFORE_ISOLATION = 3
DEATHS_BEFORE_GIVING_UP = 8  # in a row, without a single completion
WINDOW = 4  # samples owed at most, in multiples of the engine's parallelism; an engine looks ahead by less
# Two settings of llama.cpp. Its aborts start a debugger otherwise (seconds). Its threads spin for long
# while they wait, which on a busy machine starves others. A short spin keeps the speed: a tiny model with an
# adapter, 2 threads, made 1,680 tokens/s without spinning, 5,290 with 1,000 turns, 5,780 with 10,000 and
# 5,850 with the default (measured on an idle machine).
ENVIRONMENT = {"GGML_NO_BACKTRACE": "1", "GOMP_SPINCOUNT": "10000"}
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Work:
    """A request and the samples of it that are still owed; `sent` maps the child's sample numbers to ours."""

    request: Request
    missing: list[int]
    sent: tuple[int, ...] = ()

    def wire(self, key: str) -> Message:
        self.sent = tuple(self.missing)
        seeds = tuple(self.request.seeds[sample] for sample in self.sent)
        return {"request": request_to_plain(replace(self.request, key=key, seeds=seeds))}

    def receive(self, completion: Completion) -> Completion:
        sample = self.sent[completion.sample]
        self.missing.remove(sample)
        return replace(completion, key=self.request.key, sample=sample)

    def refuse(self) -> Iterator[Completion]:
        for sample in self.missing:
            yield Completion(self.request.key, sample, (), "", "failed", len(self.request.tokens))


def start(
    spec: Message, on_start: Callable[[JsonProcess], None] = lambda child: None
) -> tuple[JsonProcess, int]:
    """Return a child that has loaded its model, and how many samples it keeps under way.

    `on_start` receives the child before it loads, so that closing it ends the loading. Raises
    EngineError with the child's own line if it cannot load.
    """
    environment = child_environment(ENVIRONMENT, "one" if spec.get("gpu_layers") else "none")
    child = JsonProcess("selfreward_lite.engine.worker", env=environment)
    child.send(
        {name: str(value) if isinstance(value, Path) else value for name, value in spec.items()}
    )
    on_start(child)
    message = child.messages.get()
    if "ready" in message:
        return child, message["ready"]["parallel"]
    how = describe_death(child)
    if "bug" in message:
        raise RuntimeError(f"the engine's process failed:\n{message['bug']}")
    death = f"the engine's process died while loading its model ({how}); if memory ran out, lower the context"
    raise EngineError(message.get("error", death))


def describe_death(child: JsonProcess) -> str:
    """How a dying child ended, with its last lines."""
    return " | ".join([describe_exit(child.reap()), *list(child.lines)[-3:]])


class ProcessEngine:
    """An engine in a child process. `spec` is plain JSON: {"kind": "llama", "model": path, ...LlamaEngine settings}.

    The constructor waits until the model is loaded. `stats` are the child's counters after the last whole `complete`,
    `deaths` counts crashes survived. Raises EngineError with the child's own line where it cannot load or go on.
    """

    def __init__(self, spec: Message) -> None:
        self._spec = spec
        self._child: JsonProcess | None = None
        self._closed = self._running = False
        self._last_death = ""
        self._rounds = itertools.count(1)
        self._serials = itertools.count(1)
        self._barren = 0  # deaths since the last completion
        self.parallel = 1
        self.deaths = 0
        self.stats: dict[str, Any] = {}
        self._started()

    @property
    def pid(self) -> int | None:
        """Process id of the living child."""
        return self._child.pid if self._child else None

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """See `base.Engine`. One iterator at a time."""
        if self._running:
            raise RuntimeError("this engine is already completing; close that iterator first")
        self._running, self._barren = True, 0
        try:
            works = (
                _Work(request, list(range(len(request.seeds))))
                for request in requests
                if request.seeds
            )
            while (owed := (yield from self._round(works))) is not None:
                yield from self._recover(owed)
        finally:
            self._running = False

    def close(self) -> None:
        self._closed = True
        if self._child:
            self._child.close()
        self._child = None

    def _recover(self, owed: list[_Work]) -> Iterator[Completion]:
        """Settle what a dead child owed: together first, one at a time if that keeps killing it."""
        while owed and self._barren < DEATHS_BEFORE_ISOLATION:
            owed = (yield from self._round(iter(owed))) or []
        for work in owed:
            if (yield from self._round(iter([work]))) is None:
                continue
            if self._barren >= DEATHS_BEFORE_GIVING_UP:
                raise EngineError(
                    f"the engine died {self._barren} times running, on every request: {self._last_death}"
                )
            _log.warning("request %s kills the engine and is refused", work.request.key)
            yield from work.refuse()
        if owed:
            self._barren = 0  # the ones that kill are out of the way

    def _round(self, works: Iterator[_Work]) -> Generator[Completion, None, list[_Work] | None]:
        """Feed works to the child until all are answered (None) or it dies (what it still owed)."""
        child, number = self._started(), next(self._rounds)
        pending: dict[str, _Work] = {}
        feeding, over = True, False
        child.send({"begin": number})
        try:
            while True:
                feeding = feeding and self._feed(child, number, works, pending)
                message = child.messages.get()
                if DEATH in message:
                    over = True
                    self._bury()
                    return list(pending.values())
                if message.get("round", number) != number:
                    continue  # the rest of a round that was closed early
                if "completion" in message:
                    yield self._receive(message["completion"], pending)
                    continue
                over = True
                self._end(message, pending)
                return None
        finally:
            if not over:
                child.send({"cancel": number})

    def _feed(
        self, child: JsonProcess, number: int, works: Iterator[_Work], pending: dict[str, _Work]
    ) -> bool:
        """Send works while the window has room. False once there are no more."""
        owed = sum(len(work.missing) for work in pending.values())
        while owed < WINDOW * self.parallel:
            work = next(works, None)
            if work is None:
                child.send({"end": number})
                return False
            key = str(next(self._serials))
            pending[key] = work
            child.send(work.wire(key))
            owed += len(work.missing)
        return True

    def _receive(self, plain: Message, pending: dict[str, _Work]) -> Completion:
        self._barren = 0
        work = pending[plain["key"]]
        completion = work.receive(completion_from_plain(plain))
        if not work.missing:
            del pending[plain["key"]]
        return completion

    def _end(self, message: Message, pending: dict[str, _Work]) -> None:
        if "error" in message:
            raise EngineError(message["error"])
        if "bug" in message:
            raise RuntimeError(f"the engine's process failed:\n{message['bug']}")
        if pending:
            raise RuntimeError(f"the engine ended its round and still owes {len(pending)} requests")
        self.stats = message["finished"]

    def _started(self) -> JsonProcess:
        """The living child, started and loaded if need be."""
        if self._closed:
            raise EngineError("this engine is closed; make a new one")
        if self._child and self._child.is_alive:
            return self._child
        if self._child:
            self._bury()
        self._child, self.parallel = start(self._spec)
        return self._child

    def _bury(self) -> None:
        child, self._child = self._child, None
        self._last_death = describe_death(child)
        self.deaths += 1
        self._barren += 1
        _log.warning("the engine's process died (%s); starting it again", self._last_death)
