"""Tokens a second and hours of presets, worked out a second time from what a GPU can do at most.

Nothing of `run/speed.py` or `run/stages.py` is used but what they say. The table that this prints
is the one in docs/your-gpu.md.
"""

import math
import random
from dataclasses import dataclass
from functools import cache
from statistics import fmean

import pytest
from repository import generated_block

from selfreward_lite.bench.plan_table import list_presets
from selfreward_lite.config.settings import Sampling, Settings
from selfreward_lite.run import speed, stages

# Of a GPU's nominal bandwidth, and a step's kernels, launched one after another: both follow from
# single texts with 16-bit and 4-bit weights (RTX 3090: 47.4 and 115.4 tokens/s; RTX 4090: 54.8 and
# 130.6; github.com/XiongjieDai/GPU-Benchmarks-on-LLM-Inference, May 2024): 89 % and 97 %, 3 ms.
READ, LAUNCHES = 0.9, 3e-3
ADAPTER_LAUNCH = 4 * 3e-6  # of a linear layer: four small kernels
# Of the operations in 16 bits, guesses for attention and for a training's products.
ATTEND, TRAIN = 0.5, 0.4
# On the CPU, measured (docs/log/card.md): a cell of the mask; drawing one token of 128,256.
MASK, DRAW = 2.5e-9, {128: 0.21e-3, 1024: 0.92e-3}
# Texts: tokens in the mean and the spread of their logarithm, before the limit; a question's own
# tokens, and those that all questions of its kind share.
TEXTS = {"response": (420, 0.7), "judgment": (150, 0.4), "battle": (250, 0.4)}
ASKED = 60
JUDGE = 400


@dataclass(frozen=True)
class Gpu:
    """A data sheet: bytes a second; operations in 16 bits (summed in 32) and in 8; over PCIe.

    `share` of those in 8 bits is reached with 512 rows at once: 10,359 tokens/s on an RTX 4090
    (ggml-org/llama.cpp#7676). Others in May 2024, before that: 5,981 on an A100, 8,125 on an H100
    of 1,513 · 10¹² operations (the source of READ).
    """

    bandwidth: float
    half: float
    eighth: float
    bus: float
    threads: int = 8
    share: float = 0.27


GPUS = {
    "T4": Gpu(320e9, 25e12, 50e12, 12e9, threads=2),  # at the clock that its 70 W leave
    "RTX 3060": Gpu(360e9, 25.6e12, 102e12, 24e9),
    "RTX 3090": Gpu(936e9, 71e12, 284e12, 24e9),
    "RTX 4090": Gpu(1008e9, 165e12, 660e12, 24e9),
    "A100": Gpu(1555e9, 312e12, 624e12, 24e9, share=0.14),
    "H100": Gpu(3350e9, 989e12, 1979e12, 48e9, share=0.08),
    "H200": Gpu(4800e9, 989e12, 1979e12, 48e9, share=0.08),
}
SHOWN = [
    *(("overnight", gpu) for gpu in ("RTX 3090", "RTX 4090", "A100", "H100", "H200")),
    ("t4", "T4"),
    *(("small", gpu) for gpu in ("T4", "RTX 3060", "RTX 3090", "RTX 4090")),
    *(("paper", gpu) for gpu in ("RTX 3090", "RTX 4090")),
]


@dataclass(frozen=True)
class Model:
    """Published sizes: layers, width, inner width, heads of 128, heads of keys, words."""

    layers: int
    width: int
    inner: int
    heads: int
    keys: int
    words: int = 128256

    @property
    def packed(self) -> int:
        """Weights of the linear layers."""
        attention = 2 * self.width * 128 * (self.heads + self.keys)
        return self.layers * (attention + 3 * self.width * self.inner)

    @property
    def multiplied(self) -> int:
        """Those, and the table of the output."""
        return self.packed + self.words * self.width


LLAMA_8B = Model(32, 4096, 14336, 32, 8)
MODELS = {
    "overnight": LLAMA_8B,
    "t4": LLAMA_8B,
    "paper": LLAMA_8B,
    "small": Model(28, 3072, 8192, 24, 8),
}


@cache
def draw_lengths(text: str, limit: int) -> list[float]:
    """Many lengths of a kind of text, cut at the limit."""
    (mean, spread), rng = TEXTS[text], random.Random(text)
    middle = math.log(mean) - spread**2 / 2
    return [min(limit, rng.lognormvariate(middle, spread)) for _ in range(20_000)]


@cache
def find_mean_length(text: str, limit: int) -> float:
    """Their mean."""
    return fmean(draw_lengths(text, limit))


@dataclass(frozen=True)
class Asked:
    """A kind of question: tokens all share, of its own, samples of each, how they are drawn."""

    text: str
    shared: float
    own: float
    samples: int
    draw: Sampling

    @property
    def length(self) -> float:
        return find_mean_length(self.text, self.draw.max_tokens)


def list_asked(settings: Settings) -> dict[str, Asked]:
    """Answers, judgments and battles of a preset."""
    response = Asked("response", 0, ASKED, settings.responses.count, settings.responses.draw)
    answered = ASKED + response.length
    judge = Asked(
        "judgment", 275, JUDGE - 275 + answered, settings.judge.count, settings.judge.draw
    )
    # The second judgment and what follows it; question, answer and first judgment are shared.
    others = max(1, settings.judge.count - 1)
    own = judge.length * (1 + 1 / others) + 90 + answered / (others * (others + 1))
    battle = Asked("battle", 275, own, 1, settings.meta_judge.draw)
    return {one.text: one for one in (response, judge, battle)}


def occupy(settings: Settings, asked: Asked) -> tuple[float, float]:
    """The rows of a step, and the cells in use, over all of which each row attends."""
    engine, prompt = settings.engine, asked.own / asked.samples
    needed = 1 + asked.draw.max_tokens + prompt
    rows = min(engine.parallel, (engine.context - asked.shared) // needed)
    lengths = draw_lengths(asked.text, asked.draw.max_tokens)
    # Who looks at a random moment meets long texts more often, each half done.
    under_way = fmean(length**2 for length in lengths) / fmean(lengths) / 2
    kept = min(engine.roots * asked.own, max(0, engine.context - rows * needed))
    return rows, min(engine.context, asked.shared + rows * (prompt + under_way) + kept)


def attend(model: Model, gpu: Gpu, cells: float) -> float:
    """Seconds of a row: a product for the score and one for the value, in all heads and layers."""
    return cells * 4 * model.layers * model.heads * 128 / (ATTEND * gpu.half)


def tokens_per_second(settings: Settings, model: Model, gpu: Gpu, asked: Asked) -> float:
    """Weights are read once a step; each row multiplies them and attends over all cells in use."""
    rows, cells = occupy(settings, asked)
    cache = cells * model.layers * model.keys * 128 * 2 * 2
    seconds = (
        model.multiplied * 34 / 32 / (READ * gpu.bandwidth)
        + rows * 2 * model.multiplied / (gpu.share * gpu.eighth)
        + max(rows * attend(model, gpu, cells), cache / (READ * gpu.bandwidth))
        + rows * cells * MASK
        + rows * DRAW[asked.draw.top_k] / gpu.threads
        + rows * model.words * 4 / gpu.bus
        + LAUNCHES
        + 7 * model.layers * ADAPTER_LAUNCH
    )
    return rows / seconds


def trained_per_second(settings: Settings, model: Model, gpu: Gpu, method: str) -> float:
    """Tokens: three passes of 2 operations a weight, four with a reference; weights unpacked."""
    training = getattr(settings, method)
    passes = 4 if method == "dpo" else 3
    rows = training.micro_batch * (2 if method == "dpo" else 1)
    tokens = rows * mean_judged(settings)
    unpacked = passes * model.packed * (0.5 + 2 + 2) / (READ * gpu.bandwidth)
    products = tokens * passes * 2 * model.multiplied / (TRAIN * gpu.half)
    return tokens / (products + unpacked)


def mean_judged(settings: Settings) -> float:
    """Tokens of a judgment with its question."""
    asked = list_asked(settings)
    return JUDGE + ASKED + asked["response"].length + asked["judgment"].length


def hours(settings: Settings, model: Model, gpu: Gpu) -> tuple[float, float]:
    """Of the seed stage, and of the first iteration: texts, the prompts before them, trainings."""
    asked = list_asked(settings)

    def spend(text: str, count: float) -> float:
        one = asked[text]
        prompt = 2 * model.multiplied / (gpu.share * gpu.eighth)
        prompt += attend(model, gpu, occupy(settings, one)[1])
        new = one.length / tokens_per_second(settings, model, gpu, one)
        return count * (new + prompt * one.own / one.samples)

    seed, measured, judges = settings.seed_stage, settings.evaluation, settings.judge.count
    judged = 2.85 * seed.eval_prompts * measured.judgments + 50 * measured.canary_judgments
    judged += measured.outside_prompts * measured.outside_judgments
    measure = spend("response", measured.prompts) + spend("judgment", judged)
    weights = model.multiplied + model.words * model.width * (model is LLAMA_8B)
    checked = 2 * (4 * ASKED + mean_judged(settings)) * 2 * weights / 60e9  # on the CPU, a guess
    base = 40e-9 * weights  # measured: docs/log/export.md
    sft = settings.sft.epochs * seed.train_examples * mean_judged(settings)
    first = (
        base
        + 2 * measure
        + spend("judgment", 2 * seed.train_examples * seed.attempts)
        + sft / trained_per_second(settings, model, gpu, "sft")
        + checked
        + 180
    )
    prompts = settings.prompts.count
    responses = prompts * settings.responses.count
    answered = ASKED + asked["response"].length
    dpo = settings.dpo.epochs * prompts * 2 * (0.6 * answered + 0.8 * mean_judged(settings))
    second = (
        spend("response", responses)
        + spend("judgment", responses * judges)
        + spend("battle", prompts * judges * (judges - 1) + 2 * measured.prompts)
        + dpo / trained_per_second(settings, model, gpu, "dpo")
        + checked
        + measure
        + 180
    )
    return first / 3600, second / 3600


@cache
def build_rows() -> list[tuple[str, str, list[tuple[float, float]]]]:
    """Preset, GPU, and pairs of by hand and by `plan`: answers, DPO, hours of both parts."""
    rows = []
    for preset, name in SHOWN:
        settings, shape = list_presets()[preset]
        model, gpu = MODELS[preset], GPUS[name]
        speeds = speed.GPU_SPEEDS[name]
        costs = speed.estimate_costs(settings, shape, speeds)
        question = speed.list_questions(settings)["response"]
        seconds, slots = speed.step_seconds(settings, shape, speeds, question)
        planned = [
            sum(stages.seconds_by_stage(settings, number, costs).values()) / 3600
            for number in (0, 1)
        ]
        answers = tokens_per_second(settings, model, gpu, list_asked(settings)["response"])
        trained = trained_per_second(settings, model, gpu, "dpo")
        pairs = [(answers, slots / seconds), (trained, 1 / costs["dpo"])]
        pairs += list(zip(hours(settings, model, gpu), planned, strict=True))
        rows.append((preset, name, pairs))
    return rows


def build_table() -> str:
    """The table of docs/your-gpu.md."""
    lines = [
        "| preset | GPU | answers, tokens/s | DPO, tokens/s | seed stage, h | iteration, h |",
        "|---|---|---|---|---|---|",
    ]
    for preset, name, (answers, trained, first, second) in build_rows():
        cells = [f"{hand:,.0f} / {plan:,.0f}" for hand, plan in (answers, trained)]
        cells += [f"{hand:.1f} / {plan:.1f}" for hand, plan in (first, second)]
        lines.append(f"| `{preset}` | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def test_the_published_table_is_what_this_computes():
    """Printed with `-s`: by hand / by `plan`."""
    print(f"\n{build_table()}")
    assert generated_block("your-gpu.md", "by-hand-table") == build_table()


@pytest.mark.parametrize("row", build_rows(), ids=lambda row: f"{row[0]} {row[1]}")
def test_the_plan_is_right_to_a_third_and_careful_for_consumers_gpus(row):
    _, gpu, (answers, trained, *parts) = row
    assert 0.85 <= answers[0] / answers[1] <= 1.3
    assert 1 <= trained[0] / trained[1] <= 1.35
    for hand, planned in parts:
        assert 0.8 <= hand / planned <= (1 if GPUS[gpu].share == Gpu.share else 1.2)


@pytest.mark.parametrize("preset", MODELS)
def test_as_many_samples_run_at_once_as_by_hand(preset):
    settings, _ = list_presets()[preset]
    for text, asked in list_asked(settings).items():
        rows, cells = occupy(settings, asked)
        planned = speed.occupancy(settings.engine, speed.list_questions(settings)[text])
        assert planned == (pytest.approx(rows, rel=0.05), pytest.approx(cells, rel=0.2)), text
