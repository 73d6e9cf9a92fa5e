"""Llamas of random weights as Hugging Face folders in NF4, for what training takes of a card: nothing is downloaded for it.

Knows: how bitsandbytes' 4-bit weights lie in a safetensors file. Does not know: trainers. A packed matrix is random bytes, which
are random 4-bit codes, beside the scales that bitsandbytes itself makes for its shape; so eight billion weights are written
layer by layer, and no 16-bit copy of a matrix ever exists, neither on disk nor in memory. Embeddings are in bfloat16, as in the
folders that one downloads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from selfreward_lite.config import TINY_MODEL
from selfreward_lite.errors import ConfigError
from selfreward_lite.llama_folder import Llama
from selfreward_lite.shapes import SHAPES

BLOCK, NESTED = 64, 256  # weights of a scale, scales of a scale of scales
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
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
    outer = {"model.embed_tokens.weight": wide.normal_(), "model.norm.weight": torch.ones(llama.hidden, dtype=torch.bfloat16)}
    yield outer if llama.tied else outer | {"lm_head.weight": torch.empty_like(wide).normal_(std=llama.hidden**-0.5)}
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
            tensors |= {f"{key}.{part}": value.clone() for part, value in scales[rows, columns].items()}
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
        absmax=torch.zeros(-(-blocks // NESTED)), blocksize=NESTED, code=create_dynamic_map(), dtype=torch.float32
    )
    state = QuantState(
        absmax=torch.zeros(blocks, dtype=torch.uint8), shape=torch.Size(shape), code=code, blocksize=BLOCK, quant_type="nf4",
        dtype=torch.bfloat16, offset=torch.tensor(scale), state2=nested,
    )
    return state.as_dict(packed=True)


def _special_ids() -> dict[str, int]:
    known = json.loads((TINY_MODEL / "config.json").read_text(encoding="utf-8"))
    return {f"{name}_token_id": known[f"{name}_token_id"] for name in ("bos", "eos", "pad")}


def _config(llama: Llama) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "bfloat16",
        "hidden_size": llama.hidden, "intermediate_size": llama.ffn, "num_hidden_layers": llama.layers,
        "num_attention_heads": llama.heads, "num_key_value_heads": llama.kv_heads, "head_dim": llama.head_dim,
        "max_position_embeddings": llama.context, "rms_norm_eps": llama.eps, "rope_theta": llama.theta,
        "vocab_size": llama.vocab, "tie_word_embeddings": llama.tied, **_special_ids(),
        "quantization_config": {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8",
        },
    }
