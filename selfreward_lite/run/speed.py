"""How fast a GPU asks and trains, estimated from its data sheet: the costs of a plan.

A step of the engine draws one token for every sample under way. It reads all weights, multiplies
them with every row, attends over the KV cache, fills the mask of the attention and draws. What
differs by kind of question is how many samples run at once, and how many cells they read.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from selfreward_lite.config.settings import EngineSettings, Sampling, Settings
from selfreward_lite.models.hf_folder import ModelShape, list_linear
from selfreward_lite.models.memory import (
    count_multiplied,
    count_weights,
    estimate_base,
    estimate_offloaded,
)
from selfreward_lite.run.stages import (
    JUDGE_TOKENS,
    PROMPT_TOKENS,
    Costs,
    Text,
    assume_lengths,
    assume_moment,
    list_limits,
)

# Tokens of a judge's question before the request, which all share, and behind a battle's second
# judgment (Llama-3's tokenizer, the template set `llama3`); of the prompt writer's question, and of
# its instruction.
JUDGE_COMMON, BATTLE_TAIL = 275, 90
WRITER_TOKENS, WRITER_COMMON = 400, 60


@dataclass(frozen=True)
class Speeds:
    """A GPU: bytes of memory, bytes a second, operations a second in 16 and in 8 bits.

    `threads` are the CPU's beside it.
    """

    memory: float
    bandwidth: float
    operations: float
    operations8: float
    threads: int = 8


# By what is in the GPU's name: the vendor's figures (dense; 16 bits in, 32 bits summed). Those of a
# T4 are 65 and 130 · 10¹²; at its 70 W it lowers its clock under such loads (arXiv 1903.07486), and
# what is left is a guess. It comes with two threads (Colab).
GPU_SPEEDS = {
    "T4": Speeds(15e9, 320e9, 25e12, 50e12, threads=2),
    "RTX 3060": Speeds(12e9, 360e9, 25.6e12, 102e12),
    "RTX 3090": Speeds(24e9, 936e9, 71e12, 284e12),
    "RTX 4090": Speeds(24e9, 1008e9, 165e12, 660e12),
    "A100": Speeds(40e9, 1555e9, 312e12, 624e12),
    "H100": Speeds(80e9, 3350e9, 989e12, 1979e12),
    "H200": Speeds(141e9, 4800e9, 989e12, 1979e12),
}

# Shares of those figures that llama.cpp reaches with a Llama of 8B, by its developers' measurements
# on an RTX 3090. Q8_0 (ggml-org/llama.cpp#7676): 826, 1,437 and 2,243 tokens/s with 16, 32 and 64
# rows at once, so 16 ms of reading and 0.2 ms a row. With 33,000 cells (#17505, Q4_0): 1,495
# tokens/s with 64 rows, 1,698 with 256.
READ_SHARE, INT8_SHARE, FLOAT_SHARE, ATTENTION_SHARE = 0.55, 0.25, 0.5, 0.6
TRAIN_SHARE = 0.3  # of the operations in 16 bits: in the range of public measurements of QLoRA

# Cells up to the last one in use, over those in use: samples that end leave holes (the scheduler
# with llama.cpp's placement, tests/run/test_speed.py).
HOLES = 1.1
# On one thread of a server's CPU: the mask, a row and cell; drawing, a logit, with up to 128
# candidates, with more, and with all (docs/log/card.md). The engine draws in up to eight threads.
MASK_SECONDS = 2.5e-9
FEW_CANDIDATES, DRAW_FEW, DRAW_SOME, DRAW_ALL = 128, 1.7e-9, 7.2e-9, 9.3e-8
DRAW_THREADS = 8
# Guesses: bytes a second that logits take to the CPU; an adapter's four small kernels for each
# linear layer, each launched for itself.
PCIE, KERNELS, KERNEL_SECONDS = 12e9, 4, 4e-6

# Floating-point operations a weight and token: 2 forward, 2 backward (no gradients of frozen
# weights), 2 forward again (checkpointing); DPO's reference runs forward too.
SFT_OPERATIONS, DPO_OPERATIONS = 6, 8
# A training begins with loading the base, and with compiling kernels (with unsloth, 1 to 3 minutes
# in every process). Guesses.
LOAD_SECONDS, COMPILE_SECONDS = 60.0, 120.0

# A weight of the base, on two CPU cores: reading, unpacking, writing (30 ns measured once;
# docs/log/export.md).
BASE_SECONDS = 40e-9
# An adapter's export is checked on a few prompts and judgments, with and without it, by llama.cpp
# on two CPU cores.
CHECKED_PROMPTS, CHECKED_JUDGMENTS = 4, 1
CPU_OPERATIONS = 60e9  # a second: a guess


@dataclass(frozen=True)
class Rates:
    """Seconds of a generated token (among all sequences), of a token read, of a token in DPO."""

    token: float
    read: float
    dpo: float


@dataclass(frozen=True)
class Question:
    """Questions of one kind, in tokens.

    `common` begins every prompt, `own` is the rest of one; `samples` are drawn of each. A sample
    has `new` tokens in the mean, may need `cells`, and has `grown` to so many at any moment. `read`
    are computed for each sample.
    """

    common: float
    own: float
    samples: float
    new: float
    grown: float
    cells: int
    read: float
    draw: Sampling


def list_questions(settings: Settings) -> dict[Text, Question]:
    """What is asked, by kind of text, with assumed lengths."""
    lengths, responses = assume_lengths(settings), settings.responses.count
    drawn = max(1, settings.judge.count)  # without a judge in the loop, it is still measured
    others, battles = max(1, drawn - 1), max(1, drawn * (drawn - 1))
    judged = JUDGE_TOKENS - JUDGE_COMMON + lengths.answered
    # All battles of a response share its text, those with the same first judgment that one too.
    battle = lengths.judgment + BATTLE_TAIL + lengths.judgment / others + lengths.answered / battles
    prompts: dict[Text, tuple[float, float, float]] = {
        "candidate": (WRITER_COMMON, WRITER_TOKENS - WRITER_COMMON, 1),
        "response": (0, PROMPT_TOKENS, responses),
        "judgment": (JUDGE_COMMON, judged, drawn),
        "battle": (JUDGE_COMMON, battle, 1),
    }
    return {
        text: Question(
            common=common,
            own=own,
            samples=samples,
            new=assume_moment(settings, text),
            # Longer samples are under way for longer: E[n²] / 2E[n].
            grown=assume_moment(settings, text, 2) / (2 * assume_moment(settings, text)),
            cells=1 + draw.max_tokens,
            read=own / samples,
            draw=draw,
        )
        for (text, (common, own, samples)), draw in zip(
            prompts.items(), list_limits(settings).values(), strict=True
        )
    }


def occupancy(engine: EngineSettings, asked: Question) -> tuple[float, float]:
    """How many samples run at once, and the cells that each of their rows attends over.

    A sample starts only when all the cells that it may need are free. In a unified cache, every row
    attends over all cells in use, other sequences' and finished prompts' too.
    """
    if not engine.unified:
        return engine.parallel, asked.common + asked.own + asked.grown
    # Prompts are computed before a slot is free for them; in a small cache, few fit.
    ahead = min(max(4, engine.parallel // 4) / asked.samples * asked.own, engine.context / 10)
    needed = asked.own / asked.samples + asked.cells
    room = engine.context - asked.common
    slots = max(1.0, min(engine.parallel, (room - ahead) / needed))
    # Finished prompts stay where there is room.
    kept = min(engine.roots * asked.own, max(0.0, room - slots * needed))
    used = asked.common + slots * (asked.own / asked.samples + asked.grown) + kept
    return slots, min(engine.context, HOLES * used)


def draw_seconds(top_k: int, vocab: int) -> float:
    """Seconds that one thread takes to draw a token."""
    if not top_k:
        return DRAW_ALL * vocab
    return (DRAW_FEW if top_k <= FEW_CANDIDATES else DRAW_SOME) * vocab


def step_seconds(
    settings: Settings, shape: ModelShape, speeds: Speeds, asked: Question
) -> tuple[float, float]:
    """Seconds of a step, and the samples in it, on a GPU."""
    slots, cells = occupancy(settings.engine, asked)
    weights = estimate_offloaded(estimate_base(settings.model, shape), shape)
    multiplied = 2 * count_multiplied(shape) / _multiplications(settings, speeds)
    kept = shape.layers * shape.kv_heads * shape.head_dim * 4  # bytes of a cell, in float16
    caches = 1 if settings.engine.unified else slots
    threads = min(DRAW_THREADS, speeds.threads)
    seconds = (
        weights / (READ_SHARE * speeds.bandwidth)
        + slots * multiplied
        + max(
            slots * cells * _attention_seconds(shape, speeds),
            caches * cells * kept / (READ_SHARE * speeds.bandwidth),
        )
        + slots * cells * MASK_SECONDS
        + slots * draw_seconds(asked.draw.top_k, shape.vocab) / threads
        + slots * shape.vocab * 4 / PCIE
        + KERNELS * len(list_linear(shape)) * KERNEL_SECONDS
    )
    return seconds, slots


def read_seconds(settings: Settings, shape: ModelShape, speeds: Speeds, asked: Question) -> float:
    """Seconds of a prompt token on a GPU, many at once."""
    _, cells = occupancy(settings.engine, asked)
    multiplied = 2 * count_multiplied(shape) / _multiplications(settings, speeds)
    return multiplied + cells * _attention_seconds(shape, speeds)


def _multiplications(settings: Settings, speeds: Speeds) -> float:
    """Operations a second on weights: llama.cpp multiplies quantized ones in 8 bits."""
    if settings.model.gguf == "q8_0" or settings.model.gguf_file:
        return INT8_SHARE * speeds.operations8
    return FLOAT_SHARE * speeds.operations


def _attention_seconds(shape: ModelShape, speeds: Speeds) -> float:
    """Seconds for a row and a cell, in all layers: a product for the score, one for the value."""
    operations = 4 * shape.layers * shape.heads * shape.head_dim
    return operations / (ATTENTION_SHARE * speeds.operations)


def estimate_costs(settings: Settings, shape: ModelShape, speeds: Speeds) -> Costs:
    """Costs on a GPU, from its data sheet."""
    asked = list_questions(settings)

    def rates(text: Text) -> tuple[float, float]:
        seconds, slots = step_seconds(settings, shape, speeds, asked[text])
        return seconds / slots, read_seconds(settings, shape, speeds, asked[text])

    dpo = DPO_OPERATIONS * count_multiplied(shape) / (TRAIN_SHARE * speeds.operations)
    return _build_costs(settings, shape, rates, dpo)


def costs_from_rates(settings: Settings, shape: ModelShape, rates: Rates) -> Costs:
    """Costs from seconds a token that were measured, the same for all kinds of texts."""
    return _build_costs(settings, shape, lambda _: (rates.token, rates.read), rates.dpo)


def _build_costs(
    settings: Settings,
    shape: ModelShape,
    rates: Callable[[Text], tuple[float, float]],
    dpo: float,
) -> Costs:
    """Costs from the seconds of a generated and of a read token, by kind of text."""
    lengths, size = assume_lengths(settings), count_weights(shape)
    # Several processes divide a step's rows; that they are so much faster is assumed.
    processes = settings.training.processes
    compiles = settings.backend != "transformers" and processes == 1  # as unsloth does
    checked = 2 * (CHECKED_PROMPTS * PROMPT_TOKENS + CHECKED_JUDGMENTS * lengths.judged)
    costs: Costs = {
        "sft": dpo * SFT_OPERATIONS / DPO_OPERATIONS / processes,
        "dpo": dpo / processes,
        "start": LOAD_SECONDS + (COMPILE_SECONDS if compiles else 0),
        "base": BASE_SECONDS * size,
        "export": checked * 2 * size / CPU_OPERATIONS,
    }
    for text, asked in list_questions(settings).items():
        token, read = rates(text)
        costs[text] = asked.new * token + asked.read * read
    return costs


def gpu_key(name: str) -> str | None:
    """The row of `GPU_SPEEDS` for a GPU's name; None for laptop GPUs, which are slower.

    >>> gpu_key("NVIDIA GeForce RTX 3090 Ti"), gpu_key("NVIDIA RTX A1000")
    ('RTX 3090', None)
    >>> gpu_key("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    True
    """
    if "Laptop" in name or "Max-Q" in name:
        return None
    return next((key for key in GPU_SPEEDS if re.search(rf"\b{key}\b", name)), None)
