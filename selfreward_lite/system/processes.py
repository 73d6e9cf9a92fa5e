"""Child processes: their environment, how they ended, their last lines."""

from __future__ import annotations

import os
import signal
from collections import deque
from pathlib import Path
from typing import Any

from selfreward_lite.system.gpu import one_card


def _environment(spec: dict[str, Any]) -> dict[str, str]:
    """Ours, with this package importable, one card in sight, and two settings of llama.cpp; whoever starts us may overrule them.

    Its aborts start a debugger unless told not to (seconds), and its threads spin for long while they wait, which on
    a busy machine starves others. A short spin keeps the speed: a tiny model with an adapter, 2 threads, made 1,680
    tokens/s without spinning, 5,290 with 1,000 turns, 5,780 with 10,000, 5,850 with the default (measured, idle machine).
    """
    environment = {
        "GGML_NO_BACKTRACE": "1",
        "GOMP_SPINCOUNT": "10000",
        **os.environ,
        **one_card(os.environ),
    }
    if not spec.get("gpu_layers"):
        environment["CUDA_VISIBLE_DEVICES"] = (
            ""  # a CUDA build would take some of a card's memory even without a layer on it
        )
    package = str(Path(__file__).resolve().parents[2])
    known = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([package, known] if known else [package])
    return environment


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"it ended with code {code} and without a word"
    name = signal.Signals(-code).name
    return f"it was ended by {name}" + (
        ", which is how a system short of memory ends processes" if name == "SIGKILL" else ""
    )


def _last_words(log: Path) -> str | None:
    if not log.exists():
        return None
    with log.open(encoding="utf-8", errors="replace") as file:
        last = deque((line.strip() for line in file if line.strip()), maxlen=1)
    return last[0] if last else None
