"""Estimates of GPU memory in bytes: of llama.cpp that generates, and of a trainer that trains.

`bench card` measures the same. What the GPU's driver and libraries hold is a guess.
"""

import math
from collections.abc import Mapping
from functools import partial

from selfreward_lite.config.settings import EngineSettings, Model, Settings, Training
from selfreward_lite.data import hub
from selfreward_lite.models.hf_folder import ModelShape, list_linear
from selfreward_lite.system.errors import UserError

# Bytes a weight; Q8_0 keeps 32 weights in 34 bytes.
GGUF_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}

# NF4 with double quantization (arXiv 2305.14314, section 3): 4 bits, a byte of scale for 64 of
# them, 4 bytes for 256 scales.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)

# Bytes of an adapter's weight in training: itself, its gradient and AdamW's two moments, all in
# float32.
ADAPTER_BYTES = 16
REFERENCE_BYTES = 4  # its frozen copy, the reference of DPO
EXCHANGE_BYTES = 4  # the copy of its gradient that several processes average
# Adapters that llama.cpp keeps, in float32: M0, M(t-1) and M(t); it frees none before it ends.
ADAPTERS = 3

# How many logits TRL's heads hold at once, as tokens and words of the vocabulary, and the bytes of
# one with its gradient and copies in float32. Measured with TRL 1.14 on a CPU in bfloat16: `python
# -m pytest -m slow tests/run/test_plan.py -k logit -s`.
SFT_TOKENS, SFT_LOGIT_BYTES = 256, 16
DPO_TOKENS, DPO_WORDS, DPO_LOGIT_BYTES = 2048, 8192, 26
DRIVER = {"engine": 0.6e9, "training": 0.8e9}  # what CUDA and its libraries hold


def estimate_engine(
    settings: EngineSettings, shape: ModelShape, base: float, rank: int
) -> dict[str, int]:
    """What llama.cpp holds with all layers on the GPU, by part; `base` is its GGUF.

    A step has a mask of two bytes for each of its tokens and cells.
    """
    cell = shape.layers * shape.kv_heads * shape.head_dim * 2 * 2  # keys and values, two bytes each
    activations = 4 * settings.batch * (2 * shape.ffn + 8 * shape.hidden)
    mask = 2 * settings.batch * settings.context
    logits = 4 * (settings.parallel + settings.roots) * shape.vocab
    parts = {
        "weights": estimate_offloaded(base, shape),
        "KV cache": settings.context * cell,
        "a step": activations + mask + logits,
        "adapters": ADAPTERS * 4 * count_adapter_weights(shape, rank),
        "driver": DRIVER["engine"],
    }
    return {name: int(size) for name, size in parts.items()}


def estimate_training(
    settings: Training,
    shape: ModelShape,
    rank: int,
    *,
    packed: bool,
    pairs: bool,
    processes: int = 1,
) -> dict[str, int]:
    """What a trainer holds at its longest rows, by part; `pairs` is DPO.

    Each of several processes holds as much, on a GPU of its own, and a copy of the gradient.

    With gradient checkpointing, the input of every block is kept (two bytes a number); one block at
    a time is computed again, with its gradients.
    """
    tokens = settings.micro_batch * settings.max_length * (2 if pairs else 1)
    block = 8 * shape.hidden + 6 * shape.ffn  # numbers a token inside one block
    linear = count_linear_weights(shape)
    parts = {
        "weights": linear * (NF4_BYTES if packed else 2) + 2 * (count_weights(shape) - linear),
        "adapter": count_adapter_weights(shape, rank)
        * (
            ADAPTER_BYTES
            + (REFERENCE_BYTES if pairs else 0)
            + (EXCHANGE_BYTES if processes > 1 else 0)
        ),
        "activations": tokens * 2 * (shape.layers * shape.hidden + 2 * block),
        "logits": min(tokens, DPO_TOKENS) * min(shape.vocab, DPO_WORDS) * DPO_LOGIT_BYTES
        if pairs
        else min(tokens, SFT_TOKENS) * shape.vocab * SFT_LOGIT_BYTES,
        "driver": DRIVER["training"],
    }
    return {name: int(size) for name, size in parts.items()}


def estimate_peaks(settings: Settings, shape: ModelShape) -> dict[str, dict[str, int]]:
    """What each kind of stage that uses the GPU holds at its peak, by part; of each GPU."""
    rank, processes = settings.lora.rank, settings.training.processes
    train = partial(
        estimate_training,
        shape=shape,
        rank=rank,
        packed=settings.model.quantisation == "nf4",
        processes=processes,
    )
    base = estimate_base(settings.model, shape)
    return {
        "asking (llama.cpp)": estimate_engine(settings.engine, shape, base, rank),
        "SFT": train(settings.sft, pairs=False),
        "DPO": train(settings.dpo, pairs=True),
    }


def largest_peak(peaks: Mapping[str, Mapping[str, int]]) -> int:
    """The bytes of the stage that needs most."""
    return max(sum(parts.values()) for parts in peaks.values())


def estimate_base(model: Model, shape: ModelShape) -> float:
    """The bytes of the base as GGUF.

    That is the size of the file in the settings if it is here, else the weights in their type.
    Raises UserError if there is no such file.
    """
    if model.gguf_file is None or hub.find_missing(model.gguf_file, "model"):
        return count_weights(shape) * GGUF_BYTES[model.gguf]
    file = hub.find_local(model.gguf_file, "model")
    if not file.is_file():
        raise UserError(f"{file}: no such file; fix model.gguf_file")
    return file.stat().st_size


def estimate_offloaded(base: float, shape: ModelShape) -> float:
    """The bytes of a GGUF that go to the GPU: all but the table in which tokens are looked up.

    If the output is tied to it, it is copied there.
    """
    embeddings = 0 if shape.tied else shape.vocab * shape.hidden
    return base * (1 - embeddings / count_weights(shape))


def count_linear_weights(shape: ModelShape) -> int:
    """How many weights the blocks' linear layers have, those that NF4 packs."""
    return sum(math.prod(tensor.shape) for tensor in list_linear(shape))


def count_weights(shape: ModelShape) -> int:
    """How many weights a model's matrices have; its norms are negligible."""
    return count_linear_weights(shape) + shape.vocab * shape.hidden * (1 if shape.tied else 2)


def count_multiplied(shape: ModelShape) -> int:
    """How many weights every token is multiplied with: the linear layers and the output."""
    return count_linear_weights(shape) + shape.vocab * shape.hidden


def count_adapter_weights(shape: ModelShape, rank: int) -> int:
    """How many weights a LoRA has: rank · (in + out) for each linear layer (arXiv 2106.09685)."""
    return rank * sum(sum(tensor.shape) for tensor in list_linear(shape))
