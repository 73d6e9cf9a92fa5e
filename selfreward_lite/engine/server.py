"""Generates and judges on servers over HTTP: which sample is asked where, and what if it fails.

One thread holds all state; others ask a server for the samples of one request, one after another in
the same slot, so that its prompt is computed once. No more samples are under way than slots, so a
faster server gets more. Asking again is safe: a request carries its seeds, and no answer depends on
who gave it. A server that fails rests, and is left out after three failures in a row until it
answers for the run's base again as training did. A request under way at three deaths is asked
alone. If the server fails on it again, and then does well without it, its samples are "failed".
A server that cannot serve the run, or whose answers do not fit, is asked for nothing more: where it
was wrong once, nothing of it is taken. That ends the run only where no other server is left.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from selfreward_lite.engine.api import Completion, Request, Stats, failed_completions
from selfreward_lite.engine.http_client import ServerFault, ServerUnfit, Timing
from selfreward_lite.engine.remote import Counts, Server, ServerSpec
from selfreward_lite.system.errors import EngineError

FAULTS_BEFORE_OUT = 3  # in a row
DEATHS_BEFORE_ISOLATION = 3
DEATHS_BEFORE_GIVING_UP = 8  # for each server, in a row, without a single completion
IDLE_BEFORE_CHECK = 2.0  # seconds without an answer; nobody notices a restart meanwhile
TIMING = Timing()
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job:
    """A request with its samples still owed, in one call of `complete` (`round`)."""

    request: Request
    missing: list[int]
    round: "_Round"
    deaths: int = 0
    failed_alone: list["_State"] = field(default_factory=list)  # where nothing else was under way


@dataclass(eq=False)
class _Round:
    """One call of `complete`: jobs that wait, those that may kill a server, those under way.

    What failed is held until a server has answered something, or nothing else is to be asked: where
    servers fail on every request, that is an error, and no request's fault.
    """

    held: list[Completion] = field(default_factory=list)
    waiting: deque[_Job] = field(default_factory=deque)
    suspects: deque[_Job] = field(default_factory=deque)
    under_way: int = 0
    is_alone: bool = False  # what is under way must have no company
    more: bool = True
    is_over: bool = False


@dataclass(eq=False)
class _State:
    """A server with its free slots, and how it has done lately (`until` as time.monotonic)."""

    server: Server
    free: list[int] = field(default_factory=list)
    busy: int = 0
    faults: int = 0
    last_fault: float = 0.0
    until: float = 0.0
    line: str = ""
    is_out: bool = True
    is_unfit: bool = False  # then it stays out
    is_checking: bool = False

    def set_slots(self) -> None:
        """Take the server's slots; those that are busy come back by themselves."""
        if not self.busy:
            self.free = list(range(self.server.slots - 1, -1, -1))


@dataclass(frozen=True)
class _Drawn:
    job: _Job
    state: _State
    completion: Completion
    counts: Counts


@dataclass(frozen=True)
class _Ended:
    job: _Job
    state: _State
    slot: int
    error: Exception | None
    started: float
    alone: bool


@dataclass(frozen=True)
class _Checked:
    state: _State
    error: Exception | None


class ServerEngine:
    """An engine on servers; see `api.Engine`. The constructor returns when one of them answers.

    `patience` are minutes to wait while none does. `faults` counts the failures survived. Raises
    EngineError, naming the servers, where none of them can serve the run.
    """

    def __init__(
        self, urls: Iterable[str], spec: ServerSpec, patience: float, timing: Timing = TIMING
    ) -> None:
        self._spec, self._timing, self._patience = spec, timing, patience * 60
        self._states = [_State(Server(url, spec, timing)) for url in urls]
        self._inbox: queue.SimpleQueue[_Drawn | _Ended | _Checked] = queue.SimpleQueue()
        self._round: _Round | None = None
        self._is_closed = False
        self._deaths_in_a_row = 0
        self._last_answer = time.monotonic()
        self._out_since = time.monotonic()
        self._has_warned = False
        self.stats, self.faults = Stats(), 0
        self._limit = 0  # the smallest context of all servers that have answered
        try:
            self._start_checks()
            while not self._available() or any(one.is_checking for one in self._states):
                self._receive()
        except BaseException:
            self.close()
            raise

    @property
    def parallel(self) -> int:
        """How many samples the servers that answer keep under way."""
        return sum(one.server.slots for one in self._states if not one.is_out)

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """See `api.Engine`. One iterator at a time."""
        if self._is_closed:
            raise EngineError("this engine is closed; make a new one")
        if self._round is not None:
            raise RuntimeError("this engine is already completing; close that iterator first")
        self._round, self._deaths_in_a_row, feed = _Round(), 0, iter(requests)
        started = time.monotonic()
        if started - self._last_answer > IDLE_BEFORE_CHECK:
            for state in self._states:
                state.server.forget_models()
        self._last_answer = started
        try:
            while True:
                yield from self._hand_out(self._round, feed)
                current = self._round
                if not (current.waiting or current.suspects or current.under_way or current.more):
                    yield from current.held
                    return
                yield from self._receive()
        finally:
            self._round.is_over = True
            self._round = None
            self.stats.seconds_total += time.monotonic() - started

    def close(self) -> None:
        """Let go of the servers; what they still compute is dropped there."""
        self._is_closed = True
        if self._round is not None:
            self._round.is_over = True
        for state in self._states:
            state.server.close()

    # -- handing out ----------

    def _hand_out(self, current: _Round, feed: Iterator[Request]) -> Iterator[Completion]:
        """Start jobs while there are free slots; yields the refusals among new requests."""
        while (state := self._freest()) is not None:
            if current.suspects or current.is_alone:
                if current.under_way:
                    return
                self._try_alone(current.suspects.popleft(), state)
                continue
            if current.waiting:
                self._start(current.waiting.popleft(), state)
                continue
            request = next(feed, None)
            if request is None:
                current.more = False
                return
            yield from self._admit(request, current)

    def _admit(self, request: Request, current: _Round) -> Iterator[Completion]:
        """Queue a request; one that does not fit the smallest context is refused."""
        request.check(len(self._spec.pieces))
        if request.stream:
            raise EngineError(
                f"request {request.key}: servers do not stream; use engine.kind=llama"
            )
        samples = list(range(len(request.seeds)))
        self.stats.prompt_requested += len(request.tokens) * len(samples)
        # A closing is read from the token behind it, which a server counts.
        needed = len(request.tokens) + request.new_tokens + (request.closing is not None)
        if needed > self._limit:
            yield from failed_completions(request, samples, "refused")
        elif samples:
            current.waiting.append(_Job(request, samples, current))

    def _try_alone(self, job: _Job, state: _State) -> None:
        """Ask for a job alone, unless a server that failed on it so has done well since."""
        if all(one.is_out for one in job.failed_alone):
            job.round.is_alone = True
            self._start(job, state, alone=True)
            return
        _log.warning("request %s fails on servers and is refused", job.request.key)
        job.round.held += failed_completions(job.request, job.missing)

    def _start(self, job: _Job, state: _State, *, alone: bool = False) -> None:
        slot = state.free.pop()
        state.busy += 1
        job.round.under_way += 1
        work = partial(self._work, job, state, slot, list(job.missing), alone)
        threading.Thread(target=work, daemon=True).start()

    def _work(self, job: _Job, state: _State, slot: int, samples: list[int], alone: bool) -> None:
        """Ask for the samples of a job, in a thread of its own; says everything by the inbox."""
        error, started = None, time.monotonic()
        try:
            for sample in samples:
                if job.round.is_over or state.is_unfit:
                    break
                self._inbox.put(_Drawn(job, state, *state.server.draw(job.request, sample, slot)))
        except Exception as raised:  # noqa: BLE001 - raised again where the iterator is
            error = raised
        self._inbox.put(_Ended(job, state, slot, error, started, alone))

    def _available(self) -> list[_State]:
        return [one for one in self._states if not one.is_out]

    def _freest(self) -> _State | None:
        """The server with the most free slots, of those that may be asked now."""
        now = time.monotonic()
        ready = [one for one in self._available() if one.free and one.until <= now]
        return max(ready, key=lambda one: len(one.free), default=None)

    # -- what comes back ----------

    def _receive(self) -> Iterator[Completion]:
        """Wait for one message or for the next thing to do; returns the completions to hand out."""
        self._start_checks()
        try:
            message = self._inbox.get(timeout=self._next_wait())
        except queue.Empty:
            message = None
        completions: list[Completion] = []
        if isinstance(message, _Drawn):
            completions = self._take(message)
        elif isinstance(message, _Ended):
            self._end(message)
        elif isinstance(message, _Checked):
            self._end_check(message)
        self._check_patience()
        return iter(completions)

    def _take(self, drawn: _Drawn) -> list[Completion]:
        if drawn.state.is_unfit:  # another server is asked for it
            return []
        self._deaths_in_a_row, self._last_answer = 0, time.monotonic()
        job, completion = drawn.job, drawn.completion
        self.stats.prompt_computed += drawn.counts.computed
        self.stats.generated += len(completion.tokens)
        self.stats.closed += drawn.counts.closed
        job.missing.remove(completion.sample)
        if job.round.is_over:
            return []
        held, job.round.held = job.round.held, []
        return [*held, completion]

    def _end(self, ended: _Ended) -> None:
        """Free a slot; what failed is asked again, or is an error."""
        job, state, error = ended.job, ended.state, ended.error
        job.round.under_way -= 1
        job.round.is_alone = False
        state.busy -= 1
        state.free.append(ended.slot)
        if isinstance(error, ServerUnfit):
            self._put_aside(state, error)
        elif isinstance(error, ServerFault):
            self._note_fault(state, error, ended.started)
        elif error is not None and not job.round.is_over:
            raise error
        elif error is None:
            state.faults = 0
        if job.round.is_over or not job.missing:
            return
        if isinstance(error, ServerFault) and error.began:
            job.deaths += 1
            if ended.alone:
                job.failed_alone.append(state)
                self._leave_out(state)
        is_suspect = job.deaths >= DEATHS_BEFORE_ISOLATION
        (job.round.suspects if is_suspect else job.round.waiting).appendleft(job)

    # -- servers that fail ----------

    def _note_fault(self, state: _State, fault: ServerFault, started: float) -> None:
        """Let a server rest, twice as long each time; after some failures it is left out.

        Samples that were under way together fail together, which is one failure.
        """
        if state.is_unfit:
            return
        if fault.unreachable or fault.began:  # behind a tunnel, a server that is gone breaks off
            state.server.forget_models()
        state.line = str(fault)
        if started < state.last_fault:
            return
        self.faults += 1
        state.faults += 1
        state.last_fault = now = time.monotonic()
        rest = self._timing.rest * 2 ** (state.faults - 1)
        state.until = now + min(rest, self._timing.longest_rest)
        _log.warning("%s; its samples are asked for again", fault)
        if fault.began:
            self._deaths_in_a_row += 1
        silence = now - self._last_answer
        most_deaths = DEATHS_BEFORE_GIVING_UP * len(self._states)
        if self._deaths_in_a_row >= most_deaths or silence >= self._patience:
            how = f"failed {self._deaths_in_a_row} times in a row without one answer"
            if silence >= self._patience:
                how = f"gave no answer for {silence / 60:.1f} minutes"
            raise EngineError(
                f"servers {how}: {fault}; look at their logs, then give the same command again"
            )
        if fault.unreachable or state.faults >= FAULTS_BEFORE_OUT:
            self._leave_out(state)

    def _leave_out(self, state: _State) -> None:
        """Ask a server for nothing until it has passed a check."""
        if not state.is_out:
            self._take_out(state)
            _log.warning("%s is left out until it answers again", state.server.url)

    def _put_aside(self, state: _State, error: ServerUnfit) -> None:
        """Ask a server for nothing any more; what it draws from now on is dropped."""
        if state.is_unfit:
            return
        state.is_unfit, state.line, state.until = True, str(error), 0.0
        if not state.is_out:
            self._take_out(state)
        if not self._is_hopeless():
            _log.warning("%s; until the next training or command it is left out", error)

    def _take_out(self, state: _State) -> None:
        state.is_out = True
        if not self._available():
            self._out_since, self._has_warned = time.monotonic(), False

    def _is_hopeless(self) -> bool:
        """Whether no server can serve the run, so that waiting does not help."""
        return all(one.is_unfit for one in self._states)

    def _start_checks(self) -> None:
        """Ask servers that are left out whether they are back, when it is time."""
        now = time.monotonic()
        for state in self._states:
            rests = state.is_unfit or state.is_checking or state.busy or state.until > now
            if state.is_out and not rests:
                self._check(state)

    def _check(self, state: _State) -> None:
        state.is_checking = True
        threading.Thread(target=self._connect, args=(state,), daemon=True).start()

    def _connect(self, state: _State) -> None:
        error = None
        try:
            state.server.connect(self._limit)
            if state.faults:
                state.server.check_answers()
        except Exception as raised:  # noqa: BLE001 - raised again in the thread with the state
            error = raised
        self._inbox.put(_Checked(state, error))

    def _end_check(self, checked: _Checked) -> None:
        state, error = checked.state, checked.error
        state.is_checking = False
        if isinstance(error, ServerFault):
            if state.line != str(error):
                _log.warning("%s", error)
            state.line = str(error)
            state.until = time.monotonic() + self._timing.check
        elif isinstance(error, ServerUnfit):
            self._put_aside(state, error)
        elif error is not None:
            raise error
        else:
            contexts = [self._limit, state.server.context]
            self._limit = min(filter(None, contexts), default=0)
            state.is_out, state.until = False, 0.0
            state.faults = min(state.faults, FAULTS_BEFORE_OUT - 1)
            state.set_slots()

    def _next_wait(self) -> float | None:
        """Seconds until there is something to do without a message; None: never."""
        if self._is_hopeless():
            return 0.0
        now = time.monotonic()
        times = [
            one.until
            for one in self._states
            if one.until > now and not one.is_checking and not (one.is_out and one.busy)
        ]
        if not self._available():
            times.append(self._out_since + self._patience)
        return max(0.0, min(times) - now) if times else None

    def _check_patience(self) -> None:
        """Raise EngineError if no server has answered for too long, or none can serve the run."""
        if self._available():
            return
        lines = "; ".join(one.line for one in self._states if one.line)
        if self._is_hopeless():
            raise EngineError(lines)
        minutes = f"{self._patience / 60:g} minutes"
        if time.monotonic() - self._out_since >= self._patience:
            raise EngineError(
                f"no server has answered for {minutes}: {lines}; start them (`doctor --servers "
                "RUN` says how), then give the same command again"
            )
        if lines and not self._has_warned:
            self._has_warned = True
            _log.warning("no server answers (%s); waiting up to %s", lines, minutes)
