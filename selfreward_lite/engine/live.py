"""One engine for many callers at once, as an app needs it: text goes out as it is drawn.

Callers take turns, and so do adapters: while a caller waits for another adapter, no more requests
of the current one are started. A child that dies fails what was under way; the next request starts
it again.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Generator
from dataclasses import asdict, dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Literal

from selfreward_lite.engine.api import (
    Completion,
    EngineSpec,
    Piece,
    Request,
    failed_completions,
)
from selfreward_lite.engine.process import COMPLETION, describe_death, error_from, start
from selfreward_lite.system.errors import EngineError
from selfreward_lite.system.processes import DEATH, JsonProcess, Message

CLOSED = "this engine was closed; ask again"
HEARTBEAT = 0.25  # seconds of silence after which a caller gets None, and may stop
BEGIN: Message = {"begin": 1, "live": True}
State = Literal["not started", "loading", "ready", "closed"]


@dataclass(slots=True, eq=False)
class _Asked:
    """A request of a caller; `owed` are samples not completed, `answers` goes to the caller."""

    request: Request
    caller: str
    owed: set[int]
    answers: SimpleQueue[Piece | Completion | EngineError] = field(default_factory=SimpleQueue)
    key: str = ""  # in the child; empty while it waits


class Live:
    """An engine in a child process, loaded by the first request or by `load`.

    At most `most` requests wait; more are refused. Any thread may call any method.
    """

    def __init__(self, spec: EngineSpec, most: int = 64) -> None:
        self.spec, self._most = spec, most
        self._lock = threading.RLock()
        self._load_lock = threading.Lock()
        self._child: JsonProcess | None = None
        self._loading_child: JsonProcess | None = None
        self._is_loading = self._is_closed = False
        self._room = 1  # samples under way at once
        self._keys = itertools.count(1)
        self._under_way: dict[str, _Asked] = {}
        self._waiting: dict[str, deque[_Asked]] = {}  # by caller; the next turn first
        self.deaths = 0
        self.last_death = ""
        self.completions = 0  # made by the child, also for requests that were taken back

    @property
    def state(self) -> State:
        if self._is_closed:
            return "closed"
        if self._child is not None:
            return "ready"
        return "loading" if self._is_loading else "not started"

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        with self._lock:
            return sum(map(len, self._waiting.values()))

    @property
    def pid(self) -> int | None:
        """Process id of the living child."""
        return self._child.pid if self._child else None

    def load(self) -> None:
        """Start the child and load its model, unless that is done; raises EngineError."""
        with self._load_lock:
            with self._lock:
                self._check_open()
                if self._child is not None:
                    return
                self._is_loading = True
            try:
                child, room = start(self.spec, self._on_start)
                with self._lock:
                    if self._is_closed:  # while it was loading
                        child.close()
                    self._check_open()
                    self._child, self._room = child, room
                    child.send(BEGIN)
            finally:
                self._is_loading, self._loading_child = False, None
            threading.Thread(target=self._listen, args=(child,), daemon=True).start()

    def ask(
        self, request: Request, caller: str = ""
    ) -> Generator[Piece | Completion | None, None, None]:
        """Yield pieces of a streamed request, a completion per sample, and None every HEARTBEAT.

        Closing the iterator takes the request back. Raises EngineError if too many requests wait or
        the engine cannot be used; if the engine dies, the completions are "failed".
        """
        with self._lock:
            self._check_open()
            if self.waiting >= self._most:
                raise EngineError(f"{self.waiting} requests wait already; try again in a moment")
            asked = _Asked(request, caller, set(range(len(request.seeds))))
            self._waiting.setdefault(caller, deque()).append(asked)
        try:
            if self._child is None:
                threading.Thread(target=self._load_and_serve, daemon=True).start()
            self._send_waiting()
            left = len(request.seeds)
            while left:
                try:
                    answer = asked.answers.get(timeout=HEARTBEAT)
                except Empty:
                    yield None
                    continue
                if isinstance(answer, EngineError):
                    raise answer
                left -= isinstance(answer, Completion)
                yield replace(answer, key=request.key)
        finally:
            self._take_back(asked)

    def close(self, why: str = CLOSED) -> None:
        """End the child; every caller gets an EngineError with `why`. Closing twice is allowed."""
        with self._lock:
            children = [self._child, self._loading_child]
            self._child, self._loading_child, self._is_closed = None, None, True
            for asked in self._under_way.values():
                asked.answers.put(EngineError(why))
            self._under_way.clear()
        self._refuse_waiting(EngineError(why))
        for child in children:
            if child is not None:
                child.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineError(CLOSED)

    def _on_start(self, child: JsonProcess) -> None:
        """Remember a child that is loading, so that `close` can end it."""
        with self._lock:
            self._loading_child = child
        if self._is_closed:
            child.close()

    def _load_and_serve(self) -> None:
        """Load, and serve the requests that wait; they get the error if loading fails."""
        try:
            self.load()
        except EngineError as error:
            self._refuse_waiting(error)
        except Exception as error:  # noqa: BLE001 - any other error has callers waiting for it too
            self._refuse_waiting(EngineError(f"{type(error).__name__}: {error}"))
        self._send_waiting()

    def _send_waiting(self) -> None:
        """Send the child as many requests as it has room for, caller by caller."""
        with self._lock:
            while self._child is not None and (asked := self._next()) is not None:
                asked.key = str(next(self._keys))
                self._under_way[asked.key] = asked
                self._child.send({"request": asdict(replace(asked.request, key=asked.key))})

    def _next(self) -> _Asked | None:
        """The request whose turn it is, if it has room and its adapter is the one in use."""
        caller = next(iter(self._waiting), None)
        if caller is None:
            return None
        queue = self._waiting[caller]
        busy = sum(len(one.owed) for one in self._under_way.values())
        adapters = {one.request.adapter for one in self._under_way.values()}
        first = queue[0]
        if busy and (busy + len(first.owed) > self._room or adapters != {first.request.adapter}):
            return None
        del self._waiting[caller]
        queue.popleft()
        if queue:
            self._waiting[caller] = queue  # behind the others
        return first

    def _take_back(self, asked: _Asked) -> None:
        """Forget a request; the child is told if it computes it."""
        with self._lock:
            if asked.key:
                if self._under_way.pop(asked.key, None) is not None and self._child is not None:
                    self._child.send({"drop": asked.key})
            elif asked in (queue := self._waiting.get(asked.caller, deque())):
                queue.remove(asked)
                if not queue:
                    del self._waiting[asked.caller]
        self._send_waiting()

    def _listen(self, child: JsonProcess) -> None:
        """Pass on the messages of a child for as long as it lives."""
        while DEATH not in (message := child.messages.get()):
            if "piece" in message:
                self._pass_on(Piece(**message["piece"]))
            elif "completion" in message:
                self._pass_on(COMPLETION.validate_python(message["completion"]))
            elif "finished" not in message:
                self._fail_round(EngineError(str(error_from(message))))
        self._on_worker_death(child)

    def _pass_on(self, answer: Piece | Completion) -> None:
        is_completion = isinstance(answer, Completion)
        with self._lock:
            asked = self._under_way.get(answer.key)
            self.completions += is_completion
            if asked is None:
                return  # taken back meanwhile
            if is_completion:
                asked.owed.discard(answer.sample)
                if not asked.owed:
                    del self._under_way[answer.key]
            asked.answers.put(answer)
        if is_completion:
            self._send_waiting()

    def _fail_round(self, error: EngineError) -> None:
        """End the round for every request in it; the next begins at once."""
        with self._lock:
            for asked in self._under_way.values():
                asked.answers.put(error)
            self._under_way.clear()
            if self._child is not None:
                self._child.send(BEGIN)
        self._send_waiting()

    def _on_worker_death(self, child: JsonProcess) -> None:
        """Fail what was under way; a child that should live is started again if requests wait."""
        with self._lock:
            is_crash = child is self._child
            failed = list(self._under_way.values())
            self._under_way.clear()
            if is_crash:
                self._child = None
                self.deaths += 1
        self.last_death = describe_death(child) if is_crash else ""
        for asked in failed:
            for completion in failed_completions(asked.request, sorted(asked.owed)):
                asked.answers.put(completion)
        if is_crash and self.waiting:
            self._load_and_serve()

    def _refuse_waiting(self, error: EngineError) -> None:
        with self._lock:
            for asked in itertools.chain.from_iterable(self._waiting.values()):
                asked.answers.put(error)
            self._waiting.clear()
