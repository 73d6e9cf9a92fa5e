"""What the engine pays beside computing: for another adapter, and for drawing tokens from a large vocabulary.

Knows: the engine's device. Does not know: loads, tables. Runs in a bench's process, never in a run's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import llama_cpp as cpp

from selfreward_lite.engines.base import Sampling
from selfreward_lite.engines.llama import LlamaDevice

SWITCHES = 20
DRAWN = 9  # steps of each way, of which the first is not counted


def switching(model: Path, settings: dict[str, Any], adapter: str) -> tuple[float, float]:
    """Return the seconds that it takes to load and prove an adapter, and to switch to it or back once it is loaded.

    llama.cpp plans its graph anew at the first step after a switch, so a switch is what such a step takes longer than others.
    """
    device = LlamaDevice(model, settings)
    try:

        def step() -> float:
            started = perf_counter()
            device.clear()
            device.decode([0], [0], [0], 1)
            return perf_counter() - started

        step()
        started = perf_counter()
        device.use(adapter)
        loaded = perf_counter() - started
        switched, plain = [], []
        for number in range(SWITCHES):
            started = perf_counter()
            device.use(None if number % 2 == 0 else adapter)
            set_seconds = perf_counter() - started
            switched.append(set_seconds + step())
            plain += [step(), step()]
        return loaded, median(switched) - median(plain)
    finally:
        device.close()


def drawing(model: Path, settings: dict[str, Any], sampling: Sampling) -> dict[str, float]:
    """Return the seconds of a step in which every sequence gets a token drawn as `sampling` says, by who draws it; the first two
    in turn.

    `one_thread` reads all logits; `threads` share them, as in the engine, where the vocabulary is worth it; `graph` is llama.cpp
    itself, on the card where there is one (`llama_set_sampler`). Who cannot is missing.
    """
    device = LlamaDevice(model, settings)
    count = settings["parallel"]
    samplers = [device.sampler(sampling, seed) for seed in range(count)]

    def step(draw: Callable[[], object], position: int) -> float:
        started = perf_counter()
        if device.decode([0] * count, [position] * count, list(range(count)), count):
            raise RuntimeError(f"a step of {count} tokens cannot be computed ({device.complaint()})")
        draw()
        return perf_counter() - started

    def on_host(threads: int) -> Callable[[], object]:
        def draw() -> None:
            device.helpers = threads
            device.sample(samplers)

        return draw

    def in_graph() -> None:
        for row in range(count):
            cpp.llama_get_sampled_token_ith(device.context, row)

    ways = {"one_thread": on_host(1)} | ({"threads": on_host(device.helpers)} if device.shares(count) > 1 else {})
    taken: dict[str, list[float]] = {name: [] for name in (*ways, "graph")}
    try:
        for position in range(DRAWN * len(ways)):
            name = list(ways)[position % len(ways)]
            taken[name].append(step(ways[name], position))
        accepted = [cpp.llama_set_sampler(device.context, row, sampler) for row, sampler in enumerate(samplers)]
        device.clear()
        taken["graph"] = [step(in_graph, position) for position in range(DRAWN)] if all(accepted) else []
        return {name: median(seconds[1:]) for name, seconds in taken.items() if seconds}
    finally:
        for row in range(count):
            cpp.llama_set_sampler(device.context, row, None)
        for sampler in samplers:
            device.free_sampler(sampler)
        device.close()
