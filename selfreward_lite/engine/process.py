"""Runs any engine in a child process, so that a crash in native code costs a restart and no work.

Lines of JSON cross the pipes (see `worker.py`); nothing is pickled. After a death the child is
started again, and only samples that were not delivered are requested again, before any new request.
After three deaths without a completion in between, these requests are tried one at a time; one that
kills the child alone is answered with "failed". If every request kills it, that is an EngineError.
Where the device's memory is too short, the child is started again with fewer cells, three times at
most.
"""

import itertools
import logging
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from selfreward_lite.engine.api import (
    REQUEST,
    Completion,
    EngineSpec,
    LlamaSpec,
    Request,
    Stats,
    failed_completions,
)
from selfreward_lite.system.errors import EngineError, EngineMemoryError
from selfreward_lite.system.processes import (
    DEATH,
    JsonProcess,
    Message,
    child_environment,
    describe_exit,
)

DEATHS_BEFORE_ISOLATION = 3
DEATHS_BEFORE_GIVING_UP = 8  # in a row, without a single completion
MOST_LOWERED = 3  # times that cells are taken away; less than half are left then
# In the last lines of a child that llama.cpp aborted; the second is of cuBLAS.
MEMORY_WORDS = ("error: out of memory", "ALLOC_FAILED")
WINDOW = 4  # samples owed at most, in multiples of the engine's parallelism; it looks ahead by less
# Two settings of llama.cpp. Its aborts start a debugger otherwise (seconds). Its threads spin for
# long while they wait, which on a busy machine starves others. A short spin keeps the speed: a tiny
# model with an adapter, 2 threads, made 1,680 tokens/s without spinning, 5,290 with 1,000 turns,
# 5,780 with 10,000, and 5,850 with the default (measured on an idle machine).
ENVIRONMENT = {"GGML_NO_BACKTRACE": "1", "GOMP_SPINCOUNT": "10000"}
COMPLETION = TypeAdapter(Completion)
_log = logging.getLogger(__name__)


def start(spec: EngineSpec) -> JsonProcess:
    """A child that begins to load its model; closing it ends that."""
    child = JsonProcess("selfreward_lite.engine.worker", env=environment_for(spec))
    child.send(spec.model_dump(mode="json"))
    return child


def wait_until_ready(child: JsonProcess) -> int:
    """Wait for a started child's model; returns how many samples the child keeps under way.

    Raises EngineError, with the child's own line, if it cannot load.
    """
    message = child.messages.get()
    if "ready" in message:
        return int(message["ready"])
    how = describe_death(child)
    if DEATH in message:
        kind = EngineMemoryError if had_no_memory(child) else EngineError
        raise kind(
            f"the engine's process died while loading its model: {how}; if memory ran out, lower "
            "the context"
        )
    raise error_from(message)


def environment_for(spec: EngineSpec) -> dict[str, str]:
    """What the child of a spec gets: llama.cpp's settings, and one GPU if it uses any."""
    return child_environment(ENVIRONMENT, "one" if spec.gpu_layers else "none")


def describe_death(child: JsonProcess) -> str:
    """How a dying child ended, with its last lines."""
    return " | ".join([describe_exit(child.reap()), *list(child.lines)[-3:]])


def had_no_memory(child: JsonProcess) -> bool:
    """Whether a dead child's last lines say that the device's memory was full."""
    return any(words in line for line in child.lines for words in MEMORY_WORDS)


def error_from(message: Message) -> EngineError | RuntimeError:
    """The exception for an {"error": line} or {"bug": traceback} of the child."""
    if "error" in message:
        return (EngineMemoryError if message.get("memory") else EngineError)(message["error"])
    return RuntimeError(f"the engine's process failed:\n{message['bug']}")


@dataclass
class _Work:
    """A request and its samples still owed; `sent` maps the child's sample numbers to ours."""

    request: Request
    missing: list[int]
    sent: tuple[int, ...] = ()

    def to_message(self, key: str) -> Message:
        self.sent = tuple(self.missing)
        seeds = tuple(self.request.seeds[sample] for sample in self.sent)
        return {
            "request": REQUEST.dump_python(
                replace(self.request, key=key, seeds=seeds), warnings=False
            )
        }


class ProcessEngine:
    """An engine in a child process; the constructor returns when the model is loaded.

    `stats` are the child's counters after the last complete round, `deaths` the crashes survived.
    Raises EngineError, with the child's own line, if it cannot load or continue. With `fixed` that
    is so too where memory is too short, without a try with fewer cells.
    """

    def __init__(self, spec: EngineSpec, *, fixed: bool = False) -> None:
        self._wanted = self._spec = spec  # `_spec` may have fewer cells
        self._most_lowered = 0 if fixed else MOST_LOWERED
        self._lowered = 0  # times that cells were taken away
        self._child: JsonProcess | None = None
        self._is_closed = self._is_running = False
        self._last_death = ""
        self._numbers = itertools.count(1)  # of rounds and requests
        self._deaths_in_a_row = 0  # since the last completion
        self.parallel = 1
        self.deaths = 0
        self.stats = Stats()
        self._living_child()

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """See `api.Engine`. One iterator at a time."""
        if self._is_running:
            raise RuntimeError("this engine is already completing; close that iterator first")
        self._is_running, self._deaths_in_a_row = True, 0
        try:
            works = (
                _Work(request, list(range(len(request.seeds))))
                for request in requests
                if request.seeds
            )
            while owed := (yield from self._run_round(works)):
                yield from self._recover(owed)
        finally:
            self._is_running = False

    def close(self) -> None:
        self._is_closed = True
        if self._child:
            self._child.close()
        self._child = None

    def _recover(self, owed: list[_Work]) -> Iterator[Completion]:
        """Complete what a dead child owed: together first, one at a time if that kills it again."""
        while owed and self._deaths_in_a_row < DEATHS_BEFORE_ISOLATION:
            owed = yield from self._run_round(iter(owed))
        for work in owed:
            if (yield from self._complete_alone(work)):
                continue
            if self._deaths_in_a_row >= DEATHS_BEFORE_GIVING_UP:
                raise EngineError(
                    f"the engine died {self._deaths_in_a_row} times in a row, on every request: "
                    f"{self._last_death}"
                )
            _log.warning("request %s kills the engine and is refused", work.request.key)
            yield from failed_completions(work.request, work.missing)
        if owed:
            self._deaths_in_a_row = 0  # the requests that kill are done

    def _complete_alone(self, work: _Work) -> Generator[Completion, None, bool]:
        """Complete one request; returns whether it was done before the child died of it."""
        while True:
            lowered = self._lowered
            owed = yield from self._run_round(iter([work]))
            if lowered == self._lowered:
                return not owed

    def _run_round(self, works: Iterator[_Work]) -> Generator[Completion, None, list[_Work]]:
        """Feed works to the child until all are done or it dies; returns what it still owes."""
        child, number = self._living_child(), next(self._numbers)
        pending: dict[str, _Work] = {}
        more, is_over = True, False
        child.send({"begin": number})
        try:
            while not is_over:
                owed = sum(len(work.missing) for work in pending.values())
                while more and owed < WINDOW * self.parallel:
                    work = next(works, None)
                    more = work is not None
                    if work is None:
                        child.send({"end": number})
                    else:
                        key = str(next(self._numbers))
                        pending[key] = work
                        child.send(work.to_message(key))
                        owed += len(work.missing)
                message = child.messages.get()
                if DEATH in message:
                    is_over = True
                    self._on_worker_death(child)
                elif message.get("round", number) != number:
                    continue  # the rest of a round that was closed early
                elif "completion" in message:
                    yield self._receive(message["completion"], pending)
                else:
                    is_over = True
                    self._end_round(child, message, pending)
        finally:
            if not is_over:
                child.send({"cancel": number})
        return list(pending.values())

    def _receive(self, plain: Message, pending: dict[str, _Work]) -> Completion:
        self._deaths_in_a_row = 0
        completion = COMPLETION.validate_python(plain)
        work = pending[completion.key]
        if completion.finish == "refused":
            self._check_refusal(work.request)
        sample = work.sent[completion.sample]
        work.missing.remove(sample)
        if not work.missing:
            del pending[completion.key]
        return replace(completion, key=work.request.key, sample=sample)

    def _check_refusal(self, request: Request) -> None:
        """Raise EngineError for a request that is too long for the lowered number of cells only."""
        if not (isinstance(self._spec, LlamaSpec) and isinstance(self._wanted, LlamaSpec)):
            return
        needed = len(request.tokens) + request.new_tokens
        if self._spec.sequence_cells < needed <= self._wanted.sequence_cells:
            raise EngineError(
                f"request {request.key} needs {needed} cells, and the device has memory for "
                f"{self._spec.sequence_cells}; free memory of the GPU"
            )

    def _end_round(self, child: JsonProcess, message: Message, pending: dict[str, _Work]) -> None:
        if "finished" not in message:
            error = error_from(message)
            if not isinstance(error, EngineMemoryError):
                raise error
            child.close()
            self._child = None
            self._take_cells_away(str(error))
            return
        if pending:
            raise RuntimeError(f"the engine ended its round and still owes {len(pending)} requests")
        self.stats = Stats(**message["finished"])

    def _living_child(self) -> JsonProcess:
        """The child, started and loaded if need be."""
        if self._is_closed:
            raise EngineError("this engine is closed; make a new one")
        if self._child and not self._child.is_alive:
            self._on_worker_death(self._child)
        while self._child is None:
            child = start(self._spec)
            try:
                self.parallel = wait_until_ready(child)
            except EngineMemoryError as error:
                self._take_cells_away(str(error))
            else:
                self._child = child
        return self._child

    def _take_cells_away(self, why: str) -> None:
        """Use fewer cells from the next start on; EngineError if that was done often enough."""
        spec = self._spec
        if not isinstance(spec, LlamaSpec) or self._lowered == self._most_lowered:
            cells = ""
            if isinstance(spec, LlamaSpec) and self._lowered:
                cells = f", even with {spec.context} cells"
            raise EngineMemoryError(
                f"the device's memory is too short for the engine{cells} ({why}); lower "
                "engine.context, or close other programs that use it"
            )
        self._lowered += 1
        self._spec = fewer = spec.with_fewer_cells()
        parallel = "" if fewer.unified else f"engine.parallel={fewer.parallel} and "
        _log.warning(
            "the device's memory is too short for the engine (%s); it starts again with %d cells "
            "instead of %d. To begin so, set %sengine.context=%d",
            why,
            fewer.context,
            spec.context,
            parallel,
            fewer.context,
        )

    def _on_worker_death(self, child: JsonProcess) -> None:
        self._child = None
        self._last_death = describe_death(child)
        self.deaths += 1
        if had_no_memory(child):
            self._take_cells_away(self._last_death)
            return
        self._deaths_in_a_row += 1
        _log.warning("the engine's process died (%s); starting it again", self._last_death)
