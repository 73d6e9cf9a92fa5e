"""Hugging Face folders → GGUF: a Llama base, a PEFT LoRA adapter.

    base_to_gguf       config.json, tokenizer.json, *.safetensors  →  base.gguf  (as it is, as NF4 training held it, or merged)
    adapter_to_gguf    adapter_config.json, adapter_model.safetensors  →  adapter.gguf

Works on folders only: no network, no run folder, no knowledge of stages; what may be exported at all is decided in
`llama_folder`, and here for adapters; whether the result is right is proved in `parity`. Files appear whole or not at
all. torch, bitsandbytes and gguf are imported inside functions: importing this file is cheap.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfreward_lite.models import nf4
from selfreward_lite.models.hf_folder import (
    PACKED_PARTS,
    STATE,
    Llama,
    Tensor,
    Vocabulary,
    check_shape,
    find_tensors,
    list_tensors,
    read_config,
    read_json,
    read_safetensors,
    read_vocabulary,
    rope_factors,
)
from selfreward_lite.system.errors import ExportError
from selfreward_lite.system.files import atomic_write

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGUFWriter

Weights = Literal["original", "nf4"]
Dtype = Literal["f32", "f16", "q8_0"]
LoadDtype = Literal["float32", "float16", "bfloat16"]

# Of adapter_config.json: what never changes the result, given that each tensor in the file is checked and written.
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

# Initialisations that leave the base weights alone; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA move them.
ADAPTER_INITS = (True, False, "gaussian", "orthogonal", "eva")
LORA_KEY = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(\w+\.\w+)\.lora_([AB])\.weight")


def write_arrays(writer: GGUFWriter, arrays: Iterable[np.ndarray]) -> None:
    """Header, settings, tensor table, then the arrays in the order in which they were announced."""
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for array in arrays:
            writer.write_tensor_data(array)
    finally:
        writer.close()


def _permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows from HF's order in a head (first halves, then second halves) to the interleaved pairs llama.cpp rotates."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def _finite(tensor: torch.Tensor, label: str) -> torch.Tensor:
    if not tensor.isfinite().all():
        raise ExportError(
            f"{label} holds NaN or infinity: do not use these weights, go back to the last good ones"
        )
    return tensor


def _encode(tensor: torch.Tensor, dtype: Dtype, label: str) -> np.ndarray:
    """Numpy array as GGUF stores it (bytes for q8_0). Raises ExportError where float16 overflows."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    with np.errstate(over="ignore"):
        data = quantize(tensor.float().contiguous().numpy(), GGMLQuantizationType[dtype.upper()])
    if dtype == "f16" and not np.isfinite(data).all():
        raise ExportError(f"{label} holds values above 65504: export with dtype f32")
    return data


# ---------------------------------------------------------------------------------------------- the base


def base_to_gguf(
    model_dir: Path,
    out: Path,
    *,
    weights: Weights,
    dtype: Dtype,
    load_dtype: LoadDtype = "float32",
    adapter_dir: Path | None = None,
) -> Path:
    """Write a Llama folder as `out`, one tensor in memory at a time; returns `out`.

    `weights="nf4"` replaces each linear layer of the blocks by what BitsAndBytesConfig(load_in_4bit, nf4, double quant)
    makes of it, so that llama.cpp runs the model a QLoRA adapter was trained on; a folder that holds NF4 already is unpacked
    either way. `load_dtype` is the `dtype=` with
    which transformers loads the model for training: every weight is rounded to it first. `dtype` is how matrices are
    stored; norms are always f32. With `adapter_dir`, a PEFT LoRA folder, the full model is written: W + scale·B·A
    (LoRA, arXiv 2106.09685, section 4.1). Raises ExportError where GGUF cannot express the model or a file is broken.
    """
    from gguf import GGUFWriter

    if weights not in ("original", "nf4") or dtype not in ("f32", "f16", "q8_0"):
        raise ExportError(
            f"weights={weights!r}, dtype={dtype!r}: choose original or nf4, and f32, f16 or q8_0"
        )
    llama = read_config(model_dir)
    lora = _read_lora(adapter_dir, llama) if adapter_dir else None
    tensors = list_tensors(llama)
    files = find_tensors(model_dir, llama)
    with atomic_write(out) as part:
        writer = GGUFWriter(part, "llama")
        add_settings(writer, llama, dtype)
        writer.add_string("selfreward.weights", "nf4" if llama.packed else weights)
        add_vocabulary(writer, read_vocabulary(model_dir, llama.vocab))
        rope = (
            [Tensor("rope_freqs.weight", "rope_freqs", (llama.head_dim // 2,))]
            if llama.rope
            else []
        )
        for tensor in rope + tensors:
            _announce(writer, tensor, dtype)
        loaded = _loaded(tensors, files, weights == "nf4" and not llama.packed, load_dtype)
        if lora:
            loaded = (
                (tensor, _finite(lora.merged(tensor, value), tensor.source))
                for tensor, value in loaded
            )
        write_arrays(writer, _base_arrays(llama, loaded, dtype))
    return out


def _loaded(
    tensors: list[Tensor], files: dict[str, Path], pack: bool, load_dtype: LoadDtype
) -> Iterator[tuple[Tensor, torch.Tensor]]:
    """Each tensor with its values as the loaded model would hold them; `pack` says that loading makes NF4 of the linear ones."""
    import torch

    for tensor in tensors:
        value = _finite(_stored(tensor, files).to(getattr(torch, load_dtype)), tensor.source)
        yield tensor, nf4.round_to_nf4(value) if tensor.linear and pack else value


def _stored(tensor: Tensor, files: dict[str, Path]) -> torch.Tensor:
    """A tensor as its file holds it, unpacked if it is NF4."""

    def read(name: str) -> torch.Tensor:
        return read_safetensors(files[name], lambda file: file.get_tensor(name))

    value = read(tensor.source)
    parts = {
        part: read(f"{tensor.source}.{part}")
        for part in PACKED_PARTS
        if f"{tensor.source}.{part}" in files
    }
    check_shape(tensor, tuple(value.shape), packed=STATE in parts)
    if not parts:
        return value
    try:
        value = nf4.unpack_nf4(value, parts)
    except ValueError as error:
        raise ExportError(
            f"{files[tensor.source]}: {tensor.source} cannot be unpacked ({error}): download it again"
        ) from None
    check_shape(tensor, tuple(value.shape))
    return value


def _base_arrays(
    llama: Llama, loaded: Iterable[tuple[Tensor, torch.Tensor]], dtype: Dtype
) -> Iterator[np.ndarray]:
    import torch

    if llama.rope:
        yield _encode(torch.tensor(rope_factors(llama)), "f32", "rope_freqs")
    for tensor, value in loaded:
        value = _permute(value, tensor.heads) if tensor.heads else value
        yield _encode(value, _stored_as(tensor, dtype), tensor.source)


def _stored_as(tensor: Tensor, dtype: Dtype) -> Dtype:
    return dtype if len(tensor.shape) == 2 else "f32"


def _announce(writer: GGUFWriter, tensor: Tensor, dtype: Dtype) -> None:
    """Enter name, shape and size, so that the data can follow one tensor at a time."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType[_stored_as(tensor, dtype).upper()]
    block, size = GGML_QUANT_SIZES[kind]
    if tensor.shape[-1] % block:
        raise ExportError(
            f"{tensor.source}: rows of {tensor.shape[-1]} do not fit {dtype} blocks of {block}: use f16"
        )
    stored_bytes = math.prod(tensor.shape) // block * size
    writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), stored_bytes, kind)


def add_settings(writer: GGUFWriter, llama: Llama, dtype: str) -> None:
    """Enter the numbers of the architecture, and how most matrices are stored: f32, f16, q8_0 or q4_k_m."""
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    kinds = {
        "f32": LlamaFileType.ALL_F32,
        "f16": LlamaFileType.MOSTLY_F16,
        "q8_0": LlamaFileType.MOSTLY_Q8_0,
        "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    }
    writer.add_type("model")
    writer.add_file_type(kinds[dtype])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_context_length(llama.context)
    writer.add_embedding_length(llama.hidden)
    writer.add_block_count(llama.layers)
    writer.add_feed_forward_length(llama.ffn)
    writer.add_head_count(llama.heads)
    writer.add_head_count_kv(llama.kv_heads)
    writer.add_key_length(llama.head_dim)
    writer.add_value_length(llama.head_dim)
    writer.add_rope_dimension_count(llama.head_dim)
    writer.add_rope_freq_base(llama.theta)
    writer.add_layer_norm_rms_eps(llama.eps)
    writer.add_vocab_size(llama.vocab)


def add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    """Enter the tokens, their kinds, the merges, the special roles and the chat template."""
    from gguf import TokenType

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([TokenType[kind] for kind in vocabulary.kinds])
    writer.add_token_merges(vocabulary.merges)
    add = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "pad": writer.add_pad_token_id,
        "eot": writer.add_eot_token_id,
        "eom": writer.add_eom_token_id,
    }
    for role, token_id in vocabulary.roles.items():
        add[role](token_id)
    writer.add_add_bos_token(vocabulary.add_bos)
    if vocabulary.template:
        writer.add_chat_template(vocabulary.template)


# ---------------------------------------------------------------------------------------------- the adapter


@dataclass(frozen=True)
class _Lora:
    """A plain LoRA adapter: `pairs` of (A (rank, in), B (out, rank)) by block and HF module; alpha/r or alpha/√r is `scale`."""

    pairs: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]]
    rank: int
    scale: float

    def merged(self, tensor: Tensor, value: torch.Tensor) -> torch.Tensor:
        """The weight with the adapter's change added, in float32; as it is where the adapter changes nothing."""
        place = re.fullmatch(r"model\.layers\.(\d+)\.(.*)\.weight", tensor.source)
        pair = self.pairs.get((int(place[1]), place[2])) if place else None
        return (
            value
            if pair is None
            else value.float() + self.scale * (pair[1].float() @ pair[0].float())
        )


def adapter_to_gguf(adapter_dir: Path, base_config_dir: Path, out: Path) -> Path:
    """Write a PEFT LoRA folder as a GGUF LoRA in f32; returns `out`.

    llama.cpp multiplies by alpha/r. Rank-stabilised LoRA means alpha/√r, so alpha·√r is written for it.
    Raises ExportError, by name, for everything that is not plain LoRA on the seven projections of the blocks.
    """
    llama = read_config(base_config_dir)
    lora = _read_lora(adapter_dir, llama)
    return write_lora(out, lora.scale * lora.rank, _adapter_arrays(lora, llama))


def write_lora(out: Path, alpha: float, arrays: dict[str, np.ndarray]) -> Path:
    """Write float32 arrays, by GGUF name, as the LoRA that llama.cpp scales by `alpha` / rank; returns `out`."""
    from gguf import GGUFWriter, Keys

    with atomic_write(out) as part:
        writer = GGUFWriter(part, "llama")
        writer.add_type("adapter")
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
        for name, array in arrays.items():
            writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
        write_arrays(writer, arrays.values())
    return out


def _check_adapter(adapter_dir: Path, config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ExportError(
            f"{adapter_dir}: peft_type {config.get('peft_type')} is not LORA: train a plain LoRA adapter"
        )
    if config.get("bias", "none") != "none":
        raise ExportError(
            f"{adapter_dir}: bias={config['bias']!r} changes the base: train with bias='none'"
        )
    if config.get("init_lora_weights", True) not in ADAPTER_INITS:
        raise ExportError(
            f"{adapter_dir}: init_lora_weights={config['init_lora_weights']!r} changes the base: "
            "convert the adapter to plain LoRA with PEFT first"
        )
    for key, value in config.items():
        if key not in ADAPTER_NEUTRAL and value not in (None, False, {}, []):
            raise ExportError(
                f"{adapter_dir}: {key}={value!r} cannot be written as a GGUF LoRA: train without {key}"
            )
    if not config.get("r") or not config.get("lora_alpha"):
        raise ExportError(
            f"{adapter_dir}: r={config.get('r')}, lora_alpha={config.get('lora_alpha')}: "
            "train with both above 0"
        )


def _read_lora(adapter_dir: Path, llama: Llama) -> _Lora:
    """A PEFT folder that holds plain LoRA for this base, whole and finite, or ExportError."""
    config = read_json(adapter_dir / "adapter_config.json")
    _check_adapter(adapter_dir, config)
    path, rank = adapter_dir / "adapter_model.safetensors", config["r"]
    tensors = read_safetensors(
        path, lambda file: {name: file.get_tensor(name) for name in list(file.keys())}
    )
    projections, pairs = llama.projections(), {}
    for key, tensor in sorted(tensors.items()):
        match = LORA_KEY.fullmatch(key)
        if not match or match[2] not in projections or int(match[1]) >= llama.layers:
            raise ExportError(
                f"{path}: {key} has no place in a GGUF LoRA: train LoRA on attention and MLP layers only"
            )
        _, (rows, columns), _ = projections[match[2]]
        side, other = ("A", "B") if match[3] == "A" else ("B", "A")
        expected = (rank, columns) if side == "A" else (rows, rank)
        if tuple(tensor.shape) != expected:
            raise ExportError(
                f"{path}: {key} has shape {tuple(tensor.shape)}, not {expected}: it is for another base"
            )
        if (partner := key.replace(f".lora_{side}.", f".lora_{other}.")) not in tensors:
            raise ExportError(f"{path}: {partner} is missing: save the adapter again")
        if side == "A":
            pairs[int(match[1]), match[2]] = (
                _finite(tensor, f"{path}: {key}"),
                _finite(tensors[partner], f"{path}: {partner}"),
            )
    if not pairs:
        raise ExportError(f"{path} holds no LoRA tensors: save the adapter again")
    return _Lora(
        pairs,
        rank,
        float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank),
    )


def _adapter_arrays(lora: _Lora, llama: Llama) -> dict[str, np.ndarray]:
    """GGUF name → f32 array: lora_a (rank, in), lora_b (out, rank), the rows of B ordered as the base's rows are."""
    projections, arrays = llama.projections(), {}
    for (layer, module), (left, right) in lora.pairs.items():
        name, _, heads = projections[module]
        for side, tensor in (("a", left), ("b", _permute(right, heads) if heads else right)):
            key = f"blk.{layer}.{name}.weight.lora_{side}"
            arrays[key] = _encode(tensor, "f32", key)
    return arrays
