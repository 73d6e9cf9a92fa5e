"""Scripted engines with faults, for a child process; a spec names one as "module:function"."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from selfreward_lite.engine.api import Request
from selfreward_lite.engine.scripted import ScriptedEngine
from selfreward_lite.system.errors import EngineError


def faulty(
    *,
    poison: str = "",
    once: str = "",
    error: str = "",
    bug: str = "",
    pause: float = 0.0,
    noise: bool = False,
) -> ScriptedEngine:
    """Return an engine that fails on prompts with given numbers.

    `poison` kills the process each time, `once` (a file) a single time; `error` and `bug` raise.
    """

    def reply(request: Request, sample: int) -> str:
        name = bytes(request.tokens).decode()
        time.sleep(pause)
        if noise:
            print("stray print")
        if poison and name in poison.split(","):
            os.kill(os.getpid(), signal.SIGKILL)
        if once and Path(once).exists() and name == Path(once).read_text():
            Path(once).unlink()
            os.kill(os.getpid(), signal.SIGSEGV)
        if name == error:
            raise EngineError("the scripted error, in one line")
        if name == bug:
            raise KeyError("scripted bug")
        return f"{name}:{request.seeds[sample]}"

    return ScriptedEngine(reply, lambda text: list(text.encode()), shuffle_seed=3)


def broken() -> ScriptedEngine:
    """Die while loading."""
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("unreachable")


def unloadable() -> ScriptedEngine:
    raise EngineError("no such model; download it")


def words(*, pause: float = 0.0, poison: str = "", load: float = 0.0) -> ScriptedEngine:
    """Return an engine that repeats prompt and seed; it dies on the prompt `poison`."""
    time.sleep(load)

    def reply(request: Request, sample: int) -> str:
        name = bytes(request.tokens).decode()
        if name == poison:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(pause)
        return f"{name}:{request.seeds[sample]}"

    return ScriptedEngine(reply, lambda text: list(text.encode()))
