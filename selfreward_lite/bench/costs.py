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
DRAWN = 6  # steps, of which the first is not counted
CHAIN = Sampling(temperature=1.0, top_p=0.95, max_tokens=DRAWN, top_k=64)


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


def drawing(model: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of a step in which every sequence gets a token, by who draws it.

    `one_thread` reads all logits; `threads` share them, as in the engine; `graph` is llama.cpp itself, on the card where there is
    one (`llama_set_sampler`), and missing where it refuses.
    """
    device = LlamaDevice(model, settings)
    count = settings["parallel"]
    samplers = [device.sampler(CHAIN, seed) for seed in range(count)]
    several = device.helpers

    def in_graph(_: list[Any]) -> list[int]:
        return [cpp.llama_get_sampled_token_ith(device.context, row) for row in range(count)]

    def steps(draw: Callable[[list[Any]], list[int]]) -> float:
        device.clear()
        tokens, taken = [0] * count, []
        for position in range(DRAWN):
            started = perf_counter()
            if device.decode(tokens, [position] * count, list(range(count)), count):
                raise RuntimeError(f"a step of {count} tokens cannot be computed ({device.complaint()})")
            tokens = draw(samplers)
            taken.append(perf_counter() - started)
        return median(taken[1:])

    try:
        found = {"threads": steps(device.sample)}
        device.helpers = 1
        found["one_thread"] = steps(device.sample)
        device.helpers = several
        accepted = [cpp.llama_set_sampler(device.context, row, sampler) for row, sampler in enumerate(samplers)]
        if all(accepted):
            found["graph"] = steps(in_graph)
        return found
    finally:
        for row in range(count):
            cpp.llama_set_sampler(device.context, row, None)
        for sampler in samplers:
            device.free_sampler(sampler)
        device.close()
