"""One engine for many callers at once, as an app needs it: requests come at any time, text goes out as it is drawn.

Knows: a child process with an engine in it, whose turn it is, how a request is taken back. Does not know: chats, pages, models'
meaning. Callers take turns, and so do adapters: while somebody waits for another adapter, no more of the present one is begun.
A child that dies fails what was under way, and is started again for the next request.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any, Literal

from selfreward_lite.engine.api import Completion, Piece, Request
from selfreward_lite.engine.process import describe_death, start
from selfreward_lite.engine.worker import Message, completion_from_plain, request_to_plain
from selfreward_lite.system.errors import EngineError
from selfreward_lite.system.processes import DEATH, JsonProcess

CLOSED = "this engine was closed; ask again"
HEARTBEAT = 0.25  # seconds; so often may a caller be stopped while nothing is said to it
State = Literal["not started", "loading", "ready", "closed"]


@dataclass(slots=True, eq=False)
class _Asked:
    """A request of a caller; `owed` are its samples that the child has not completed, `answers` what the caller is to hear."""

    request: Request
    caller: str
    owed: set[int]
    answers: SimpleQueue[Piece | Completion | EngineError] = field(default_factory=SimpleQueue)
    key: str = ""  # of the child's; empty while it waits


class Live:
    """An engine in a child process that is loaded at its first request, or by `load`. `spec` is as for `ProcessEngine`.

    At most `most` requests wait; more are refused. All methods may be called from any thread.
    """

    def __init__(self, spec: dict[str, Any], most: int = 64) -> None:
        self.spec, self._most = spec, most
        self._lock = threading.RLock()
        self._loading = threading.Lock()
        self._child: JsonProcess | None = None
        self._loads: JsonProcess | None = None
        self._room = 1
        self._serials = itertools.count(1)
        self._under_way: dict[str, _Asked] = {}
        self._waiting: dict[str, deque[_Asked]] = {}  # by caller, whose turn is next first
        self.state: State = "not started"
        self.deaths = 0
        self.last_death = ""
        self.completions = 0  # that the child made, those of requests taken back among them

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
        """Start the child and load its model, unless that is done. Raises EngineError, in a line, where it cannot be."""
        with self._loading:
            with self._lock:
                if self.state == "closed":
                    raise EngineError(CLOSED)
                if self._child is not None:
                    return
                self.state = "loading"
            try:
                child, room = start(self.spec, self._born)
            except BaseException:
                with self._lock:
                    self.state = "closed" if self.state == "closed" else "not started"
                raise
            with self._lock:
                if self.state == "closed":  # meanwhile
                    child.close()
                    raise EngineError(CLOSED)
                self._child, self._loads, self._room, self.state = child, None, room, "ready"
                child.send({"begin": 1, "live": True})
            threading.Thread(target=self._listen, args=(child,), daemon=True).start()

    def ask(
        self, request: Request, caller: str = ""
    ) -> Generator[Piece | Completion | None, None, None]:
        """Yield what is said to a request: pieces if it is streamed, a completion a sample, None every HEARTBEAT of silence.

        Closing the iterator takes the request back. Raises EngineError where too many wait, or the engine cannot be used; one
        that dies on the way answers with completions that "failed".
        """
        with self._lock:
            if self.state == "closed":
                raise EngineError(CLOSED)
            if self.waiting >= self._most:
                raise EngineError(f"{self.waiting} requests wait already; try again in a moment")
            asked = _Asked(request, caller, set(range(len(request.seeds))))
            self._waiting.setdefault(caller, deque()).append(asked)
        try:
            if self._child is None:
                threading.Thread(target=self._begin, daemon=True).start()
            self._send_on()
            left = len(request.seeds)
            while left:
                try:
                    said = asked.answers.get(timeout=HEARTBEAT)
                except Empty:
                    yield None
                    continue
                if isinstance(said, EngineError):
                    raise said
                left -= isinstance(said, Completion)
                yield replace(said, key=request.key)
        finally:
            self._take_back(asked)

    def close(self, why: str = CLOSED) -> None:
        """End the child; whoever is under way or waits is told `why`. Closing twice is allowed."""
        with self._lock:
            children = [child for child in (self._child, self._loads) if child is not None]
            self._child, self._loads, self.state = None, None, "closed"
            for asked in self._under_way.values():
                asked.answers.put(EngineError(why))
            self._under_way.clear()
        self._refuse_waiting(EngineError(why))
        for child in children:
            child.close()

    def _born(self, child: JsonProcess) -> None:
        """Remember a child that loads, so that its memory comes back at once when it is not wanted any more."""
        with self._lock:
            self._loads = child
            closed = self.state == "closed"
        if closed:
            child.close()

    def _begin(self) -> None:
        """Load and serve whoever waits; where that cannot be, they are told why."""
        try:
            self.load()
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits to hear of it
            self._refuse_waiting(
                error
                if isinstance(error, EngineError)
                else EngineError(f"{type(error).__name__}: {error}")
            )
        self._send_on()

    def _send_on(self) -> None:
        """Give the child whatever it has room for, caller by caller."""
        with self._lock:
            while self._child is not None and (asked := self._next()) is not None:
                asked.key = str(next(self._serials))
                self._under_way[asked.key] = asked
                self._child.send(
                    {"request": request_to_plain(replace(asked.request, key=asked.key))}
                )

    def _next(self) -> _Asked | None:
        """The request whose turn it is, if there is room for it and the adapter is the one in use."""
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
        """Forget a request, wherever it is; the child is told if it computes it."""
        with self._lock:
            if asked.key:
                if self._under_way.pop(asked.key, None) is not None and self._child is not None:
                    self._child.send({"drop": asked.key})
            elif asked in (queue := self._waiting.get(asked.caller, deque())):
                queue.remove(asked)
                if not queue:
                    del self._waiting[asked.caller]
        self._send_on()

    def _listen(self, child: JsonProcess) -> None:
        """Hand on what a child says for as long as it lives."""
        while True:
            message = child.messages.get()
            if DEATH in message:
                self._bury(child)
                return
            if "piece" in message or "completion" in message:
                self._hand_on(message)
            elif "error" in message or "bug" in message:
                self._fail(
                    EngineError(
                        message.get("error") or f"the engine's process failed:\n{message['bug']}"
                    )
                )

    def _hand_on(self, message: Message) -> None:
        said = (
            Piece(**message["piece"])
            if "piece" in message
            else completion_from_plain(message["completion"])
        )
        with self._lock:
            asked = self._under_way.get(said.key)
            self.completions += isinstance(said, Completion)
            if asked is None:
                return  # taken back meanwhile
            if isinstance(said, Completion):
                asked.owed.discard(said.sample)
                if not asked.owed:
                    del self._under_way[said.key]
            asked.answers.put(said)
        if isinstance(said, Completion):
            self._send_on()

    def _fail(self, error: EngineError) -> None:
        """The round is over for everybody in it; the next begins at once."""
        with self._lock:
            for asked in self._under_way.values():
                asked.answers.put(error)
            self._under_way.clear()
            if self._child is not None:
                self._child.send({"begin": 1, "live": True})
        self._send_on()

    def _bury(self, child: JsonProcess) -> None:
        with self._lock:
            wanted = child is self._child
            failed = list(self._under_way.values())
            self._under_way.clear()
            self._child = None if wanted else self._child
            if wanted:
                self.state = "not started"
                self.deaths += 1
        self.last_death = describe_death(child) if wanted else ""
        for asked in failed:
            for sample in sorted(asked.owed):
                asked.answers.put(
                    Completion(asked.key, sample, (), "", "failed", len(asked.request.tokens))
                )
        if wanted and self.waiting:
            self._begin()

    def _refuse_waiting(self, error: EngineError) -> None:
        with self._lock:
            for asked in itertools.chain.from_iterable(self._waiting.values()):
                asked.answers.put(error)
            self._waiting.clear()
