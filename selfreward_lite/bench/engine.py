"""How fast the engine is, compared with llama-cpp-python's usual API and with raw llama.cpp.

Prompts are random tokens, since speed does not depend on the text. A random model never ends a text
by itself, so each sample is a request with a length of its own.
"""

import random
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, permutations
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from selfreward_lite.bench import Say, baselines
from selfreward_lite.bench.baselines import Load, Plan
from selfreward_lite.engine.api import LlamaSpec, Request, Sampling, Stats, TokenIds
from selfreward_lite.engine.loading import micro_batch, uses_flash
from selfreward_lite.engine.process import ProcessEngine
from selfreward_lite.models import random_models
from selfreward_lite.models.random_models import Quantization
from selfreward_lite.system.cores import count_cores
from selfreward_lite.system.errors import ConfigError, UserError

NAMES = {"naive": "llama-cpp-python", "engine": "this engine", "ceiling": "raw llama.cpp"}
COMMON = 250  # tokens of every judge prompt: rubric and examples
JUDGMENT = 200  # tokens of a judgment that a meta-judge reads
VERDICT = (8, 24)  # tokens of a meta-judge's verdict
DRAW = Sampling(temperature=1.0, top_p=0.95, max_tokens=1, top_k=64)
ROOTS = 16  # the engine's default
SEARCH_ROWS = 2000  # tokens of a trace that the search for the fastest layout takes


def prepare_model(
    model: Path | None,
    synthetic: str | None,
    quantisation: Quantization,
    adapter: Path | None,
    folder: Path,
    say: Say,
) -> tuple[Path, str | None]:
    """The model and adapter to measure: the given ones, or random ones of a `synthetic` shape."""
    is_random = adapter == Path("random")
    if model and not synthetic:
        if is_random:
            raise UserError(
                "a random adapter is made for a --synthetic shape; give the adapter's file with "
                "--model"
            )
    elif synthetic and not model:
        model = folder / f"{synthetic}-{quantisation}.gguf"
        if not model.exists():
            say(f"making {model}")
            random_models.write_gguf(model, synthetic, quantisation)
        if is_random:
            adapter = folder / f"{synthetic}-adapter.gguf"
            if not adapter.exists():
                random_models.write_gguf_adapter(adapter, synthetic)
    else:
        raise UserError("name a --model or a --synthetic shape, one of them")
    return model, str(adapter) if adapter else None


def judge_load(
    vocab: int,
    prompts: int,
    *,
    samples: int = 8,
    tokens: int = 600,
    new: int = 160,
    adapter: str | None = None,
    draw: Sampling = DRAW,
) -> Load:
    """Judgments of responses: prompts of `tokens` with a common beginning, `samples` of each.

    A judgment has at most `new` tokens, and at least a quarter of them.
    """
    rng = random.Random(0)
    common = draw_tokens(rng, vocab, min(COMMON, tokens // 2))
    requests = []
    for number in range(prompts):
        prompt = common + draw_tokens(rng, vocab, tokens - len(common))
        length = max(1, new // 4), new
        requests += [
            _make_request(f"{number}:{index}", prompt, length, rng, adapter, draw)
            for index in range(samples)
        ]
    return Load("judge", requests, len(common))


def meta_load(
    vocab: int,
    responses: int,
    *,
    judgments: int = 4,
    tokens: int = 600,
    adapter: str | None = None,
) -> Load:
    """Battles between the judgments of each response: all pairs in both orders, a short verdict.

    Of the `tokens` of a prompt, 400 are the two judgments; three quarters of the rest are common.
    """
    rest = tokens - 2 * JUDGMENT
    if rest < 2:
        raise ConfigError(
            f"a battle holds two judgments of {JUDGMENT} tokens; give --prompt-tokens above "
            f"{2 * JUDGMENT + 1}"
        )
    if judgments < 2:
        raise ConfigError("a battle needs two judgments of a response; give --samples 2 or more")
    rng = random.Random(0)
    common = draw_tokens(rng, vocab, rest * 3 // 4)
    requests = []
    for number in range(responses):
        asked = common + draw_tokens(rng, vocab, rest - len(common))
        written = [draw_tokens(rng, vocab, JUDGMENT) for _ in range(judgments)]
        for first, second in permutations(range(judgments), 2):
            prompt = asked + written[first] + written[second]
            requests.append(
                _make_request(f"{number}:{first}:{second}", prompt, VERDICT, rng, adapter, DRAW)
            )
    return Load("meta", requests, len(common))


def draw_tokens(rng: random.Random, vocab: int, count: int) -> TokenIds:
    """Random tokens of a vocabulary, none of which is a byte or a special one."""
    return tuple(rng.randrange(256, vocab - 8) for _ in range(count))


def _make_request(
    key: str,
    prompt: TokenIds,
    new: tuple[int, int],
    rng: random.Random,
    adapter: str | None,
    draw: Sampling,
) -> Request:
    sampling = draw.model_copy(update={"max_tokens": rng.randint(*new)})
    return Request(key, prompt, (rng.randrange(2**31),), sampling, (), adapter)


def spec_for(
    model: Path, load: Load, parallel: int, gpu_layers: int, threads: int | None = None
) -> LlamaSpec:
    """The engine for a load. On a GPU the KV cache holds half of the sequences at full length."""
    return LlamaSpec(
        model=model,
        parallel=parallel,
        context=load.cells * (max(4, parallel // 2) if gpu_layers else parallel + ROOTS),
        batch=max(512, parallel),
        gpu_layers=gpu_layers,
        roots=ROOTS,
        threads=threads or count_cores(),
        unified=bool(gpu_layers),
    )


@dataclass(frozen=True)
class Found:
    """Generated tokens a second, one value a repeat, by key of NAMES; the engine's counters.

    Raw llama.cpp has the fastest `layout`.
    """

    rates: dict[str, list[float]]
    stats: Stats
    quantization: str
    layout: str


def measure(plan: Plan, repeats: int, say: Say) -> Found:
    """Measure the three in turn, `repeats` times, with raw llama.cpp's fastest layout."""
    trace = baselines.record(plan)
    fastest = find_fastest(plan, trace.steps, say)
    rates: dict[str, list[float]] = {key: [] for key in NAMES}
    for number in range(1, repeats + 1):
        rates["naive"].append(baselines.naive_rate(plan))
        rate, stats = engine_rate(plan)
        rates["engine"].append(rate)
        rates["ceiling"].append(trace.generated / baselines.replay(fastest, trace.steps))
        shown = (f"{name} {rates[key][-1]:.1f}" for key, name in NAMES.items())
        say(f"{number} of {repeats}: {', '.join(shown)} tokens/s")
    return Found(rates, stats, trace.quantization, _describe(fastest))


def find_fastest(plan: Plan, steps: list[baselines.Step], say: Say) -> LlamaSpec:
    """The fastest layout of raw llama.cpp, or the engine's own if that wins.

    The search takes the first steps; then both are compared on all of them, with full caches.
    """

    def time_layout(spec: LlamaSpec, steps: list[baselines.Step]) -> float:
        seconds = baselines.replay(spec, steps)
        say(f"raw llama.cpp, {_describe(spec)}: {len(steps)} steps in {seconds:.2f} s")
        return seconds

    ends = accumulate(step.columns.shape[1] for step in steps)
    first = [step for step, end in zip(steps, ends, strict=True) if end <= SEARCH_ROWS]
    spec = plan.spec
    own = spec.model_copy(update={"flash": uses_flash(spec), "micro_batch": micro_batch(spec)})
    best = own.model_copy(update={"micro_batch": own.batch})
    for changes in list_layouts(plan):
        layouts = [best.model_copy(update=one) for one in changes]
        best = min(layouts, key=partial(time_layout, steps=first or steps[:1]))
    return own if best == own else min(best, own, key=partial(time_layout, steps=steps))


def list_layouts(plan: Plan) -> list[list[dict[str, int]]]:
    """What is searched, one after the other: KV cache and attention, threads, micro-batch."""
    spec, threads = plan.spec, plan.spec.threads or count_cores()
    # Of a cache that is divided, each part must hold the longest request.
    parts = plan.load.cells * (spec.parallel + spec.roots) if spec.unified else spec.context
    caches = ({"unified": True, "context": spec.context}, {"unified": False, "context": parts})
    return [
        [{**cache, "flash": flash} for cache in caches for flash in (True, False)],
        [{"threads": count} for count in sorted({threads, max(1, threads // 2)})],
        [{"micro_batch": n} for n in sorted({spec.batch, max(spec.parallel, spec.batch // 2)})],
    ]


def _describe(spec: LlamaSpec) -> str:
    cache = "unified KV cache" if spec.unified else "a KV cache each"
    attention = "flash attention" if spec.flash else "no flash attention"
    return f"{cache}, {attention}, {spec.threads} threads, micro-batch {spec.micro_batch}"


def document(plan: Plan, found: Found) -> dict[str, Any]:
    """The result as JSON; rates are medians."""
    rates = {key: median(values) for key, values in found.rates.items()}
    stats = found.stats
    slots = max(1, stats.busy_steps * plan.spec.parallel)
    return {
        **{f"{key}_tokens_per_s": round(rate, 1) for key, rate in rates.items()},
        "engine_over_naive": round(rates["engine"] / rates["naive"], 3),
        "engine_over_ceiling": round(rates["engine"] / rates["ceiling"], 3),
        "prefill_tokens_requested": stats.prompt_requested,
        "prefill_tokens_computed": stats.prompt_computed,
        "prefill_tokens_unique": plan.load.unique_tokens,
        "slot_occupancy": round(stats.busy_slot_steps / slots, 4),
        "sampling_share": round(stats.seconds_sample / stats.seconds_total, 4),
        "model": plan.spec.model.name,
        "quantisation": found.quantization,
        "threads": plan.spec.threads,
        "ceiling_setting": found.layout,
    }


def raw_rate(plan: Plan) -> float:
    """Tokens a second of the engine's calls to llama.cpp, repeated with nothing in between."""
    trace = baselines.record(plan)
    return trace.generated / baselines.replay(plan.spec, trace.steps)


def prompt_rate(plan: Plan) -> float:
    """Prompt tokens computed a second, after a quarter of them: by then kernels are chosen."""
    _, stats = engine_rate(plan, warm=len(plan.load.requests) // 4)
    return stats.prompt_computed / stats.seconds_total


def engine_rate(plan: Plan, warm: int = 0) -> tuple[float, Stats]:
    """Tokens a second of the engine in its child process, as a run has it, and its counters.

    The first `warm` requests are served before.
    """
    requests = plan.load.requests
    with closing(ProcessEngine(plan.spec, fixed=True)) as engine:
        # As a replay begins: every page is touched, the adapter is loaded.
        list(engine.complete([replace(requests[0], tokens=(0,), sampling=DRAW), *requests[:warm]]))
        before, started = engine.stats, perf_counter()
        generated = sum(len(one.tokens) for one in engine.complete(requests[warm:]))
        return generated / (perf_counter() - started), engine.stats.since(before)
