"""Llamas of random weights, to measure speed and memory without a download: as GGUF or in NF4.

How long a model takes does not depend on what it knows. Every matrix is random bytes in its own
packed type, so that eight billion weights never need a 16-bit copy, neither on disk nor in memory.
The scales keep activations near size 1 from layer to layer.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.gguf_export import write_base, write_lora
from selfreward_lite.models.hf_folder import (
    NF4_CONFIG,
    SHAPES,
    Llama,
    Tensor,
    TensorShape,
    Vocabulary,
    list_linear,
    list_tensors,
)
from selfreward_lite.system.errors import ConfigError

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

Quantization = Literal["q8_0", "q4_k_m"]
SPECIAL = ("<begin>", "<end>")

# Of each packed type: the weights of a block, its fields, and the spread of a weight in units of
# the block's scale (int8 uniform; 4-bit values times 6-bit scales, less minima that center them;
# 6-bit values times a scale of 32).
_BLOCKS: dict[str, tuple[int, list[tuple[Any, ...]], float]] = {
    "q8_0": (32, [("scale", "<f2"), ("random", "u1", 32)], 73.9),
    "q4_k": (256, [("scale", "<f2"), ("minimum", "<f2"), ("random", "u1", 140)], 250.0),
    "q6_k": (256, [("random", "u1", 192), ("scales", "i1", 16), ("scale", "<f2")], 591.0),
}

BLOCK, NESTED = 64, 256  # NF4: weights of a scale, scales of a scale of scales
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)


# -- GGUF ----------


def write_gguf(path: Path, shape: str, quantization: Quantization = "q8_0") -> Path:
    """Write a random Llama; returns `path`. Raises ConfigError for an unknown shape or type."""
    if shape not in SHAPES or quantization not in get_args(Quantization):
        raise ConfigError(
            f"no synthetic {shape} in {quantization}; choose one of {', '.join(SHAPES)}, "
            f"in {' or '.join(get_args(Quantization))}"
        )
    llama = SHAPES[shape]
    kinds = {tensor: _kind(tensor, llama, quantization) for tensor in list_tensors(llama)}
    return write_base(path, llama, quantization, _vocabulary(llama.vocab), kinds, _arrays(kinds))


def write_gguf_adapter(path: Path, shape: str) -> Path:
    """Write a random GGUF LoRA on all seven projections of a named shape; returns `path`."""
    rank, rng, arrays = 16, np.random.default_rng(0), {}
    for tensor in list_linear(SHAPES[shape]):
        key, (rows, columns) = f"{tensor.name}.lora", tensor.shape
        arrays[f"{key}_a"] = rng.standard_normal((rank, columns), np.float32) * columns**-0.5
        arrays[f"{key}_b"] = rng.standard_normal((rows, rank), np.float32) * 0.1 * rank**-0.5
    return write_lora(path, rank, arrays)


def _kind(tensor: Tensor, llama: Llama, quantization: Quantization) -> str:
    """The type of a tensor. Q4_K_M keeps the output, and half of two matrices, in six bits."""
    if len(tensor.shape) == 1:
        return "f32"
    if quantization == "q8_0":
        return "q8_0"
    name = tensor.name
    if name == "output.weight" or (llama.tied and name == "token_embd.weight"):
        return "q6_k"
    if not name.endswith(("attn_v.weight", "ffn_down.weight")):
        return "q4_k"
    layer, eighth = int(name.split(".")[1]), llama.layers // 8
    more = layer < eighth or layer >= 7 * llama.layers // 8 or (layer - eighth) % 3 == 2
    return "q6_k" if more else "q4_k"


def _arrays(kinds: dict[Tensor, str]) -> Iterator[np.ndarray]:
    """The bytes of every tensor; norms are 1."""
    rng = np.random.default_rng(0)
    for tensor, kind in kinds.items():
        if kind == "f32":
            yield np.ones(tensor.shape, np.float32)
            continue
        weights, fields, unit = _BLOCKS[kind]
        spread = 1.0 if tensor.name == "token_embd.weight" else tensor.shape[1] ** -0.5
        blocks = np.empty(math.prod(tensor.shape) // weights, np.dtype(fields))
        count, size = blocks["random"].shape
        blocks["random"] = np.frombuffer(rng.bytes(count * size), np.uint8).reshape(count, size)
        blocks["scale"] = spread / unit
        if kind == "q4_k":
            blocks["minimum"] = 7.5 * spread / unit
        elif kind == "q6_k":
            blocks["scales"] = 32
        yield blocks.view(np.uint8)


def _vocabulary(size: int) -> Vocabulary:
    """Bytes, then words without meaning, then the two special tokens."""
    letters = sorted(ByteLevel.alphabet())
    words = [f"w{number}" for number in range(size - 256 - len(SPECIAL))]
    return Vocabulary(
        tokens=[*letters, *words, *SPECIAL],
        kinds=["NORMAL"] * (size - len(SPECIAL)) + ["CONTROL"] * len(SPECIAL),
        merges=["w 1"],
        roles={"bos": size - 2, "eos": size - 1},
        add_bos=False,
        template=None,
    )


# -- NF4 ----------


def write_folder(folder: Path, shape: str) -> Path:
    """Write a random Llama of a named shape; returns `folder`.

    Tokens are the tiny world's; other ids have no text. Raises ConfigError for an unknown shape.
    """
    import torch
    from safetensors.torch import save_file

    if shape not in SHAPES:
        raise ConfigError(f"no shape {shape}; choose one of {', '.join(SHAPES)}")
    llama = SHAPES[shape]
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    torch.manual_seed(0)
    files: dict[str, str] = {}
    size = 0
    for number, tensors in enumerate(_files(llama)):
        name = f"model-{number:05}.safetensors"
        save_file(tensors, part / name, metadata={"format": "pt"})
        files |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (part / "model.safetensors.index.json").write_text(json.dumps(index) + "\n", encoding="utf-8")
    config = json.loads((TINY_MODEL / "config.json").read_bytes()) | {
        "dtype": "bfloat16",
        "hidden_size": llama.hidden,
        "intermediate_size": llama.ffn,
        "num_hidden_layers": llama.layers,
        "num_attention_heads": llama.heads,
        "num_key_value_heads": llama.kv_heads,
        "head_dim": llama.head_dim,
        "max_position_embeddings": llama.context,
        "rms_norm_eps": llama.eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": llama.theta},
        "vocab_size": llama.vocab,
        "tie_word_embeddings": llama.tied,
        "quantization_config": {
            **NF4_CONFIG,
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16",
        },
    }
    (part / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    for name in TOKENIZER:
        shutil.copyfile(TINY_MODEL / name, part / name)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder


def _files(llama: Llama) -> Iterator[Tensors]:
    """The tensors of each file of the folder: embeddings in bfloat16, then a layer each."""
    import torch

    wide = torch.empty(llama.vocab, llama.hidden, dtype=torch.bfloat16)
    norm = torch.ones(llama.hidden, dtype=torch.bfloat16)
    outer = {"model.embed_tokens.weight": wide.normal_(), "model.norm.weight": norm}
    if not llama.tied:
        outer["lm_head.weight"] = torch.empty_like(wide).normal_(std=llama.hidden**-0.5)
    yield outer
    linear = list_linear(llama)
    scales = {tensor.shape: _scales(tensor.shape) for tensor in linear}
    for layer in range(llama.layers):
        prefix = f"model.layers.{layer}."
        tensors = {
            f"{prefix}{name}.weight": norm.clone()
            for name in ("input_layernorm", "post_attention_layernorm")
        }
        for tensor in linear:
            if tensor.source.startswith(prefix):
                size = (math.prod(tensor.shape) // 2, 1)
                tensors[tensor.source] = torch.randint(0, 256, size, dtype=torch.uint8)
                for part, value in scales[tensor.shape].items():
                    tensors[f"{tensor.source}.{part}"] = value.clone()
        yield tensors


def _scales(shape: TensorShape) -> Tensors:
    """What bitsandbytes writes beside a packed matrix of this shape; all blocks have one scale.

    It gives uniformly random codes the spread columns^-½.
    """
    import torch
    from bitsandbytes import functional

    bitsandbytes: Any = functional
    code = bitsandbytes.get_4bit_type("nf4", device="cpu")
    scale = float(shape[1] ** -0.5 / code.square().mean().sqrt())
    blocks = math.prod(shape) // BLOCK
    nested = bitsandbytes.QuantState(
        absmax=torch.zeros(-(-blocks // NESTED)),
        blocksize=NESTED,
        code=bitsandbytes.create_dynamic_map(),
        dtype=torch.float32,
    )
    state = bitsandbytes.QuantState(
        absmax=torch.zeros(blocks, dtype=torch.uint8),
        shape=torch.Size(shape),
        code=code,
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=torch.bfloat16,
        offset=torch.tensor(scale),
        state2=nested,
    )
    parts: Tensors = state.as_dict(packed=True)
    return parts
