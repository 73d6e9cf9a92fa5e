"""How fast is the engine? Held against what most people use, and against what the machine can do, in one run.

Knows: loads (which prompts, how many samples, how long), how the three are measured in turn, what is made of their seconds.
Does not know: llama.cpp (that is `rivals` and the engine's own child). Prompts are random tokens: time does not depend on
what they say, and a random model never ends a text by itself, so each sample is a request of its own with its own length.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate, permutations
from os.path import commonprefix
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from selfreward_lite.engine.api import LlamaSpec, Request, Sampling, Stats
from selfreward_lite.engine.loading import cores
from selfreward_lite.engine.process import ProcessEngine
from selfreward_lite.system.errors import ConfigError, UserError

if TYPE_CHECKING:
    from selfreward_lite.bench.baselines import Layout, Step
    from selfreward_lite.models.random_models import Quantisation

Tokens = tuple[int, ...]
Say = Callable[[str], None]
COMMON = 250  # tokens of every judge prompt: rubric and examples
JUDGMENT = 200  # tokens of a judgment that a meta-judge reads
VERDICT = (8, 24)  # tokens of a meta-judge's verdict
DRAW = {"temperature": 1.0, "top_p": 0.95, "top_k": 64}
ROOTS = 16  # the engine's default
SWEEP_ROWS = 2000  # of a trace's tokens, for each setting of bare llama.cpp that is tried
NAIVE_REQUESTS = 8  # what is slowest is measured on a few


@dataclass(frozen=True)
class Load:
    """Requests to be served, one a sample; those of one prompt stand together. All begin with the same `common` tokens."""

    name: Literal["judge", "meta"]
    requests: tuple[Request, ...]
    common: int

    @property
    def unique_tokens(self) -> int:
        """Tokens that somebody who never computes the same beginning twice must compute: the nodes of the prompts' trie."""
        prompts = sorted({request.tokens for request in self.requests})
        shared = sum(len(commonprefix(pair)) for pair in zip(prompts, prompts[1:], strict=False))
        return sum(map(len, prompts)) - shared

    @property
    def longest(self) -> int:
        """Tokens of the longest request with all that it may generate."""
        return max(len(request.tokens) + request.sampling.max_tokens for request in self.requests)


def prepare_model(
    model: Path | None,
    synthetic: str | None,
    quantisation: Quantisation,
    adapter: Path | None,
    folder: Path,
    say: Say,
) -> tuple[Path, Path | None]:
    """The model and adapter to measure: the given ones, or random ones of a `synthetic` shape."""
    from selfreward_lite.models import random_models

    if (model is None) == (synthetic is None):
        raise UserError("name a --model or a --synthetic shape, one of them")
    is_random = adapter == Path("random")
    if synthetic is None:
        assert model is not None
        if is_random:
            raise UserError(
                "a random adapter is made for a --synthetic shape; give the adapter's file with "
                "--model"
            )
        return model, adapter
    path = folder / f"{synthetic}-{quantisation}.gguf"
    if not path.exists():
        say(f"making {path}")
        random_models.write_gguf(path, synthetic, quantisation)
    if is_random:
        adapter = random_models.write_gguf_adapter(folder / f"{synthetic}-adapter.gguf", synthetic)
    return path, adapter


def judge_load(
    vocab: int,
    prompts: int,
    *,
    samples: int = 8,
    tokens: int = 600,
    new: tuple[int, int] = (40, 160),
    adapter: str | None = None,
    seed: int = 0,
) -> Load:
    """N judgments of each of many responses: prompts of `tokens` with a common beginning, `samples` each, `new` tokens long."""
    rng = random.Random(seed)
    common = _some(rng, vocab, min(COMMON, tokens // 2))
    requests = []
    for number in range(prompts):
        prompt = common + _some(rng, vocab, tokens - len(common))
        requests += [
            _request(f"{number}:{index}", prompt, rng.randint(*new), rng, adapter)
            for index in range(samples)
        ]
    return Load("judge", tuple(requests), len(common))


def meta_load(
    vocab: int,
    responses: int,
    *,
    judgments: int = 4,
    tokens: int = 600,
    adapter: str | None = None,
    seed: int = 0,
) -> Load:
    """Battles between the judgments of each response, all pairs in both orders; one short verdict each.

    Of the `tokens` of a prompt the two judgments take 400, what all prompts begin with three quarters of the rest.
    """
    rest = tokens - 2 * JUDGMENT
    if rest < 2:
        raise ConfigError(
            f"a battle holds two judgments of {JUDGMENT} tokens; give --prompt-tokens above {2 * JUDGMENT + 1}"
        )
    if judgments < 2:
        raise ConfigError("a battle needs two judgments of a response; give --samples 2 or more")
    rng = random.Random(seed)
    common = _some(rng, vocab, rest * 3 // 4)
    requests = []
    for number in range(responses):
        asked = common + _some(rng, vocab, rest - len(common))
        written = [_some(rng, vocab, JUDGMENT) for _ in range(judgments)]
        for first, second in permutations(range(judgments), 2):
            prompt = asked + written[first] + written[second]
            requests.append(
                _request(f"{number}:{first}:{second}", prompt, rng.randint(*VERDICT), rng, adapter)
            )
    return Load("meta", tuple(requests), len(common))


def _some(rng: random.Random, vocab: int, count: int) -> Tokens:
    return tuple(rng.randrange(256, vocab - 8) for _ in range(count))


def _request(
    key: str, prompt: Tokens, new: int, rng: random.Random, adapter: str | None
) -> Request:
    return Request(
        key, prompt, (rng.randrange(2**31),), Sampling(max_tokens=new, **DRAW), (), adapter
    )


def spec_for(
    model: Path, load: Load, *, parallel: int, threads: int | None, gpu_layers: int
) -> LlamaSpec:
    """The engine for a load: on a GPU a KV cache that half of the sequences could fill, else one each."""
    longest = -(-load.longest // 256) * 256
    cells = longest * (max(4, parallel // 2) if gpu_layers else parallel + ROOTS)
    return LlamaSpec(
        model=model,
        parallel=parallel,
        context=cells,
        batch=max(512, parallel),
        gpu_layers=gpu_layers,
        roots=ROOTS,
        threads=threads or cores(),
        unified=bool(gpu_layers),
    )


@dataclass(frozen=True)
class Plan:
    """What is measured: the engine with its model, the load, and how often."""

    spec: LlamaSpec
    load: Load
    repeats: int = 3


@dataclass(frozen=True)
class Found:
    """Seconds and counters of one bench. Rates count generated tokens only, over all the time that was needed."""

    naive: list[float]
    engine: list[float]
    ceiling: list[float]
    stats: Stats
    quantisation: str
    layout: str


def measure(plan: Plan, say: Say) -> Found:
    """Measure the three in turn, `repeats` times each, after a sweep that finds bare llama.cpp's best setting."""
    from selfreward_lite.bench import baselines

    trace = baselines.record(plan.spec, plan.load.requests)
    best = _final(plan, trace.steps, _sweep(plan, _beginning(trace.steps), say), say)
    naive, engine, ceiling, stats = [], [], [], Stats()
    for number in range(1, plan.repeats + 1):
        naive.append(naive_rate(plan))
        rate, stats = engine_rate(plan)
        engine.append(rate)
        ceiling.append(trace.generated / baselines.replay(plan.spec, trace.steps, best))
        say(
            f"{number} of {plan.repeats}: naive {naive[-1]:.1f}, engine {engine[-1]:.1f}, ceiling {ceiling[-1]:.1f} tokens/s"
        )
    return Found(naive, engine, ceiling, stats, trace.quantisation, str(best))


def _beginning(steps: list[Step]) -> list[Step]:
    """The first steps of a trace, up to SWEEP_ROWS tokens."""
    ends = accumulate(len(step.tokens) for step in steps)
    return [step for step, end in zip(steps, ends, strict=True) if end <= SWEEP_ROWS] or steps[:1]


def _sweep(plan: Plan, steps: list[Step], say: Say) -> Layout:
    """Find the fastest setting of bare llama.cpp: KV cache and attention first, which change each other, then one by one."""
    from selfreward_lite.bench import baselines

    seconds: dict[Layout, float] = {}
    best = baselines.Layout(plan.spec.threads or cores(), plan.spec.batch, unified=True, flash=True)
    for tried in axes(plan.spec):
        for changes in tried:
            layout = replace(best, **changes)
            if layout not in seconds:
                seconds[layout] = baselines.replay(plan.spec, steps, layout)
                say(f"bare llama.cpp, {layout}: {len(steps)} steps in {seconds[layout]:.2f} s")
        best = min(seconds, key=lambda layout: seconds[layout])
    return best


def _final(plan: Plan, steps: list[Step], best: Layout, say: Say) -> Layout:
    """The best of the beginning, or what the engine itself has, where that wins over the whole, once caches are full."""
    own = _own(plan.spec)
    if own == best:
        return best
    from selfreward_lite.bench import baselines

    seconds = {layout: baselines.replay(plan.spec, steps, layout) for layout in (best, own)}
    for layout, taken in seconds.items():
        say(f"bare llama.cpp, {layout}: all {len(steps)} steps in {taken:.2f} s")
    return min(seconds, key=lambda layout: seconds[layout])


def _own(spec: LlamaSpec) -> Layout:
    from selfreward_lite.bench import baselines
    from selfreward_lite.engine.loading import micro_batch, uses_flash

    return baselines.Layout(
        spec.threads or cores(), micro_batch(spec), spec.unified, uses_flash(spec)
    )


def axes(spec: LlamaSpec) -> list[list[dict[str, Any]]]:
    """What the sweep tries, group after group, keeping the best of each."""
    threads, rows = spec.threads or cores(), spec.batch
    return [
        [
            {"unified": unified, "flash": flash}
            for unified in (True, False)
            for flash in (True, False)
        ],
        [{"threads": count} for count in sorted({threads, max(1, threads // 2)})],
        [{"micro_batch": size} for size in sorted({rows, max(spec.parallel, rows // 2)})],
    ]


def document(plan: Plan, found: Found) -> dict[str, Any]:
    """Return the result as one JSON document."""
    naive, engine, ceiling = median(found.naive), median(found.engine), median(found.ceiling)
    stats = found.stats
    return {
        "naive_tokens_per_s": round(naive, 1),
        "engine_tokens_per_s": round(engine, 1),
        "ceiling_tokens_per_s": round(ceiling, 1),
        "engine_over_naive": round(engine / naive, 3),
        "engine_over_ceiling": round(engine / ceiling, 3),
        "prefill_tokens_requested": stats.prompt_requested,
        "prefill_tokens_computed": stats.prompt_computed,
        "prefill_tokens_unique": plan.load.unique_tokens,
        "slot_occupancy": round(
            stats.busy_slot_steps / max(1, stats.busy_steps * plan.spec.parallel), 4
        ),
        "sampling_share": round(stats.seconds_sample / stats.seconds_total, 4),
        "model": plan.spec.model.name,
        "quantisation": found.quantisation,
        "threads": plan.spec.threads,
        "ceiling_setting": found.layout,
    }


def bare_rate(plan: Plan) -> float:
    """Return the tokens a second of the engine's own calls, made again with nothing in between, set up as the engine is."""
    from selfreward_lite.bench import baselines

    trace = baselines.record(plan.spec, plan.load.requests)
    return trace.generated / baselines.replay(plan.spec, trace.steps, _own(plan.spec))


def naive_rate(plan: Plan) -> float:
    """Return the tokens a second of the high-level binding, on the first requests of the load."""
    from selfreward_lite.bench import baselines

    requests = plan.load.requests[:NAIVE_REQUESTS]
    naive = baselines.Naive(plan.spec, plan.load.longest, requests[0].adapter)
    try:
        naive.warm(requests[0].tokens[: plan.load.common])
        generated, seconds = naive.run(requests)
        return generated / seconds
    finally:
        naive.close()


def engine_rate(plan: Plan, warm: int = 0) -> tuple[float, Stats]:
    """Return the tokens a second of the engine in its child process, where a run has it too, and the child's counters.

    The first `warm` requests are served before either begins.
    """
    engine = ProcessEngine(plan.spec)
    try:
        first = replace(plan.load.requests[0], tokens=(0,), sampling=Sampling(max_tokens=1, **DRAW))
        list(
            engine.complete([first, *plan.load.requests[:warm]])
        )  # as a replay begins: every page touched, the adapter loaded
        before = engine.stats
        started = perf_counter()
        generated = sum(
            len(completion.tokens) for completion in engine.complete(plan.load.requests[warm:])
        )
        seconds = perf_counter() - started
        return generated / seconds, engine.stats.since(before)
    finally:
        engine.close()
