"""One engine for many callers at once, as an app needs it: text goes out as it is drawn.

Callers take turns, and so do adapters: while a caller waits for another adapter, no more requests
of the current one are started. A child that dies fails what was under way; the next request starts
it again.
"""

import itertools
import json
import threading
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Literal

from pydantic import ValidationError

from selfreward_lite.engine.api import (
    REQUEST,
    Completion,
    EngineSpec,
    Piece,
    Request,
    failed_completions,
)
from selfreward_lite.engine.process import (
    COMPLETION,
    describe_death,
    error_from,
    start,
    wait_until_ready,
)
from selfreward_lite.system.errors import EngineError
from selfreward_lite.system.processes import DEATH, JsonProcess, Message

CLOSED = "this engine was closed; ask again"
HEARTBEAT = 0.25  # seconds of silence after which a caller gets None, and may stop
BEGIN: Message = {"begin": 1, "live": True}


@dataclass(eq=False)
class _Asked:
    """A caller's request with a key of its own; `owed` are its samples not completed."""

    request: Request
    caller: str
    owed: set[int]
    answers: SimpleQueue[Piece | Completion | EngineError] = field(default_factory=SimpleQueue)


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
        self._is_closed = False
        self._room = 1  # samples under way at once
        self._keys = itertools.count(1)
        self._under_way: dict[str, _Asked] = {}
        self._waiting: dict[str, _Asked] = {}  # the next turn first
        self.deaths = 0
        self.last_death = ""
        self.completions = 0  # made by the child, also for requests that were taken back

    @property
    def state(self) -> Literal["not started", "loading", "ready", "closed"]:
        if self._is_closed:
            return "closed"
        if self._child is not None:
            return "ready"
        return "loading" if self._loading_child else "not started"

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        return len(self._waiting)

    def load(self) -> None:
        """Start the child and load its model, unless that is done; raises EngineError."""
        with self._load_lock:
            with self._lock:
                self._check_open()
                if self._child is not None:
                    return
                self._loading_child = child = start(self.spec)
            try:
                room = wait_until_ready(child)
                with self._lock:
                    self._check_open()  # it may have been closed while it was loading
                    self._child, self._room = child, room
                    child.send(BEGIN)
            finally:
                self._loading_child = None
            threading.Thread(target=self._listen, args=(child,), daemon=True).start()

    def ask(
        self, request: Request, caller: str = ""
    ) -> Generator[Piece | Completion | None, None, None]:
        """Yield pieces of a streamed request, a completion per sample, and None every HEARTBEAT.

        Closing the iterator takes the request back. Raises EngineError if the request is of wrong
        types, if too many requests wait, or if the engine cannot be used; if the engine dies, the
        completions are "failed".
        """
        _check_types(request)
        with self._lock:
            self._check_open()
            if self.waiting >= self._most:
                raise EngineError(f"{self.waiting} requests wait already; try again in a moment")
            key = str(next(self._keys))
            asked = _Asked(replace(request, key=key), caller, set(range(len(request.seeds))))
            self._waiting[key] = asked
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
            self._refuse(self._under_way, EngineError(why))
            self._refuse(self._waiting, EngineError(why))
        for child in filter(None, children):
            child.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineError(CLOSED)

    def _load_and_serve(self) -> None:
        """Load, and serve the requests that wait; they get the error if loading fails."""
        try:
            self.load()
        except EngineError as error:
            self._refuse(self._waiting, error)
        except Exception as error:  # noqa: BLE001 - any other error has callers waiting for it too
            self._refuse(self._waiting, EngineError(f"{type(error).__name__}: {error}"))
        self._send_waiting()

    def _refuse(self, group: dict[str, _Asked], error: EngineError) -> None:
        """Give every request of a group the error instead of an answer."""
        with self._lock:
            for asked in group.values():
                asked.answers.put(error)
            group.clear()

    def _send_waiting(self) -> None:
        """Send the child as many requests as it has room for, caller by caller.

        No request is sent while samples for another adapter are under way.
        """
        with self._lock:
            while self._child is not None and self._waiting:
                key, first = next(iter(self._waiting.items()))
                busy = sum(len(one.owed) for one in self._under_way.values())
                adapters = {one.request.adapter for one in self._under_way.values()}
                is_full = busy and busy + len(first.owed) > self._room
                if is_full or adapters - {first.request.adapter}:
                    return
                self._under_way[key] = self._waiting.pop(key)
                for other, one in list(self._waiting.items()):
                    if one.caller == first.caller:
                        self._waiting[other] = self._waiting.pop(other)  # behind the others
                self._child.send({"request": REQUEST.dump_python(first.request, warnings=False)})

    def _take_back(self, asked: _Asked) -> None:
        """Forget a request; the child is told if it computes it."""
        key = asked.request.key
        with self._lock:
            self._waiting.pop(key, None)
            if self._under_way.pop(key, None) is not None and self._child is not None:
                self._child.send({"drop": key})
        self._send_waiting()

    def _listen(self, child: JsonProcess) -> None:
        """Pass on the messages of a child for as long as it lives."""
        while DEATH not in (message := child.messages.get()):
            if "piece" in message:
                self._pass_on(Piece(**message["piece"]))
            elif "completion" in message:
                self._pass_on(COMPLETION.validate_python(message["completion"]))
            elif "finished" not in message:
                with self._lock:  # the round ends for every request in it; the next begins at once
                    self._refuse(self._under_way, EngineError(str(error_from(message))))
                    child.send(BEGIN)
                self._send_waiting()
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

    def _on_worker_death(self, child: JsonProcess) -> None:
        """Fail what was under way; a child that should live is started again if requests wait."""
        with self._lock:
            if child is not self._child:
                return  # it was closed
            failed = list(self._under_way.values())
            self._under_way.clear()
            self._child = None
            self.deaths += 1
        self.last_death = describe_death(child)
        for asked in failed:
            for completion in failed_completions(asked.request, sorted(asked.owed)):
                asked.answers.put(completion)
        if self.waiting:
            self._load_and_serve()


def _check_types(request: Request) -> None:
    """Raise EngineError for a request of wrong types: in the child it would end everybody's."""
    try:
        dumped = json.dumps(REQUEST.dump_python(request, mode="json", warnings=False))
        # Pydantic's own reader of JSON refuses the path of a folder whose name is not UTF-8.
        REQUEST.validate_python(json.loads(dumped, parse_constant=lambda _: None))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise EngineError(f"the request cannot be sent: {place}: {first['msg']}") from None
