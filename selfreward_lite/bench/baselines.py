"""What the engine is held against: llama-cpp-python as most people use it, and bare llama.cpp, which nobody can outrun.

Knows: the high-level `Llama`; the calls that an engine makes of its device, so that they can be written down and made again
with nothing in between. Does not know: loads, tables. Runs in its own process or a bench's, never in a run's.
"""

# What the engine pays beside computing: for another adapter, and for drawing tokens from a large vocabulary.
#
# Knows: the engine's device. Does not know: loads, tables. Runs in a bench's process, never in a run's.

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import llama_cpp as cpp
import numpy as np

from selfreward_lite.engine.api import LlamaSpec, Request, Sampling
from selfreward_lite.engine.llama import LlamaDevice, Rows
from selfreward_lite.engine.loading import has_amx, load_model, refuse_cpu_build
from selfreward_lite.engine.scheduler import Scheduler
from selfreward_lite.system.errors import ConfigError

Call = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Step:
    """One `llama_decode` of a trace, and the calls on the memory that came before it."""

    calls: tuple[Call, ...]
    tokens: np.ndarray
    positions: np.ndarray
    sequences: np.ndarray
    wanted: int


@dataclass(frozen=True)
class Trace:
    """Every step of a run of the engine, how many tokens came out of it, and the type of the model's matrices."""

    steps: list[Step]
    generated: int
    quantisation: str


@dataclass(frozen=True)
class Layout:
    """How bare llama.cpp is set up for a replay: CPU threads, tokens a micro-batch, one KV cache for all sequences or one each,
    flash attention or not."""

    threads: int
    micro_batch: int
    unified: bool
    flash: bool

    def __str__(self) -> str:
        cache = "unified KV cache" if self.unified else "a KV cache each"
        attention = "flash attention" if self.flash else "no flash attention"
        return f"{cache}, {attention}, {self.threads} threads, micro-batch {self.micro_batch}"


class Recorder:
    """Stands in for a device: writes down what is asked of it, and computes nothing. Every token that it draws is 0."""

    def __init__(self, device: LlamaDevice) -> None:
        self.cells, self.limit, self.rows, self.vocab = (
            device.cells,
            device.limit,
            device.rows,
            device.vocab,
        )
        self.steps: list[Step] = []
        self._calls: list[Call] = []

    def decode(
        self, tokens: list[int], positions: list[int], sequences: list[int], wanted: int
    ) -> int:
        columns = (np.array(column, np.int32) for column in (tokens, positions, sequences))
        self.steps.append(Step(tuple(self._calls), *columns, wanted))
        self._calls.clear()
        return 0

    def make_sampler(self, sampling: Sampling, seed: int) -> None: ...

    def sample(self, samplers: list[Any]) -> list[int]:
        return [0] * len(samplers)

    def free_sampler(self, sampler: Any) -> None: ...

    def row_logits(self, row: int) -> np.ndarray:
        return np.zeros(self.vocab, np.float32)

    def fork(self, source: int, target: int, length: int) -> None:
        self._calls.append(("fork", (source, target, length)))

    def drop(self, sequence: int, start: int = 0) -> None:
        self._calls.append(("drop", (sequence, start)))

    def clear(self) -> None:
        self._calls.append(("clear", ()))

    def use_adapter(self, adapter: str | None) -> None:
        self._calls.append(("use_adapter", (adapter,)))

    def is_unchanged(self, adapter: str | None) -> bool:
        return True

    def token_bytes(self, token: int) -> bytes:
        return b""

    def last_error(self) -> str:
        return ""


def vocabulary(model: Path) -> int:
    """How many tokens a model knows; raises EngineError for a file that is not a model."""
    loaded = load_model(model, 0, vocab_only=True)
    try:
        return int(cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(loaded)))
    finally:
        cpp.llama_model_free(loaded)


def record(spec: LlamaSpec, requests: Sequence[Request]) -> Trace:
    """Return the steps in which the engine serves the requests. Which they are does not depend on what is drawn: nothing ends
    these texts but their length. So nothing is computed. Raises ConfigError for requests that are longer than the model reads."""
    longest = max(len(request.tokens) + request.sampling.max_tokens for request in requests)
    device = LlamaDevice(spec)
    try:
        if longest > device.limit:
            raise ConfigError(
                f"a prompt with its answer has {longest} tokens, and {spec.model} reads {device.limit}: lower --prompt-tokens"
            )
        recorder = Recorder(device)
        batcher = Scheduler(recorder, spec.parallel, spec.roots)
        for _ in batcher.run(requests):
            pass
        return Trace(recorder.steps, batcher.stats.generated, device.quantization)
    finally:
        device.close()


def replay(spec: LlamaSpec, steps: Sequence[Step], layout: Layout) -> float:
    """Make the calls of `steps`, with no sampling and no bookkeeping between them; return the seconds they take."""
    changed = asdict(layout)
    if (
        spec.unified and not layout.unified
    ):  # of one size each, and all as long as the longest needs
        longest = 1 + max(int(step.positions.max()) for step in steps)
        changed["context"] = -(-longest // 256) * 256 * (spec.parallel + spec.roots)
    device = LlamaDevice(spec.model_copy(update=changed))
    try:
        batches = []
        for step in steps:
            rows = Rows(len(step.tokens))
            batches.append(
                (
                    step.calls,
                    rows,
                    rows.fill(step.tokens, step.positions, step.sequences, step.wanted),
                )
            )
        for adapter in {
            arguments[0]
            for calls, _, _ in batches
            for name, arguments in calls
            if name == "use_adapter"
        }:
            device.use_adapter(adapter)
        device.use_adapter(None)
        warm = Rows(1)
        device.run(warm.fill([0], [0], [0], 1))
        device.drop(0)
        started = perf_counter()
        for calls, _, batch in batches:
            for name, arguments in calls:
                getattr(device, name)(*arguments)
            if device.run(batch):
                raise RuntimeError(
                    f"a step that was written down cannot be computed ({device.last_error()})"
                )
        return perf_counter() - started
    finally:
        device.close()


class Naive:
    """llama-cpp-python's `Llama`: one call after another, its own cache of the last prompt kept, default parameters.

    Two are set: as many threads as the engine has, where its default would be half of the cores; and on CPUs with AMX the extra
    buffers, which crash it there, are off.
    """

    def __init__(self, spec: LlamaSpec, context: int, adapter: str | None) -> None:
        refuse_cpu_build(spec.gpu_layers)  # it would compute on the CPU, and say nothing
        with _without_faulting_buffers():
            self._llama = cpp.Llama(
                str(spec.model),
                n_ctx=context,
                n_gpu_layers=spec.gpu_layers,
                n_threads=spec.threads,
                lora_path=adapter,
                verbose=False,
            )

    def warm(self, tokens: Sequence[int]) -> None:
        """Compute a prompt's beginning, as the call before would have."""
        self._llama.create_completion(list(tokens), max_tokens=1)

    def run(self, requests: Iterable[Request]) -> tuple[int, float]:
        """Return how many tokens were generated, and the seconds that it took."""
        generated, started = 0, perf_counter()
        for request in requests:
            for seed in request.seeds:
                sampling = request.sampling
                ended = self._llama.create_completion(
                    list(request.tokens),
                    max_tokens=sampling.max_tokens,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    top_k=sampling.top_k,
                    min_p=0.0,
                    seed=seed,
                )
                generated += ended["usage"]["completion_tokens"]
        return generated, perf_counter() - started

    def close(self) -> None:
        self._llama.close()


@contextmanager
def _without_faulting_buffers() -> Iterator[None]:
    module = cpp.llama_cpp
    make = module.llama_model_default_params

    def changed() -> Any:
        params = make()
        params.use_extra_bufts = not has_amx()
        return params

    module.llama_model_default_params = changed
    try:
        yield
    finally:
        module.llama_model_default_params = make


SWITCHES = 20
DRAWN = 9  # steps of each way, of which the first is not counted


def switching(spec: LlamaSpec, adapter: str) -> tuple[float, float]:
    """Return the seconds that it takes to load and prove an adapter, and to switch to it or back once it is loaded.

    llama.cpp plans its graph anew at the first step after a switch, so a switch is what such a step takes longer than others.
    """
    device = LlamaDevice(spec)
    try:

        def step() -> float:
            started = perf_counter()
            device.clear()
            device.decode([0], [0], [0], 1)
            return perf_counter() - started

        step()
        started = perf_counter()
        device.use_adapter(adapter)
        loaded = perf_counter() - started
        switched, plain = [], []
        for number in range(SWITCHES):
            started = perf_counter()
            device.use_adapter(None if number % 2 == 0 else adapter)
            set_seconds = perf_counter() - started
            switched.append(set_seconds + step())
            plain += [step(), step()]
        return loaded, median(switched) - median(plain)
    finally:
        device.close()


def drawing(spec: LlamaSpec, sampling: Sampling) -> dict[str, float]:
    """Return the seconds of a step in which every sequence gets a token drawn as `sampling` says, by who draws it; the first two
    in turn.

    `one_thread` reads all logits; `threads` share them, as in the engine, where the vocabulary is worth it; `graph` is llama.cpp
    itself, on the card where there is one (`llama_set_sampler`). Who cannot is missing.
    """
    device = LlamaDevice(spec)
    count = spec.parallel
    samplers = [device.make_sampler(sampling, seed) for seed in range(count)]

    def step(draw: Callable[[], object], position: int) -> float:
        started = perf_counter()
        if device.decode([0] * count, [position] * count, list(range(count)), count):
            raise RuntimeError(
                f"a step of {count} tokens cannot be computed ({device.last_error()})"
            )
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

    ways = {"one_thread": on_host(1)} | (
        {"threads": on_host(device.helpers)} if device.shares(count) > 1 else {}
    )
    taken: dict[str, list[float]] = {name: [] for name in (*ways, "graph")}
    try:
        for position in range(DRAWN * len(ways)):
            name = list(ways)[position % len(ways)]
            taken[name].append(step(ways[name], position))
        accepted = [
            cpp.llama_set_sampler(device.context, row, sampler)
            for row, sampler in enumerate(samplers)
        ]
        device.clear()
        taken["graph"] = (
            [step(in_graph, position) for position in range(DRAWN)] if all(accepted) else []
        )
        return {name: median(seconds[1:]) for name, seconds in taken.items() if seconds}
    finally:
        for row in range(count):
            cpp.llama_set_sampler(device.context, row, None)
        for sampler in samplers:
            device.free_sampler(sampler)
        device.close()
