"""The child's side of `process.py`: reads requests from standard input, writes completions.

    parent to child                              child to parent
    a spec (see `api.SPEC`)        once          {"ready": samples under way}, {"error": line,
                                                 "memory": was it short?} or {"bug": traceback}
    {"begin": 1}                                 {"round": 1, "completion": {...}}  any number
    {"request": {...}}             any number    {"round": 1, "error": line, "memory": …}
    {"end": 1} or {"cancel": 1}                  {"round": 1, "finished": {counters}}

A round that begins with {"begin": 1, "live": true} accepts requests at any time, and {"drop": key}.
For requests to be streamed it also sends {"round": 1, "piece": {...}}.

The end of standard input ends the child at once, whatever it computes: no parent, no child.
"""

import json
import os
import pkgutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from queue import Empty, SimpleQueue
from typing import Any, TextIO

from selfreward_lite.engine.api import (
    REQUEST,
    SPEC,
    Cancel,
    EngineSpec,
    Fed,
    LlamaSpec,
    Piece,
    Stats,
)
from selfreward_lite.system.errors import EngineError, EngineMemoryError
from selfreward_lite.system.processes import Message, open_wire


def make_engine(spec: EngineSpec) -> Any:
    """The engine that a spec describes."""
    if isinstance(spec, LlamaSpec):
        try:
            from selfreward_lite.engine.llama import LlamaEngine  # native code: only in a child
        except ModuleNotFoundError as error:
            if error.name != "llama_cpp":
                raise
            raise EngineError(
                "llama.cpp is not installed: run `python -m selfreward_lite llama`"
            ) from None
        return LlamaEngine(spec)
    return pkgutil.resolve_name(spec.factory)(**spec.arguments)


class _Inbox:
    """Reads the pipe in a thread: the parent's writes never block, and its end is noticed."""

    def __init__(self, pipe: TextIO) -> None:
        self.engine: Any = None  # once it is made
        self._pipe = pipe
        self._messages: SimpleQueue[Message] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._pipe:
            message = json.loads(line)
            if "cancel" in message and self.engine:
                self.engine.cancel()
            self._messages.put(message)
        os._exit(0)  # at once, even while native code computes

    def next_round(self) -> Message:
        """The message that begins the next round."""
        while "begin" not in (message := self._messages.get()):
            pass  # the rest of a round that ended early
        return message

    def requests(self, is_live: bool) -> Iterator[Fed]:
        """The requests of a round, up to its end.

        In a live round, None if nothing has come and the engine has work.
        """
        while True:
            try:
                message = self._messages.get(block=not is_live or self.engine.idle)
            except Empty:
                yield None
                continue
            if "drop" in message:
                yield Cancel(message["drop"])
            elif "request" in message:
                yield REQUEST.validate_python(message["request"])
            else:
                return


def serve(engine: Any, inbox: _Inbox, send: Callable[[Message], None]) -> None:
    """Run rounds without end; an EngineError ends its round only."""
    inbox.engine = engine
    send({"ready": engine.parallel})
    while True:
        begin = inbox.next_round()
        number = begin["begin"]
        try:
            for one in engine.complete(inbox.requests("live" in begin)):
                if isinstance(one, Piece):  # parent and child read the same clock
                    send({"round": number, "piece": {**asdict(one), "at": time.monotonic()}})
                else:
                    send({"round": number, "completion": asdict(one)})
            send({"round": number, "finished": asdict(getattr(engine, "stats", Stats()))})
        except EngineError as error:
            send({"round": number, **_describe(error)})


def _describe(error: EngineError) -> Message:
    return {"error": str(error), "memory": isinstance(error, EngineMemoryError)}


def main() -> None:
    # Ctrl-C reaches the whole process group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    send = open_wire()
    pipe = os.fdopen(os.dup(0), "r", encoding="utf-8")
    line = pipe.readline()
    inbox = _Inbox(pipe)
    try:
        serve(make_engine(SPEC.validate_python(json.loads(line))), inbox, send)
    except EngineError as error:
        send(_describe(error))
    except Exception:  # noqa: BLE001 - a bug: the parent raises it with this traceback
        send({"bug": traceback.format_exc()})
    os._exit(1)  # not through interpreter shutdown, which could wait for the reading thread


if __name__ == "__main__":
    main()
