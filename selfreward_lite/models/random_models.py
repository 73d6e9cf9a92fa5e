"""Llamas of random weights as GGUF files, for speed alone: how long a model takes does not depend on what it knows.

Knows: how many bytes a block of a quantised type has and where its scales stand. Does not know: engines. Every
matrix is made of random bytes in its quantised type, so that eight billion weights need no full-precision copy, neither on
disk nor in memory; the scales keep activations near size 1 from layer to layer.
"""

# Llamas of random weights as Hugging Face folders in NF4, for what training takes of a card: nothing is downloaded for it.
#
# Knows: how bitsandbytes' 4-bit weights lie in a safetensors file. Does not know: trainers. A packed matrix is random bytes, which
# are random 4-bit codes, beside the scales that bitsandbytes itself makes for its shape; so eight billion weights are written
# layer by layer, and no 16-bit copy of a matrix ever exists, neither on disk nor in memory. Embeddings are in bfloat16, as in the
# folders that one downloads.

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.gguf_export import (
    add_settings,
    add_vocabulary,
    write_arrays,
    write_lora,
)
from selfreward_lite.models.hf_folder import SHAPES, Llama, Vocabulary, list_tensors
from selfreward_lite.system.errors import ConfigError
from selfreward_lite.system.files import atomic_write

if TYPE_CHECKING:
    import numpy as np

Quantisation = Literal["q8_0", "q4_k_m"]
SPECIAL = ("<begin>", "<end>")

# A weight's spread in units of the block's scale: int8 uniform; 4-bit values times 6-bit scales, less minima that centre them;
# 6-bit values times a scale of 32.
_SPREAD = {"q8_0": 73.9, "q4_k": 250.0, "q6_k": 591.0}


def write_gguf(path: Path, shape: str, quantisation: Quantisation = "q8_0", seed: int = 0) -> Path:
    """Write a random Llama of a named shape; returns `path`. Raises ConfigError for a shape or type that is not known."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

    if shape not in SHAPES or quantisation not in get_args(Quantisation):
        known = " or ".join(get_args(Quantisation))
        raise ConfigError(
            f"no synthetic {shape} in {quantisation}; choose of {', '.join(SHAPES)}, in {known}"
        )
    llama = SHAPES[shape]
    with atomic_write(path) as part:
        writer = GGUFWriter(part, "llama")
        add_settings(writer, llama, quantisation)
        add_vocabulary(writer, _vocabulary(llama.vocab))
        for tensor in list_tensors(llama):
            if len(tensor.shape) == 1:
                writer.add_tensor_info(tensor.name, tensor.shape, _float32(), 4 * tensor.shape[0])
            else:
                rows, columns = tensor.shape
                kind = GGMLQuantizationType[_kind(tensor.name, llama, quantisation).upper()]
                weights, size = GGML_QUANT_SIZES[kind]
                writer.add_tensor_info(
                    tensor.name, tensor.shape, _float32(), rows * columns // weights * size, kind
                )
        write_arrays(writer, _arrays(llama, quantisation, seed))
    return path


def write_gguf_adapter(path: Path, shape: str, rank: int = 16, seed: int = 0) -> Path:
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
    for tensor in list_tensors(llama):
        if len(tensor.shape) == 1:
            yield np.ones(tensor.shape, np.float32)
        else:
            kind = _kind(tensor.name, llama, quantisation)
            spread = 1.0 if tensor.name == "token_embd.weight" else tensor.shape[1] ** -0.5
            yield {"q8_0": _q8_0, "q4_k": _q4_k, "q6_k": _q6_k}[kind](
                rng, tensor.shape, spread / _SPREAD[kind]
            )


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
        tokens=tokens,
        kinds=["NORMAL"] * (size - len(SPECIAL)) + ["CONTROL"] * len(SPECIAL),
        merges=["w 1"],
        roles={"bos": size - 2, "eos": size - 1},
        add_bos=False,
        template=None,
    )


def _float32() -> np.dtype:
    import numpy as np

    return np.dtype(np.float32)


RANDOM = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16,
          "num_key_value_heads": 4, "head_dim": 64}  # fmt: skip
RANDOM_RANK = 16


def make_random_model(tokenizer_of: Path, folder: Path) -> tuple[Path, Path]:
    """Write a random Llama of 0.12 billion weights with another model's tokenizer, and a random LoRA; return both folders."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(tokenizer_of, folder / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    settings = json.loads((tokenizer_of / "config.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(**{**settings, **RANDOM, "initializer_range": RANDOM["hidden_size"] ** -0.5})
    )
    model.save_pretrained(folder / "model")
    lora = LoraConfig(
        r=RANDOM_RANK,
        lora_alpha=2 * RANDOM_RANK,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, lora)
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1 * value.shape[0] ** -0.5)
    adapted.save_pretrained(folder / "adapter")
    return folder / "model", folder / "adapter"


BLOCK, NESTED = 64, 256  # weights of a scale, scales of a scale of scales
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
Tensors = dict[str, torch.Tensor]


def write_folder(folder: Path, shape: str, seed: int = 0) -> Path:
    """Write a random Llama of a named shape; returns `folder`. Its tokens are the tiny world's, the other ids belong to no text.

    Raises ConfigError for a shape that is not known.
    """
    from safetensors.torch import save_file

    if shape not in SHAPES:
        raise ConfigError(f"no shape {shape}; choose of {', '.join(SHAPES)}")
    llama = SHAPES[shape]
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    torch.manual_seed(seed)
    where, size = {}, 0
    for number, tensors in enumerate(_files(llama)):
        name = f"model-{number:05}.safetensors"
        save_file(tensors, str(part / name), metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (part / "model.safetensors.index.json").write_text(json.dumps(index) + "\n", encoding="utf-8")
    (part / "config.json").write_text(json.dumps(_config(llama), indent=1) + "\n", encoding="utf-8")
    for name in TOKENIZER:
        shutil.copyfile(TINY_MODEL / name, part / name)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder


def _files(llama: Llama) -> Iterator[Tensors]:
    """The tensors of the folder, a file's worth at a time: the embeddings, then a layer each."""
    wide = torch.empty(llama.vocab, llama.hidden, dtype=torch.bfloat16)
    outer = {
        "model.embed_tokens.weight": wide.normal_(),
        "model.norm.weight": torch.ones(llama.hidden, dtype=torch.bfloat16),
    }
    yield (
        outer
        if llama.tied
        else outer | {"lm_head.weight": torch.empty_like(wide).normal_(std=llama.hidden**-0.5)}
    )
    scales = {shape: _scales(shape) for _, shape, _ in llama.projections().values()}
    for layer in range(llama.layers):
        prefix = f"model.layers.{layer}"
        tensors: Tensors = {
            f"{prefix}.{name}.weight": torch.ones(llama.hidden, dtype=torch.bfloat16)
            for name in ("input_layernorm", "post_attention_layernorm")
        }
        for name, (_, (rows, columns), _) in llama.projections().items():
            key = f"{prefix}.{name}.weight"
            tensors[key] = torch.randint(0, 256, (rows * columns // 2, 1), dtype=torch.uint8)
            tensors |= {
                f"{key}.{part}": value.clone() for part, value in scales[rows, columns].items()
            }
        yield tensors


def _scales(shape: tuple[int, int]) -> Tensors:
    """What bitsandbytes writes beside a packed matrix of this shape, all of whose blocks have one scale.

    The scale gives uniformly random codes the spread columns^-½, which keeps activations near size 1 from layer to layer.
    """
    from bitsandbytes.functional import QuantState, create_dynamic_map, get_4bit_type

    code = get_4bit_type("nf4", device="cpu")
    scale = float(shape[1] ** -0.5 / code.square().mean().sqrt())
    blocks = shape[0] * shape[1] // BLOCK
    nested = QuantState(
        absmax=torch.zeros(-(-blocks // NESTED)),
        blocksize=NESTED,
        code=create_dynamic_map(),
        dtype=torch.float32,
    )
    state = QuantState(
        absmax=torch.zeros(blocks, dtype=torch.uint8),
        shape=torch.Size(shape),
        code=code,
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=torch.bfloat16,
        offset=torch.tensor(scale),
        state2=nested,
    )
    return state.as_dict(packed=True)


def _special_ids() -> dict[str, int]:
    known = json.loads((TINY_MODEL / "config.json").read_text(encoding="utf-8"))
    return {f"{name}_token_id": known[f"{name}_token_id"] for name in ("bos", "eos", "pad")}


def _config(llama: Llama) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "hidden_size": llama.hidden,
        "intermediate_size": llama.ffn,
        "num_hidden_layers": llama.layers,
        "num_attention_heads": llama.heads,
        "num_key_value_heads": llama.kv_heads,
        "head_dim": llama.head_dim,
        "max_position_embeddings": llama.context,
        "rms_norm_eps": llama.eps,
        "rope_theta": llama.theta,
        "vocab_size": llama.vocab,
        "tie_word_embeddings": llama.tied,
        **_special_ids(),
        "quantization_config": {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
        },
    }
