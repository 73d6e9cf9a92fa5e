"""GPU memory of every preset, worked out a second time from the shapes alone.

Nothing of `models/memory.py` is used but what it says. Shapes are those that the models' makers
publish; every tensor that a stage holds is counted by name.
"""

import math
from dataclasses import dataclass

import pytest

from selfreward_lite import config
from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub
from selfreward_lite.models import memory
from selfreward_lite.models.hf_folder import BASES, SHAPES

HALF, SINGLE = 2, 4  # bytes of a number in 16 and in 32 bits
RANK = 16


@dataclass(frozen=True)
class Transformer:
    """Published sizes of a model."""

    layers: int
    width: int
    inner: int
    queries: int  # heads · their size
    keys: int
    words: int
    shares_output: bool

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(in, out) of the seven linear layers of a block."""
        attention = [
            (self.width, self.queries),
            (self.width, self.keys),
            (self.width, self.keys),
            (self.queries, self.width),
        ]
        return attention + [(self.width, self.inner)] * 2 + [(self.inner, self.width)]

    @property
    def packed(self) -> int:
        """Weights in the blocks."""
        return self.layers * sum(rows * columns for rows, columns in self.matrices)

    @property
    def lora(self) -> int:
        """Weights of an adapter."""
        return self.layers * RANK * sum(rows + columns for rows, columns in self.matrices)

    @property
    def table(self) -> int:
        """Weights of an embedding."""
        return self.words * self.width


LLAMA_8B = Transformer(32, 4096, 14336, 32 * 128, 8 * 128, 128256, False)
MODELS = {
    "overnight": LLAMA_8B,
    "t4": LLAMA_8B,
    "paper": LLAMA_8B,
    "small": Transformer(28, 3072, 8192, 24 * 128, 8 * 128, 128256, True),  # Llama-3.2-3B
    "qwen3": Transformer(36, 4096, 12288, 32 * 128, 8 * 128, 151936, False),
    "qwen3-small": Transformer(36, 2560, 9728, 32 * 128, 8 * 128, 151936, True),  # Qwen3-4B
}


def bytes_of_asking(settings: Settings, model: Transformer) -> float:
    """llama.cpp: Q8_0 blocks of 32 weights and a scale; the table of tokens stays with the CPU."""
    engine = settings.engine
    output = model.table  # its own matrix, or a copy of the table
    weights = (model.packed + output) * (32 + 2) / 32
    cache = engine.context * model.layers * (model.keys + model.keys) * HALF
    # Widest moment of a block: gate and up, beside the block's input, its norm, their 8-bit copies.
    block = engine.batch * SINGLE * (2 * model.inner + 3 * model.width + model.inner / 4)
    attention = engine.batch * HALF * engine.context
    logits = (engine.parallel + engine.roots) * model.words * SINGLE
    cuda = 0.55e9
    return weights + cache + block + attention + logits + 3 * model.lora * SINGLE + cuda


def bytes_of_training(settings: Settings, model: Transformer, method: str) -> float:
    """NF4 weights, LoRA with AdamW, activations with checkpointing, logits in pieces."""
    training = getattr(settings, method)
    # NF4: 16 values in 4 bits; a byte a block of 64; a float32 and its share a 256 of those.
    packed = model.packed / 2 + model.packed / 64 + SINGLE * model.packed / (64 * 256)
    tables = model.table * (1 if model.shares_output else 2) * HALF
    weight, gradient, first, second = (SINGLE,) * 4
    adapter = model.lora * (weight + gradient + first + second)
    reference = model.lora * SINGLE if method == "dpo" else 0
    rows = training.micro_batch * (2 if method == "dpo" else 1)  # a pair is two texts
    tokens = rows * training.max_length
    kept = tokens * model.layers * model.width * HALF  # a block's input
    # One block, computed again (transformers and PEFT): two norms in float32 with their results;
    # copies in 16 bits that the adapters' first matrices keep of their inputs; queries, keys,
    # values, the attention's result; gate, its activation, up.
    copies = 5 * model.width + model.queries + model.inner
    held = 2 * 4 * model.width + copies + 2 * model.queries + 2 * model.keys + 4 * model.inner
    # Its way back: gradients of the three inner tensors and of three as wide as the model, an input
    # in float32 for an adapter, a matrix unpacked.
    back = 3 * model.inner + 3 * model.width + model.inner * SINGLE / HALF
    block = tokens * HALF * (held + back) + max(map(math.prod, model.matrices)) * HALF
    return (
        packed
        + tables
        + adapter
        + reference
        + kept
        + block
        + bytes_of_logits(tokens, model, method)
        + 0.8e9
    )


def bytes_of_logits(tokens: int, model: Transformer, method: str) -> float:
    """What TRL's heads hold of a piece of the logits."""
    if method == "dpo":  # 2,048 tokens by 8,192 words
        piece = min(tokens, 2048) * min(model.words, 8192)
        scores, wide, powers, probabilities, gradient, back = HALF, *(SINGLE,) * 4, HALF
        return piece * (scores + wide + powers + probabilities + gradient + back)
    piece = min(tokens, 256) * model.words
    scores, wide, logarithms, gradient, back = HALF, *(SINGLE,) * 3, HALF
    return piece * (scores + wide + logarithms + gradient + back)


@pytest.mark.parametrize("preset", MODELS)
def test_the_plan_agrees_with_a_second_calculation_within_a_tenth(preset):
    settings, model = config.load(preset), MODELS[preset]
    repository = hub.parse_repository(settings.model.base)
    assert repository
    planned = memory.estimate_peaks(settings, SHAPES[BASES[repository.id]])
    expected = {
        "asking (llama.cpp)": bytes_of_asking(settings, model),
        "SFT": bytes_of_training(settings, model, "sft"),
        "DPO": bytes_of_training(settings, model, "dpo"),
    }
    for stage, size in expected.items():
        print(
            f"{preset}, {stage}: {sum(planned[stage].values()) / size:.3f} of {size / 1e9:.2f} GB"
        )
    assert {stage: sum(parts.values()) for stage, parts in planned.items()} == {
        stage: pytest.approx(size, rel=0.1) for stage, size in expected.items()
    }


def test_every_preset_for_a_gpu_is_calculated_twice():
    assert set(MODELS) == set(config.presets()) - {"tiny", "smol"}
