"""The child's side of `process.py`: reads requests from standard input, runs an engine, writes completions.

Knows: the lines that cross the pipe, which engine a spec means. Does not know: why it was started, or restarted.

    parent to child                              child to parent
    {"kind": "llama", ...}      once             {"ready": {"parallel": 64}}, {"error": line} or {"bug": traceback}
    {"begin": 1}                                 {"round": 1, "completion": {...}}  any number
    {"request": {...}}          any number       {"round": 1, "error": line}
    {"end": 1} or {"cancel": 1}                  {"round": 1, "finished": {counters}}

A round that begins with {"begin": 1, "live": true} takes requests whenever they come, and {"drop": key}; of those that are to be
streamed it answers {"round": 1, "piece": {...}} too.

The end of standard input ends the child at once, whatever it is computing: no parent, no child.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, is_dataclass
from queue import Empty, SimpleQueue
from typing import Any, TextIO

from selfreward_lite.engine.api import Cancel, Completion, Fed, Piece, Probe, Request, Sampling
from selfreward_lite.system.errors import EngineError

Message = dict[str, Any]


def request_to_plain(request: Request) -> Message:
    return asdict(request)


def request_from_plain(plain: Message) -> Request:
    probe = plain["probe"] and Probe(tuple(plain["probe"]["tokens"]), plain["probe"]["after"])
    lists = {name: tuple(plain[name]) for name in ("tokens", "seeds", "stop")}
    return Request(**{**plain, **lists, "sampling": Sampling(**plain["sampling"]), "probe": probe})


def completion_from_plain(plain: Message) -> Completion:
    probe = None if plain["probe"] is None else tuple(plain["probe"])
    return Completion(**{**plain, "tokens": tuple(plain["tokens"]), "probe": probe})


def make_engine(spec: Message) -> Any:
    """The engine that a spec names: "llama" with its settings, or "scripted" with a `factory` "module:function"."""
    settings = dict(spec)
    kind = settings.pop("kind", None)
    if kind == "llama":
        from selfreward_lite.engine.llama import (
            LlamaEngine,  # here, so that only a child ever loads native code
        )

        return LlamaEngine(**settings)
    if kind == "scripted":
        module, _, function = settings.pop("factory").partition(":")
        return getattr(importlib.import_module(module), function)(**settings)
    raise EngineError(f"engine kind {kind!r} is unknown; use 'llama' or 'scripted'")


class _Inbox:
    """A thread that reads the pipe all the time, so that the parent's writes never block and its end is noticed."""

    def __init__(self, pipe: TextIO) -> None:
        self.on_cancel: Callable[[], None] | None = None
        self._pipe = pipe
        self._messages: SimpleQueue[Message] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._pipe:
            message = json.loads(line)
            if "cancel" in message and self.on_cancel:
                self.on_cancel()
            self._messages.put(message)
        os._exit(0)  # at once, even while native code computes

    def next_round(self) -> tuple[int, bool]:
        """The number of the next round, and whether it is a live one."""
        while True:
            message = self._messages.get()
            if "begin" in message:
                return message["begin"], message.get("live", False)

    def requests(self) -> Iterator[Request]:
        while True:
            message = self._messages.get()
            if "request" not in message:
                return
            yield request_from_plain(message["request"])

    def live_requests(self, engine: Any) -> Iterator[Fed]:
        """What comes, as it comes; None where nothing has come and the engine has something to do."""
        while True:
            try:
                message = self._messages.get(block=engine.idle)
            except Empty:
                yield None
                continue
            if "drop" in message:
                yield Cancel(message["drop"])
            elif "request" in message:
                yield request_from_plain(message["request"])
            else:
                return


def serve(engine: Any, inbox: _Inbox, send: Callable[[Message], None]) -> None:
    """Run rounds for ever; an EngineError ends its round only."""
    inbox.on_cancel = engine.cancel
    send({"ready": {"parallel": engine.parallel}})
    while True:
        number, live = inbox.next_round()
        try:
            for said in engine.complete(inbox.live_requests(engine) if live else inbox.requests()):
                if isinstance(
                    said, Piece
                ):  # the clock is the machine's: the parent reads the same, if later
                    send({"round": number, "piece": {**asdict(said), "at": time.monotonic()}})
                else:
                    send({"round": number, "completion": asdict(said)})
            stats = getattr(engine, "stats", None)
            send({"round": number, "finished": asdict(stats) if is_dataclass(stats) else {}})
        except EngineError as error:
            send({"round": number, "error": str(error)})


def main() -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent decides what it means
    wire = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # stray prints must not reach the wire

    def send(message: Message) -> None:
        wire.write(json.dumps(message) + "\n")
        wire.flush()

    pipe = os.fdopen(os.dup(0), "r", encoding="utf-8")
    spec = json.loads(pipe.readline())
    inbox = _Inbox(pipe)
    try:
        serve(make_engine(spec), inbox, send)
    except EngineError as error:
        send({"error": str(error)})
    except Exception:  # noqa: BLE001 - a bug of ours: the parent raises it with this traceback
        send({"bug": traceback.format_exc()})
    wire.close()
    os._exit(1)  # not through interpreter shutdown, which could wait for the reading thread


if __name__ == "__main__":
    main()
