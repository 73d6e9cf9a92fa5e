"""What the engine is compared with: llama-cpp-python's usual API, and raw llama.cpp.

Raw llama.cpp makes the engine's own calls again, with no sampling and no bookkeeping in between.
Also what the engine does beside computing: switching adapters, sampling from a large vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from os.path import commonprefix
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal

import llama_cpp as cpp
import numpy as np

from selfreward_lite.engine.api import LlamaSpec, Request, Sampling
from selfreward_lite.engine.device import Rows
from selfreward_lite.engine.llama import BatchArrays, LlamaDevice
from selfreward_lite.engine.loading import has_amx, load_model, refuse_cpu_build
from selfreward_lite.engine.scheduler import Scheduler
from selfreward_lite.system.errors import ConfigError

NAIVE_REQUESTS = 8  # enough for the slowest of the three
SWITCHES = 20
SAMPLED = 9  # steps of each way to sample, of which the first does not count
Call = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Load:
    """Requests with one sample each, ordered by prompt; all begin with the same `common` tokens."""

    name: Literal["judge", "meta"]
    requests: list[Request]
    common: int

    @property
    def unique_tokens(self) -> int:
        """Prompt tokens to compute if no beginning is computed twice: the nodes of the trie."""
        prompts = sorted({request.tokens for request in self.requests})
        return sum(map(len, prompts)) - sum(len(commonprefix(pair)) for pair in pairwise(prompts))

    @property
    def longest(self) -> int:
        """Tokens of the longest request with its completion."""
        return max(len(one.tokens) + one.sampling.max_tokens for one in self.requests)

    @property
    def cells(self) -> int:
        """KV cells for the longest request, in steps of 256."""
        return -(-self.longest // 256) * 256


@dataclass(frozen=True)
class Plan:
    """What is measured: the engine with its model, and the load."""

    spec: LlamaSpec
    load: Load


@dataclass(frozen=True)
class Step:
    """One `llama_decode`, and the calls on the KV cache and adapters before it.

    `columns` holds tokens, positions and sequences [3, rows]; the rows `wanted` have logits.
    """

    calls: tuple[Call, ...]
    columns: np.ndarray
    wanted: Sequence[int]


@dataclass(frozen=True)
class Trace:
    """Every step of the engine, the tokens it generated, and the type of the model's weights."""

    steps: list[Step]
    generated: int
    quantization: str


class Recorder:
    """A device that computes nothing and records its calls; every sampled token is 0."""

    def __init__(self, device: LlamaDevice) -> None:
        self.cells, self.limit = device.cells, device.limit
        self.rows, self.vocab = device.rows, device.vocab
        self.steps: list[Step] = []
        self._calls: list[Call] = []

    def decode(self, rows: Rows, wanted: Sequence[int]) -> int:
        self.steps.append(Step(tuple(self._calls), np.array(rows, np.int32), wanted))
        self._calls.clear()
        return 0

    def make_sampler(self, sampling: Sampling, seed: int) -> None: ...

    def sample(self, samplers: list[Any], rows: Sequence[int]) -> list[int]:
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

    def take_errors(self) -> str:
        return ""


def vocabulary(model: Path) -> int:
    """How many tokens a model knows; raises EngineError for a file that is not a model."""
    loaded = load_model(model, 0, vocab_only=True)
    try:
        return int(cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(loaded)))
    finally:
        cpp.llama_model_free(loaded)


def record(plan: Plan) -> Trace:
    """The steps in which the engine serves the load.

    Nothing is computed: a text ends by its length only, so the steps do not depend on sampling.
    Raises ConfigError for requests that are longer than the model reads.
    """
    spec, longest = plan.spec, plan.load.longest
    with closing(LlamaDevice(spec)) as device:
        if longest > device.limit:
            raise ConfigError(
                f"a prompt with its answer has {longest} tokens, and {spec.model} reads "
                f"{device.limit}: lower --prompt-tokens"
            )
        recorder = Recorder(device)
        scheduler = Scheduler(recorder, spec.parallel, spec.roots)
        for _ in scheduler.run(plan.load.requests):
            pass
        return Trace(recorder.steps, scheduler.stats.generated, device.quantization)


def replay(spec: LlamaSpec, steps: Sequence[Step]) -> float:
    """The seconds that the calls of `steps` take."""
    with closing(LlamaDevice(spec)) as device:
        batches = []
        for step in steps:
            rows = BatchArrays(step.columns.shape[1])
            batches.append((step.calls, rows, rows.fill(step.columns, step.wanted)))
        calls = [call for step in steps for call in step.calls]
        for adapter in {arguments[0] for name, arguments in calls if name == "use_adapter"}:
            device.use_adapter(adapter)  # loaded before the clock starts
        device.use_adapter(None)
        warm = BatchArrays(1)
        device.run(warm.fill(Rows([0], [0], [0]), [0]))
        device.drop(0)
        started = perf_counter()
        for before, _, batch in batches:
            for name, arguments in before:
                getattr(device, name)(*arguments)
            if device.run(batch):
                raise RuntimeError(f"a recorded step cannot be computed ({device.take_errors()})")
        return perf_counter() - started


def naive_rate(plan: Plan) -> float:
    """Tokens a second of llama-cpp-python's `Llama` on the first requests, one sample at a time.

    It keeps the prompt of the last call; the common tokens are computed before the clock starts.
    Two parameters are not the defaults: it gets as many threads as the engine (by default half of
    the cores), and on CPUs with AMX no extra buffers, which crash there.
    """
    spec, requests = plan.spec, plan.load.requests[:NAIVE_REQUESTS]
    refuse_cpu_build(spec.gpu_layers)  # it would compute on the CPU, without an error
    with _without_amx_buffers():
        llama = cpp.Llama(
            str(spec.model),
            n_ctx=plan.load.longest,
            n_gpu_layers=spec.gpu_layers,
            n_threads=spec.threads,
            lora_path=requests[0].adapter,
            verbose=False,
        )
    with closing(llama):
        llama.create_completion(list(requests[0].tokens[: plan.load.common]), max_tokens=1)
        generated, started = 0, perf_counter()
        for request in requests:
            for seed in request.seeds:
                completion: Any = llama.create_completion(
                    list(request.tokens), **request.sampling.model_dump(), min_p=0.0, seed=seed
                )
                generated += completion["usage"]["completion_tokens"]
        return generated / (perf_counter() - started)


@contextmanager
def _without_amx_buffers() -> Iterator[None]:
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


def switching(plan: Plan) -> tuple[float, float]:
    """Seconds to load and check the load's adapter, and to switch to it or back once it is loaded.

    llama.cpp plans its graph again at the first step after a switch: that step's extra time counts.
    """
    adapter = plan.load.requests[0].adapter
    with closing(LlamaDevice(plan.spec)) as device:

        def step() -> float:
            started = perf_counter()
            device.clear()
            device.decode(Rows([0], [0], [0]), [0])
            return perf_counter() - started

        step()
        started = perf_counter()
        device.use_adapter(adapter)
        loaded = perf_counter() - started
        switched, plain = [], []
        for number in range(SWITCHES):
            started = perf_counter()
            device.use_adapter(adapter if number % 2 else None)
            setting = perf_counter() - started
            switched.append(setting + step())
            plain += [step(), step()]
        return loaded, median(switched) - median(plain)


def drawing(plan: Plan) -> dict[str, float]:
    """Seconds of a step in which every sequence gets a token, by what samples it.

    `one_thread` reads all logits. `threads` share them, as in the engine, if the vocabulary is
    large enough. `graph` is llama.cpp itself, on the GPU if there is one (`llama_set_sampler`).
    What is not possible is missing.
    """
    count, taken = plan.spec.parallel, dict[str, list[float]]()
    order = list(range(count))
    sampling = plan.load.requests[0].sampling
    with closing(LlamaDevice(plan.spec)) as device:
        samplers = [device.make_sampler(sampling, seed) for seed in range(count)]

        def step(name: str, position: int, sample: Callable[[], object]) -> None:
            started = perf_counter()
            if device.decode(Rows([0] * count, [position] * count, order), order):
                raise RuntimeError(
                    f"a step of {count} tokens cannot be computed ({device.take_errors()})"
                )
            sample()
            taken.setdefault(name, []).append(perf_counter() - started)

        def in_graph() -> None:
            for row in range(count):
                cpp.llama_get_sampled_token_ith(device.context, row)

        threads = {"one_thread": 1}
        if device.shares(count) > 1:
            threads["threads"] = device.helpers
        try:
            for number in range(SAMPLED):  # in turn
                for place, (name, helpers) in enumerate(threads.items()):
                    device.helpers = helpers
                    step(
                        name, number * len(threads) + place, lambda: device.sample(samplers, order)
                    )
            set_all = [
                cpp.llama_set_sampler(device.context, row, sampler)
                for row, sampler in enumerate(samplers)
            ]
            device.clear()
            for position in range(SAMPLED if all(set_all) else 0):
                step("graph", position, in_graph)
            return {name: median(seconds[1:]) for name, seconds in taken.items()}
        finally:
            for row, sampler in enumerate(samplers):
                cpp.llama_set_sampler(device.context, row, None)
                device.free_sampler(sampler)
