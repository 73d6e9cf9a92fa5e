"""Llamas of random weights as GGUF files, for speed alone: how long a model takes does not depend on what it knows.

Knows: how many bytes a block of a quantised type has and where its scales stand. Does not know: engines. Every
matrix is made of random bytes in its quantised type, so that eight billion weights need no full-precision copy, neither on
disk nor in memory; the scales keep activations near size 1 from layer to layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from selfreward_lite.errors import ConfigError
from selfreward_lite.export import add_settings, add_vocabulary, whole_file, write_arrays, write_lora
from selfreward_lite.llama_folder import Llama, Vocabulary, layout
from selfreward_lite.shapes import SHAPES

if TYPE_CHECKING:
    import numpy as np

Quantisation = Literal["q8_0", "q4_k_m"]
SPECIAL = ("<begin>", "<end>")
# A weight's spread in units of the block's scale: int8 uniform; 4-bit values times 6-bit scales, less minima that centre them;
# 6-bit values times a scale of 32.
_SPREAD = {"q8_0": 73.9, "q4_k": 250.0, "q6_k": 591.0}


def write_model(path: Path, shape: str, quantisation: Quantisation = "q8_0", seed: int = 0) -> Path:
    """Write a random Llama of a named shape; returns `path`. Raises ConfigError for a shape or type that is not known."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

    if shape not in SHAPES or quantisation not in get_args(Quantisation):
        known = " or ".join(get_args(Quantisation))
        raise ConfigError(f"no synthetic {shape} in {quantisation}; choose of {', '.join(SHAPES)}, in {known}")
    llama = SHAPES[shape]
    with whole_file(path) as part:
        writer = GGUFWriter(part, "llama")
        add_settings(writer, llama, quantisation)
        add_vocabulary(writer, _vocabulary(llama.vocab))
        for tensor in layout(llama):
            if len(tensor.shape) == 1:
                writer.add_tensor_info(tensor.name, tensor.shape, _float32(), 4 * tensor.shape[0])
            else:
                rows, columns = tensor.shape
                kind = GGMLQuantizationType[_kind(tensor.name, llama, quantisation).upper()]
                weights, size = GGML_QUANT_SIZES[kind]
                writer.add_tensor_info(tensor.name, tensor.shape, _float32(), rows * columns // weights * size, kind)
        write_arrays(writer, _arrays(llama, quantisation, seed))
    return path


def write_adapter(path: Path, shape: str, rank: int = 16, seed: int = 0) -> Path:
    """Write a random GGUF LoRA on all seven projections of a named shape; returns `path`."""
    import numpy as np

    llama, rng = SHAPES[shape], np.random.default_rng(seed)
    arrays = {}
    for layer in range(llama.layers):
        for name, (rows, columns), _ in llama.projections().values():
            key = f"blk.{layer}.{name}.weight.lora"
            arrays[f"{key}_a"] = rng.standard_normal((rank, columns), np.float32) * columns**-0.5
            arrays[f"{key}_b"] = rng.standard_normal((rows, rank), np.float32) * 0.1 * rank**-0.5
    return write_lora(path, rank, arrays)


def _kind(name: str, llama: Llama, quantisation: Quantisation) -> str:
    """The type of a matrix. llama.cpp's Q4_K_M keeps the output, and half of what attention and blocks give, in six bits."""
    if quantisation == "q8_0":
        return "q8_0"
    if name == "output.weight" or (llama.tied and name == "token_embd.weight"):
        return "q6_k"
    if not name.endswith(("attn_v.weight", "ffn_down.weight")):
        return "q4_k"
    layer, eighth = int(name.split(".")[1]), llama.layers // 8
    more = layer < eighth or layer >= 7 * llama.layers // 8 or (layer - eighth) % 3 == 2
    return "q6_k" if more else "q4_k"


def _arrays(llama: Llama, quantisation: Quantisation, seed: int) -> Iterator[np.ndarray]:
    import numpy as np

    rng = np.random.default_rng(seed)
    for tensor in layout(llama):
        if len(tensor.shape) == 1:
            yield np.ones(tensor.shape, np.float32)
        else:
            kind = _kind(tensor.name, llama, quantisation)
            spread = 1.0 if tensor.name == "token_embd.weight" else tensor.shape[1] ** -0.5
            yield {"q8_0": _q8_0, "q4_k": _q4_k, "q6_k": _q6_k}[kind](rng, tensor.shape, spread / _SPREAD[kind])


def _q8_0(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Blocks of 32 weights: a float16 scale, 32 int8."""
    import numpy as np

    block = np.dtype([("scale", "<f2"), ("values", "u1", 32)])
    made = np.empty(shape[0] * shape[1] // 32, block)
    made["scale"] = scale
    made["values"] = np.frombuffer(rng.bytes(32 * len(made)), np.uint8).reshape(-1, 32)
    return made.view(np.uint8)


def _q4_k(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Super-blocks of 256 weights: float16 scales of scales and of minima, 12 bytes of 6-bit ones, 128 bytes of 4-bit weights."""
    import numpy as np

    block = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("rest", "u1", 140)])
    made = np.empty(shape[0] * shape[1] // 256, block)
    made["scale"], made["minimum"] = scale, 7.5 * scale
    made["rest"] = np.frombuffer(rng.bytes(140 * len(made)), np.uint8).reshape(-1, 140)
    return made.view(np.uint8)


def _q6_k(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Super-blocks of 256 weights: 192 bytes of 6-bit weights, 16 int8 scales, a float16 scale of scales."""
    import numpy as np

    block = np.dtype([("values", "u1", 192), ("scales", "i1", 16), ("scale", "<f2")])
    made = np.empty(shape[0] * shape[1] // 256, block)
    made["values"] = np.frombuffer(rng.bytes(192 * len(made)), np.uint8).reshape(-1, 192)
    made["scales"], made["scale"] = 32, scale
    return made.view(np.uint8)


def _vocabulary(size: int) -> Vocabulary:
    """Bytes, then words that mean nothing, then the two special tokens."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))  # GPT-2's printable stand-ins for the other bytes
    letters = [chr(code) if code in plain else chr(next(spare)) for code in range(256)]
    tokens = [*letters, *(f"w{number}" for number in range(size - 256 - len(SPECIAL))), *SPECIAL]
    return Vocabulary(
        tokens=tokens, kinds=["NORMAL"] * (size - len(SPECIAL)) + ["CONTROL"] * len(SPECIAL), merges=["w 1"],
        roles={"bos": size - 2, "eos": size - 1}, add_bos=False, template=None,
    )


def _float32() -> np.dtype:
    import numpy as np

    return np.dtype(np.float32)
