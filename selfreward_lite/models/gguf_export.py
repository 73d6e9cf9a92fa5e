"""Hugging Face folders as GGUF files: a base, a PEFT LoRA adapter.

    base_to_gguf       config.json, tokenizer.json, *.safetensors → base.gguf
    adapter_to_gguf    adapter_config.json, adapter_model.safetensors → adapter.gguf

Which bases can be exported is decided in `families`, `hf_folder` and `vocabulary`, which adapters
here; `parity` proves the result. Files appear complete or not at all. torch, bitsandbytes and gguf
are imported inside functions, so importing this file is cheap.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from selfreward_lite.models import nf4
from selfreward_lite.models.families import Family
from selfreward_lite.models.hf_folder import (
    GGUF_HEAD_SIZES,
    GGUF_NUMBERS,
    PACKED_PARTS,
    STATE,
    ModelShape,
    Tensor,
    check_shape,
    find_tensors,
    list_linear,
    list_tensors,
    open_safetensors,
    read_config,
    read_json,
    refuse,
    rope_factors,
)
from selfreward_lite.models.vocabulary import Vocabulary, read_vocabulary
from selfreward_lite.system.errors import ExportError
from selfreward_lite.system.files import Json, atomic_write

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGUFWriter

Weights = Literal["original", "nf4"]
Dtype = Literal["f32", "f16", "q8_0"]

# Settings in adapter_config.json that never change the result, since each tensor in the file is
# checked and written.
ADAPTER_NEUTRAL = {
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "lora_alpha",
    "use_rslora",
    "lora_dropout",
    "bias",
    "init_lora_weights",
    "target_modules",
    "exclude_modules",
    "megatron_core",
    "qalora_group_size",
    "eva_config",
    "runtime_config",
}

# Initializations that leave the base weights alone; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA move
# them.
ADAPTER_INITS = (True, False, "gaussian", "orthogonal", "eva")
LORA_KEY = re.compile(r"base_model\.model\.(model\.layers\.\d+\.\w+\.\w+)\.lora_([AB])\.weight")


def _write_arrays(writer: GGUFWriter, arrays: Iterable[np.ndarray]) -> None:
    """Write header, settings, tensor table, then the arrays in the order of the table."""
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for array in arrays:
            writer.write_tensor_data(array)
    finally:
        writer.close()


def _permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of each head from HF's halves to llama.cpp's interleaved pairs."""
    if not heads:
        return weight
    return weight.reshape(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def check_finite(tensor: torch.Tensor, label: str) -> torch.Tensor:
    """The tensor; raises ExportError if not all of its values are numbers."""
    if not tensor.isfinite().all():
        raise ExportError(
            f"{label} holds NaN or infinity: do not use these weights, go back to good ones"
        )
    return tensor


def _encode(tensor: torch.Tensor, dtype: Dtype, label: str) -> np.ndarray:
    """A numpy array as GGUF stores it (bytes for q8_0); raises ExportError on overflow."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    with np.errstate(over="ignore"):
        data = quantize(tensor.float().contiguous().numpy(), GGMLQuantizationType[dtype.upper()])
    if dtype == "f16" and not np.isfinite(data).all():
        raise ExportError(f"{label} holds values above 65504: export with dtype f32")
    return data


# -- the base ----------


def base_to_gguf(
    model_dir: Path,
    out: Path,
    *,
    weights: Weights,
    dtype: Dtype,
    adapter_dir: Path | None = None,
) -> Path:
    """Write a folder as `out`, one tensor in memory at a time; returns `out`.

    `weights="nf4"` rounds each linear layer of the blocks as BitsAndBytesConfig(load_in_4bit, nf4,
    double quant) does, so that llama.cpp runs the model that a QLoRA adapter was trained on; a
    folder of NF4 weights is unpacked either way. `dtype` is the type of matrices; norms are always
    f32. With `adapter_dir`, a PEFT LoRA folder, the full model is written: W + scale·B·A (LoRA,
    arXiv 2106.09685, section 4.1). Raises ExportError where GGUF cannot express the model or a file
    is broken.
    """
    if weights not in get_args(Weights) or dtype not in get_args(Dtype):
        raise ExportError(
            f"weights={weights!r}, dtype={dtype!r}: choose one of {get_args(Weights)}, and of "
            f"{get_args(Dtype)}"
        )
    model = read_config(model_dir)
    lora = _read_lora(adapter_dir, model) if adapter_dir else None
    rope = Tensor("rope_freqs.weight", "rope_freqs", (model.head_dim // 2,))
    tensors = [*([rope] if model.rope else []), *list_tensors(model)]
    kinds: dict[Tensor, Dtype] = {
        tensor: dtype if len(tensor.shape) == 2 else "f32" for tensor in tensors
    }
    files = find_tensors(model_dir, model)

    def arrays() -> Iterator[np.ndarray]:
        import torch

        for tensor, kind in kinds.items():
            if tensor == rope:
                yield _encode(torch.tensor(rope_factors(model)), kind, tensor.source)
                continue
            value = read_trained(tensor, files, model, weights) + tensor.offset
            if lora and tensor in lora.pairs:
                pair = lora.pairs[tensor]
                value += lora.scale * (pair["B"].float() @ pair["A"].float())
                check_finite(value, tensor.source)
            yield _encode(_permute(value, tensor.heads), kind, tensor.source)

    vocabulary = read_vocabulary(model_dir, model.vocab)
    origin = "nf4" if model.packed else weights
    return write_base(out, model, dtype, vocabulary, kinds, arrays(), origin)


def read_trained(
    tensor: Tensor, files: dict[str, Path], model: ModelShape, weights: Weights
) -> torch.Tensor:
    """A tensor in float32, as training computes with it; raises ExportError if it is not finite."""
    value = check_finite(_read_tensor(tensor, files).float(), tensor.source)
    if tensor.linear and weights == "nf4" and not model.packed:
        return nf4.round_to_nf4(value)
    return value


def _read_tensor(tensor: Tensor, files: dict[str, Path]) -> torch.Tensor:
    """A tensor from its file, unpacked if it is NF4."""
    parts: dict[str, torch.Tensor] = {}
    for part in ("", *PACKED_PARTS):
        name = f"{tensor.source}.{part}" if part else tensor.source
        if name in files:
            with open_safetensors(files[name]) as file:
                parts[part] = file.get_tensor(name)
    value = parts.pop("")
    check_shape(tensor, tuple(value.shape), packed=STATE in parts)
    if not parts:
        return value
    value = nf4.unpack_nf4(value, parts, f"{files[tensor.source]}: {tensor.source}")
    check_shape(tensor, tuple(value.shape))
    return value


def write_base(
    out: Path,
    model: ModelShape,
    dtype: str,
    vocabulary: Vocabulary,
    kinds: Mapping[Tensor, str],
    arrays: Iterable[np.ndarray],
    origin: str | None = None,
) -> Path:
    """Write a base, each array of a tensor in its kind, one at a time; returns `out`.

    `dtype` is the type of most matrices: f32, f16, q8_0 or q4_k_m. `origin` is kept in the file.
    """
    import numpy as np
    from gguf import (
        GGML_QUANT_SIZES,
        GGML_QUANT_VERSION,
        GGMLQuantizationType,
        GGUFWriter,
        LlamaFileType,
        TokenType,
    )

    with atomic_write(out) as part:
        writer = GGUFWriter(part, model.family.gguf)
        writer.add_type("model")
        file_type = f"{'ALL' if dtype == 'f32' else 'MOSTLY'}_{dtype.upper()}"
        writer.add_file_type(LlamaFileType[file_type])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        numbers = {key: getattr(model, name) for name, key in GGUF_NUMBERS.items()}
        numbers |= dict.fromkeys(GGUF_HEAD_SIZES, model.head_dim)
        for key, value in numbers.items():
            if value is not None:
                add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
                add(f"{model.family.gguf}.{key}", value)
        writer.add_vocab_size(model.vocab)
        if origin:
            writer.add_string("selfreward.weights", origin)
        kind = vocabulary.kind
        writer.add_tokenizer_model(kind.model)
        writer.add_tokenizer_pre(kind.pre)
        writer.add_token_list(vocabulary.tokens)
        if vocabulary.scores is not None:
            writer.add_token_scores(vocabulary.scores)
            writer.add_add_space_prefix(kind.space_prefix)
        writer.add_token_types([TokenType[kind] for kind in vocabulary.kinds])
        if vocabulary.scores is None:
            writer.add_token_merges(vocabulary.merges)
        for role, token_id in vocabulary.roles.items():
            getattr(writer, f"add_{role}_token_id")(token_id)
        writer.add_add_bos_token(vocabulary.add_bos)
        if vocabulary.template:
            writer.add_chat_template(vocabulary.template)
        for tensor, stored_as in kinds.items():
            stored = GGMLQuantizationType[stored_as.upper()]
            block, size = GGML_QUANT_SIZES[stored]
            if tensor.shape[-1] % block:
                raise ExportError(
                    f"{tensor.source}: rows of {tensor.shape[-1]} do not fit {stored_as} "
                    f"blocks of {block}: use f16"
                )
            total = math.prod(tensor.shape) // block * size
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), total, stored)
        _write_arrays(writer, arrays)
    return out


# -- the adapter ----------


@dataclass(frozen=True)
class _Lora:
    """A LoRA: A (rank, in) and B (out, rank) of base tensors; `scale` is alpha/r or alpha/√r."""

    pairs: dict[Tensor, dict[str, torch.Tensor]]
    rank: int
    scale: float


def adapter_to_gguf(adapter_dir: Path, base_config_dir: Path, out: Path) -> Path:
    """Write a PEFT LoRA folder as a GGUF LoRA in f32; returns `out`.

    llama.cpp multiplies by alpha/r. Rank-stabilized LoRA means alpha/√r, so alpha·√r is written for
    it. The rows of B are in the base's order. Raises ExportError, by name, for everything that is
    not plain LoRA on the seven projections of the blocks.
    """
    shape = read_config(base_config_dir)
    lora, arrays = _read_lora(adapter_dir, shape), {}
    for tensor, pair in lora.pairs.items():
        for side, value in (("a", pair["A"]), ("b", _permute(pair["B"], tensor.heads))):
            key = f"{tensor.name}.lora_{side}"
            arrays[key] = _encode(value, "f32", key)
    return write_lora(out, shape.family, lora.scale * lora.rank, arrays)


def write_lora(out: Path, family: Family, alpha: float, arrays: dict[str, np.ndarray]) -> Path:
    """Write float32 arrays, by GGUF name, as a LoRA of scale `alpha` / rank; returns `out`."""
    from gguf import GGUFWriter, Keys

    with atomic_write(out) as part:
        writer = GGUFWriter(part, family.gguf)
        writer.add_type("adapter")
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
        for name, array in arrays.items():
            writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
        _write_arrays(writer, arrays.values())
    return out


def _check_adapter(adapter_dir: Path, config: Json) -> None:
    kind, bias = config.get("peft_type"), config.get("bias", "none")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    init = config.get("init_lora_weights", True)
    faults = {
        f"peft_type {kind} is not LORA: train a plain LoRA adapter": kind != "LORA",
        f"bias={bias!r} changes the base: train with bias='none'": bias != "none",
        f"init_lora_weights={init!r} changes the base: "
        "convert the adapter to plain LoRA with PEFT first": init not in ADAPTER_INITS,
    }
    for key, value in config.items():
        fault = f"{key}={value!r} cannot be written as a GGUF LoRA: train without {key}"
        faults[fault] = key not in ADAPTER_NEUTRAL and value not in (None, False, {}, [])
    faults[f"r={rank}, lora_alpha={alpha}: train with both above 0"] = not (rank and alpha)
    refuse(adapter_dir, faults)


def _read_lora(adapter_dir: Path, model: ModelShape) -> _Lora:
    """Read plain LoRA for this base from a PEFT folder; raises ExportError for anything else."""
    config = read_json(adapter_dir / "adapter_config.json")
    _check_adapter(adapter_dir, config)
    path, rank = adapter_dir / "adapter_model.safetensors", config["r"]
    with open_safetensors(path) as file:
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    linear = {tensor.source: tensor for tensor in list_linear(model)}
    pairs: dict[Tensor, dict[str, torch.Tensor]] = {}
    for key, value in sorted(values.items()):
        match = LORA_KEY.fullmatch(key)
        tensor = linear.get(f"{match[1]}.weight") if match else None
        if not match or not tensor:
            raise ExportError(
                f"{path}: {key} has no place in a GGUF LoRA: "
                "train LoRA on attention and MLP layers only"
            )
        rows, columns = tensor.shape
        expected = (rank, columns) if match[2] == "A" else (rows, rank)
        if tuple(value.shape) != expected:
            raise ExportError(
                f"{path}: {key} has shape {tuple(value.shape)}, not {expected}: "
                "it is for another base"
            )
        pairs.setdefault(tensor, {})[match[2]] = check_finite(value, f"{path}: {key}")
    for tensor, pair in pairs.items():
        for side in {"A", "B"} - pair.keys():
            raise ExportError(
                f"{path}: lora_{side}.weight is missing for {tensor.source}: save the adapter again"
            )
    if not pairs:
        raise ExportError(f"{path} holds no LoRA tensors: save the adapter again")
    scaled_by = math.sqrt(rank) if config.get("use_rslora") else rank
    return _Lora(pairs, rank, float(config["lora_alpha"]) / scaled_by)
