"""Speeds of a plan: against llama.cpp's published figures, and slots against our own scheduler."""

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean

import pytest
from played_cache import play

from selfreward_lite import config
from selfreward_lite.config.settings import Sampling, Settings
from selfreward_lite.engine.api import Request
from selfreward_lite.models.hf_folder import SHAPES
from selfreward_lite.run import speed, stages
from selfreward_lite.run.speed import GPU_SPEEDS, Question

LLAMA, OVERNIGHT = SHAPES["llama-3-8b"], config.load("overnight")
RTX = GPU_SPEEDS["RTX 3090"]
ROW = Sampling(temperature=0.0, top_p=1.0, max_tokens=1, top_k=1)


def a_step(rows: int, cells: int, settings: Settings = OVERNIGHT) -> float:
    """Seconds of a step of so many rows, which see so many cells; no drawing, no adapter."""
    engine = settings.engine.model_copy(update={"parallel": rows, "context": 10**6, "roots": 1})
    asked = Question(cells / speed.HOLES, 0, 1, 1, 0, 1, 0, ROW)
    seconds, slots = speed.step_seconds(
        settings.model_copy(update={"engine": engine}), LLAMA, RTX, asked
    )
    assert slots == rows
    ours = rows * (speed.draw_seconds(1, LLAMA.vocab) / RTX.threads + LLAMA.vocab * 4 / speed.PCIE)
    return seconds - ours - 7 * 32 * speed.KERNELS * speed.KERNEL_SECONDS


@pytest.mark.parametrize(("rows", "rate"), [(16, 825.82), (32, 1437.37), (64, 2242.88)])
def test_steps_are_as_fast_as_llama_cpp_was_measured(rows, rate):
    """ggml-org/llama.cpp#7676: Llama 8B, Q8_0, RTX 3090."""
    assert rows / a_step(rows, 1) == pytest.approx(rate, rel=0.05)


def test_attention_is_as_fast_as_llama_cpp_was_measured():
    """ggml-org/llama.cpp#17505: Q4_0 (18 bytes for 32 weights) behind 32,768 tokens, 64 rows."""
    less = (34 - 18) / 32 * 7.5e9 / (speed.READ_SHARE * RTX.bandwidth)
    mask = 64 * 33_000 * speed.MASK_SECONDS
    assert 64 / (a_step(64, 33_000) - less - mask) == pytest.approx(1495, rel=0.15)


def test_a_step_is_the_sum_of_its_parts():
    asked = replace(speed.list_questions(OVERNIGHT)["response"], own=0.0, grown=250.0, common=0.0)
    seconds, slots = speed.step_seconds(OVERNIGHT, LLAMA, RTX, asked)
    cells = 1.1 * 64 * 250
    assert slots == 64
    assert seconds == pytest.approx(
        (6_979_321_856 + 128256 * 4096) * 34 / 32 / (0.55 * 936e9)
        + 64 * 2 * (6_979_321_856 + 128256 * 4096) / (0.25 * 284e12)
        + 64 * cells * 4 * 32 * 32 * 128 / (0.6 * 71e12)
        + 64 * cells * 2.5e-9
        + 64 * 128256 * 1.7e-9 / 8
        + 64 * 128256 * 4 / 12e9
        + 7 * 32 * 4 * 4e-6
    )


def test_drawing_from_all_tokens_takes_longer_than_computing_them():
    every = {"draw": OVERNIGHT.responses.draw.model_copy(update={"top_k": 0})}
    settings = OVERNIGHT.with_values("responses", **every)
    spent = [
        speed.step_seconds(one, LLAMA, RTX, speed.list_questions(one)["response"])[0]
        for one in (OVERNIGHT, settings)
    ]
    assert spent[1] - spent[0] == pytest.approx(64 * 128256 * (93 - 1.7) * 1e-9 / 8)
    assert spent[1] > 2 * spent[0]
    assert all(draw.top_k for draw in stages.list_limits(config.load("paper")).values()), (
        "no preset for a GPU draws from all"
    )


def test_a_cache_each_is_read_alone():
    engine = OVERNIGHT.engine.model_copy(update={"unified": False})
    asked = Question(275, 500, 5, 150, 80, 301, 100, ROW)
    assert speed.occupancy(engine, asked) == (64, 275 + 500 + 80)


@pytest.mark.parametrize("preset", ["overnight", "t4", "paper"])
def test_assumed_lengths_are_those_of_a_log_normal(preset):
    settings, rng = config.load(preset), random.Random(0)
    for text, (mean, spread) in stages.TEXTS.items():
        limit = stages.list_limits(settings)[text].max_tokens
        middle = math.log(mean) - spread**2 / 2
        drawn = [min(limit, rng.lognormvariate(middle, spread)) for _ in range(40_000)]
        for power in (1, 2):
            expected = fmean(length**power for length in drawn)
            found = stages.assume_moment(settings, text, power)
            assert found == pytest.approx(expected, rel=0.03), (text, power)


def test_an_answer_is_no_longer_because_its_limit_is():
    long, short = (
        stages.assume_lengths(config.load(preset)).response for preset in ("paper", "t4")
    )
    assert 400 < long < 420
    assert 320 < short < 350, "a quarter of the answers end at 512 tokens"


# -- slots and cells, as the scheduler and llama.cpp's cache have them ----------


def tokens(rng: random.Random, count: float) -> list[int]:
    return [rng.randrange(10, 900) for _ in range(round(count))]


def draw_length(rng: random.Random, text: stages.Text, limit: int) -> int:
    """The length of a text; one more than the limit for those that are cut."""
    mean, spread = stages.TEXTS[text]
    drawn = round(rng.lognormvariate(math.log(mean) - spread**2 / 2, spread))
    return max(1, min(limit + 1, drawn))


def make_requests(settings: Settings, text: stages.Text, count: int) -> Iterator[Request]:
    """Requests of one kind; their seeds are lengths."""
    rng, asked = random.Random(0), speed.list_questions(settings)[text]
    common, draw = tokens(rng, asked.common), asked.draw
    answered = stages.assume_lengths(settings).answered
    judgments = settings.judge.count

    def request(key: str, prompt: list[int], samples: int) -> Request:
        seeds = tuple(draw_length(rng, text, draw.max_tokens) for _ in range(samples))
        return Request(key, tuple(prompt), seeds, draw, (7,))

    for number in range(count):
        if text != "battle":
            yield request(f"{number}", common + tokens(rng, asked.own), int(asked.samples))
            continue
        question = common + tokens(rng, answered)
        length = stages.assume_lengths(settings).judgment
        written = [tokens(rng, length) for _ in range(judgments)]
        for first in range(judgments):
            for second in range(judgments):
                if first != second:
                    prompt = question + written[first] + written[second]
                    yield request(
                        f"{number}-{first}-{second}", prompt + tokens(rng, speed.BATTLE_TAIL), 1
                    )


@pytest.mark.parametrize(
    ("text", "count", "context"),
    [
        ("candidate", 150, 20480),
        ("response", 60, 20480),
        ("response", 60, 12288),
        ("judgment", 60, 20480),
        ("battle", 25, 20480),
        ("battle", 25, 9216),
    ],
)
def test_slots_and_cells_are_those_of_the_scheduler(text, count, context):
    settings = config.load("t4", {"engine.context": str(context)})
    engine = settings.engine
    samples, cells, _ = play(
        make_requests(settings, text, count),
        parallel=engine.parallel,
        roots=engine.roots,
        cells=engine.context,
        rows=engine.batch,
    )
    expected = speed.occupancy(engine, speed.list_questions(settings)[text])
    print(f"{text}, {context}: {samples:.1f} slots, {cells:,.0f} cells; planned {expected}")
    assert expected[0] == pytest.approx(samples, rel=0.1)
    assert expected[1] == pytest.approx(cells, rel=0.2)
