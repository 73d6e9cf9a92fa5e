"""Models of random weights, to measure without a download: speed, memory, and parity by family.

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
    ModelShape,
    Tensor,
    TensorShape,
    build_config,
    list_linear,
    list_tensors,
    write_weights,
)
from selfreward_lite.models.vocabulary import KINDS, Vocabulary
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

# Of each family, a small model with everything that the real one has, as transformers names it:
# grouped heads, tied or separate output, scaled rotation, a window shorter than some conversations.
FAMILY_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("llama", {"rope_theta": 500000.0}),
    "llama3_1": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "smollm2": ("llama", {"tie_word_embeddings": True, "rope_theta": 100000.0}),
    "mistral": ("mistral", {"sliding_window": None, "rope_theta": 1e6}),
    "qwen2_5": ("qwen2", {"tie_word_embeddings": True, "rope_theta": 1e6}),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True, "rope_theta": 1e6}),
    "gemma3": (
        "gemma3_text",
        {
            "num_hidden_layers": 7,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 64,
            # The usual one: llama.cpp computes GELU from a table in float16.
            "initializer_range": 0.02,
        },
    ),
}
FAMILY_SIZE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.15,  # so large that a wrong rotation shows
}
# Ids that tokenizers have beyond their vocabulary, up to the real models' embedding.
FAMILY_VOCABULARIES = {"qwen2_5": 151936, "qwen3": 151936, "gemma3": 262208}

BLOCK, NESTED = 64, 256  # NF4: weights of a scale, scales of a scale of scales
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)


# -- GGUF ----------


def write_gguf(path: Path, shape: str, quantization: Quantization = "q8_0") -> Path:
    """Write a random model; returns `path`. Raises ConfigError for an unknown shape or type."""
    if shape not in SHAPES or quantization not in get_args(Quantization):
        raise ConfigError(
            f"no synthetic {shape} in {quantization}; choose one of {', '.join(SHAPES)}, "
            f"in {' or '.join(get_args(Quantization))}"
        )
    model = SHAPES[shape]
    kinds = {tensor: _kind(tensor, model, quantization) for tensor in list_tensors(model)}
    return write_base(path, model, quantization, _vocabulary(model.vocab), kinds, _arrays(kinds))


def write_gguf_adapter(path: Path, shape: str) -> Path:
    """Write a random GGUF LoRA on all seven projections of a named shape; returns `path`."""
    rank, rng, arrays = 16, np.random.default_rng(0), {}
    for tensor in list_linear(SHAPES[shape]):
        key, (rows, columns) = f"{tensor.name}.lora", tensor.shape
        arrays[f"{key}_a"] = rng.standard_normal((rank, columns), np.float32) * columns**-0.5
        arrays[f"{key}_b"] = rng.standard_normal((rows, rank), np.float32) * 0.1 * rank**-0.5
    return write_lora(path, SHAPES[shape].family, rank, arrays)


def _kind(tensor: Tensor, model: ModelShape, quantization: Quantization) -> str:
    """The type of a tensor. Q4_K_M keeps the output, and half of two matrices, in six bits."""
    if len(tensor.shape) == 1:
        return "f32"
    if quantization == "q8_0":
        return "q8_0"
    name = tensor.name
    if name == "output.weight" or (model.tied and name == "token_embd.weight"):
        return "q6_k"
    if not name.endswith(("attn_v.weight", "ffn_down.weight")):
        return "q4_k"
    layer, eighth = int(name.split(".")[1]), model.layers // 8
    more = layer < eighth or layer >= 7 * model.layers // 8 or (layer - eighth) % 3 == 2
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
        kind=KINDS[0],
        tokens=[*letters, *words, *SPECIAL],
        kinds=["NORMAL"] * (size - len(SPECIAL)) + ["CONTROL"] * len(SPECIAL),
        merges=["w 1"],
        roles={"bos": size - 2, "eos": size - 1},
        add_bos=False,
        template=None,
    )


# -- NF4 ----------


def write_folder(folder: Path, shape: str) -> Path:
    """Write a random model of a named shape; returns `folder`.

    Tokens are the tiny world's; other ids have no text. Raises ConfigError for an unknown shape.
    """
    if shape not in SHAPES:
        raise ConfigError(f"no shape {shape}; choose one of {', '.join(SHAPES)}")
    return write_model(folder, SHAPES[shape])


def write_model(folder: Path, model: ModelShape, tokenizer: Path = TINY_MODEL) -> Path:
    """Write a random model with the tokenizer of another folder; returns `folder`.

    One file is in memory at a time. The folder appears when it is complete.
    """
    import torch
    from safetensors.torch import save_file

    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    torch.manual_seed(0)
    write_weights(part, _files(model), save_file)
    theirs = tokenizer / "config.json"  # with the ids of its tokens
    config = {
        **(json.loads(theirs.read_bytes()) if theirs.exists() else {}),
        **build_config(model),
        "dtype": "bfloat16",
        "quantization_config": {
            **NF4_CONFIG,
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16",
        },
    }
    (part / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    for name in TOKENIZER:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, part / name)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder


def _files(model: ModelShape) -> Iterator[Tensors]:
    """The tensors of each file of the folder: embeddings in bfloat16, then a layer each."""
    import torch

    wide = torch.empty(model.vocab, model.hidden, dtype=torch.bfloat16)
    norm = torch.ones(model.hidden, dtype=torch.bfloat16)
    outer = {"model.embed_tokens.weight": wide.normal_(), "model.norm.weight": norm}
    if not model.tied:
        outer["lm_head.weight"] = torch.empty_like(wide).normal_(std=model.hidden**-0.5)
    yield outer
    linear = list_linear(model)
    scales = {tensor.shape: _scales(tensor.shape) for tensor in linear}
    for layer in range(model.layers):
        prefix = f"model.layers.{layer}."
        tensors = {
            tensor.source: torch.ones(tensor.shape, dtype=torch.bfloat16)
            for tensor in list_tensors(model)
            if tensor.source.startswith(prefix) and not tensor.linear
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


# -- by family ----------


def write_family(folder: Path, name: str, tokenizer: Path) -> Path:
    """Write one of FAMILY_MODELS in float32 with a real tokenizer's files; returns `folder`.

    Norms and biases are random too: those of a new model are 1 and 0, and would hide a wrong one.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, shape = FAMILY_MODELS[name]
    folder.mkdir(parents=True)
    for file in TOKENIZER:
        if (tokenizer / file).exists():
            shutil.copyfile(tokenizer / file, folder / file)
    spec = json.loads((tokenizer / "tokenizer.json").read_bytes())
    last = max(*spec["model"]["vocab"].values(), *(token["id"] for token in spec["added_tokens"]))
    vocab = FAMILY_VOCABULARIES.get(name, last + 1)
    config = AutoConfig.for_model(kind, **FAMILY_SIZE | shape, vocab_size=vocab)
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config)
    for parameter, value in model.named_parameters():
        if "norm" in parameter or parameter.endswith(".bias"):
            value.data += 0.3 * torch.randn_like(value)
    model.save_pretrained(folder)
    return folder


def write_adapter(model_dir: Path, folder: Path, **settings: Any) -> Path:
    """Write a random PEFT LoRA for a folder's model; returns `folder`.

    By default it is on all linear layers. It changes the model like a trained one: a new one's B is
    zero.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(2)
    defaults: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    plain = AutoModelForCausalLM.from_pretrained(model_dir)
    model = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", **defaults | settings))
    for parameter, value in model.named_parameters():
        if "lora_" in parameter:
            torch.nn.init.normal_(value, std=0.05)
    model.save_pretrained(str(folder))
    return folder
