"""A Hugging Face folder as plain values in GGUF's terms: numbers and tensor names.

Reads config.json and the headers of *.safetensors; the vocabulary is in `vocabulary`. Families that
are not in `families` are refused by name. SHAPES are models by name, for plans before a download
and for random models. Nothing heavy is imported until a tensor is read.
"""

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from selfreward_lite.config.settings import EngineSettings
from selfreward_lite.models.families import (
    FAMILIES,
    LLAMA,
    QWEN3,
    UNSUPPORTED,
    WINDOW_PATTERN,
    Family,
    list_families,
)
from selfreward_lite.system.errors import ExportError
from selfreward_lite.system.files import Json

# Tensors beside a weight that bitsandbytes has packed, after its name and a dot; the last tells how
# it was packed.
STATE = "quant_state.bitsandbytes__nf4"
PACKED_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", STATE)
NF4_CONFIG = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_quant_storage": "uint8",
}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = 2e9  # bytes of a file of weights, which are in memory at once
DEFAULT_THETA = 10000.0  # base of the rotation's frequencies where nothing is said
CELL_STEP = 256  # llama.cpp rounds the cells of a sequence up to a multiple
TensorShape = tuple[int, ...]
ROPE_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass(frozen=True)
class ModelShape:
    """The numbers of config.json that GGUF needs; `rope` is None or the llama3 scaling settings.

    Layers with a `window` see that many tokens back, and rotate by `window_theta`. `packed` means
    that the folder holds NF4 weights, as those whose names end in -bnb-4bit.
    """

    hidden: int
    layers: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    context: int = 8192
    eps: float = 1e-5
    theta: float = 500000.0
    rope: dict[str, float] | None = None
    packed: bool = False
    family: Family = LLAMA
    window: int | None = None
    window_theta: float | None = None


def find_longest(engine: EngineSettings, shape: ModelShape) -> int:
    """Return the most tokens of one sequence, prompt and reply, as llama.cpp gives them."""
    return min(shape.context, math.ceil(engine.sequence_cells / CELL_STEP) * CELL_STEP)


# Fields of ModelShape by their keys in GGUF, behind the architecture's name.
GGUF_NUMBERS = {
    "context": "context_length",
    "hidden": "embedding_length",
    "layers": "block_count",
    "ffn": "feed_forward_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "theta": "rope.freq_base",
    "eps": "attention.layer_norm_rms_epsilon",
    "window": "attention.sliding_window",
    "window_theta": "rope.freq_base_swa",
}
# More keys that are the size of a head.
GGUF_HEAD_SIZES = ("attention.value_length", "rope.dimension_count")


@dataclass(frozen=True)
class Tensor:
    """A tensor of the base: its names in GGUF and in the folder, its shape.

    `heads` counts those whose rows llama.cpp reorders. `linear` means a linear layer of a block.
    GGUF's values are higher by `offset`.
    """

    name: str
    source: str
    shape: TensorShape
    heads: int = 0
    linear: bool = False
    offset: float = 0.0


def read_json(path: Path) -> Json:
    """The object in a JSON file; raises ExportError if there is none."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{path} cannot be read ({error}): give a folder written by save_pretrained"
        ) from error
    if not isinstance(data, dict):
        raise ExportError(f"{path} holds no JSON object: give a folder written by save_pretrained")
    return data


def refuse(place: Path, faults: dict[str, bool], advice: str = "") -> None:
    """Raise ExportError for the first of the faults that is there, naming the place."""
    for fault, is_there in faults.items():
        if is_there:
            raise ExportError(f"{place}: {fault}{advice}")


def find_family(config: Json, place: Path) -> Family:
    """The family of a config.json; raises ExportError, naming those there are, if it has none."""
    named, kind = config.get("architectures") or [], config.get("model_type")
    names = [str(name) for name in (named if isinstance(named, list) else [named])]
    family = FAMILIES.get(names[0]) if len(names) == 1 else None
    if family is None:
        raise ExportError(
            f"{place}: {', '.join(names) or kind} is no family that is supported; choose a model "
            f"of one of these: {list_families()}"
        )
    if kind != family.model_type:  # by which transformers chooses what it computes
        raise ExportError(
            f"{place}: model_type {kind} is not {family.model_type}, as for {names[0]}: "
            "choose the plain model"
        )
    return family


def read_config(model_dir: Path) -> ModelShape:
    """Read config.json; raises ExportError naming the first setting that is not supported."""
    place = model_dir / "config.json"
    config = read_json(place)
    family = find_family(config, model_dir)
    try:
        shape = _read_shape(family.defaults | config, family, model_dir)
    except KeyError as error:
        raise ExportError(f"{place} lacks {error}: save it again with save_pretrained") from error
    except (AttributeError, TypeError, ValueError, ArithmeticError) as error:
        raise ExportError(
            f"{place} has a value of a wrong kind ({error}): save it again with save_pretrained"
        ) from error
    check_counts(shape, place)
    return shape


def check_counts(shape: ModelShape, place: Path) -> None:
    """Raise ExportError where numbers are no counts, or do not fit each other."""
    counts = ["hidden", "layers", "ffn", "heads", "kv_heads", "head_dim", "context", "vocab"]
    for name in counts + ["window"] * shape.family.window:
        count = getattr(shape, name)
        if not isinstance(count, int) or count < 1:
            raise ExportError(f"{place}: {name} is {count!r}, not a count: download it again")
    if shape.heads % shape.kv_heads or shape.head_dim % 2:
        raise ExportError(
            f"{place}: {shape.heads} heads of {shape.head_dim}, {shape.kv_heads} kv heads: "
            "download it again"
        )


def _read_shape(config: Json, family: Family, model_dir: Path) -> ModelShape:
    activation = config.get("hidden_act") or config.get("hidden_activation") or family.activation
    # transformers 4 or 5 writes the rotation, by kind of layer where some have a window
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    local = rope.get("sliding_attention") or {"rope_theta": config.get("rope_local_base_freq")}
    rope = rope.get("full_attention") or rope
    scaling = rope.get("rope_type") or rope.get("type") or "default"
    local_scaling = local.get("rope_type") or "default"
    packing = config.get("quantization_config") or {}
    storage = {"bnb_4bit_quant_storage": "uint8"}
    has_window = config.get("sliding_window") and config.get("use_sliding_window", True)
    faults = {
        f"hidden_act {activation!r} is not {family.activation}: choose the plain model": activation
        != family.activation,
        f"rope scaling {scaling!r} cannot be exported: choose none or llama3": scaling
        not in ("default", "llama3"),
        f"rope scaling {local_scaling!r} of layers with a window cannot be exported: choose the "
        "plain model": local_scaling != "default",
        f"quantization_config names {packing.get('quant_method')}, not NF4: choose the plain "
        "model, or one in bitsandbytes' NF4 (its name ends in -bnb-4bit)": bool(packing)
        and not NF4_CONFIG.items() <= (storage | packing).items(),
        "sliding_window is set, which cannot be exported: choose the plain model": bool(has_window)
        and not family.window,
        "layers with a sliding window are not five of six: choose the plain model": family.window
        and not _has_pattern(config),
        "query_pre_attn_scalar is not head_dim: choose the plain model": config.get(
            "query_pre_attn_scalar", config.get("head_dim")
        )
        != config.get("head_dim"),
        **{
            f"{key} is not {plain}, which cannot be exported: choose the plain model": any(
                part.get(key) not in (None, plain) for part in (config, rope)
            )
            for key, plain in UNSUPPORTED.items()
        },
    }
    refuse(model_dir, faults)
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    return ModelShape(
        hidden=hidden,
        layers=config["num_hidden_layers"],
        ffn=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        context=config["max_position_embeddings"],
        eps=float(config["rms_norm_eps"]),
        vocab=config["vocab_size"],
        theta=float(rope.get("rope_theta") or config.get("rope_theta") or DEFAULT_THETA),
        rope={key: float(rope[key]) for key in ROPE_KEYS} if scaling == "llama3" else None,
        tied=bool(config.get("tie_word_embeddings")),
        packed=bool(packing),
        family=family,
        window=config["sliding_window"] if family.window else None,
        window_theta=float(local.get("rope_theta") or DEFAULT_THETA) if family.window else None,
    )


def build_config(model: ModelShape) -> Json:
    """What config.json says of a model, for transformers and `read_config`."""
    rope: Json = {"rope_type": "default", "rope_theta": model.theta}
    if model.rope:
        context = int(model.rope["original_max_position_embeddings"])
        rope |= model.rope | {"rope_type": "llama3", "original_max_position_embeddings": context}
    window: Json = {"sliding_window": model.window}
    if model.window is not None:
        local = {"rope_type": "default", "rope_theta": model.window_theta}
        rope = {"full_attention": rope, "sliding_attention": local}
        window |= {
            "sliding_window_pattern": WINDOW_PATTERN,
            "query_pre_attn_scalar": model.head_dim,
        }
    return {
        "architectures": [model.family.architecture],
        "model_type": model.family.model_type,
        "hidden_act": model.family.activation,
        "hidden_activation": model.family.activation,
        "hidden_size": model.hidden,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.eps,
        "rope_parameters": rope,
        **window,
        "vocab_size": model.vocab,
        "tie_word_embeddings": model.tied,
        # Without a version, transformers warns of a wrong tokenizer.
        "transformers_version": "5.0.0",
    }


def list_layer_types(layers: int) -> list[str]:
    """The kinds of layers of a model with a window, as config.json names them."""
    return [
        "full_attention" if number % WINDOW_PATTERN == 0 else "sliding_attention"
        for number in range(1, layers + 1)
    ]


def _has_pattern(config: Json) -> bool:
    """Whether the last of every WINDOW_PATTERN layers sees everything, and the others a window."""
    if named := config.get("layer_types"):
        return bool(named == list_layer_types(config.get("num_hidden_layers", 0)))
    return config.get("sliding_window_pattern") == WINDOW_PATTERN


def rope_factors(model: ModelShape) -> list[float]:
    """The divisors of the head_dim/2 rotation frequencies in llama.cpp (llama3 scaling).

    The rule of Llama 3.1: wavelengths shorter than context/high stay, longer than context/low are
    slowed by `factor`, and those between are blended, frequency' = ((1−s)/factor + s)·frequency
    with s rising from 0 to 1.
    """
    assert model.rope is not None
    low, high = model.rope["low_freq_factor"], model.rope["high_freq_factor"]
    factor, context = model.rope["factor"], model.rope["original_max_position_embeddings"]
    out = []
    for i in range(0, model.head_dim, 2):
        wavelength = 2 * math.pi * model.theta ** (i / model.head_dim)
        smooth = min(max((context / wavelength - low) / (high - low), 0.0), 1.0)
        out.append(1 / ((1 - smooth) / factor + smooth))
    return out


def check_shape(tensor: Tensor, shape: TensorShape, packed: bool = False) -> None:
    """Raise ExportError unless a tensor has its shape; packed, two weights are a byte."""
    expected = ((math.prod(tensor.shape) + 1) // 2, 1) if packed else tensor.shape
    if shape != expected:
        raise ExportError(
            f"{tensor.source} has shape {shape}, config.json says {expected}: "
            "download the model again"
        )


def list_tensors(model: ModelShape) -> list[Tensor]:
    """The tensors of the base in the order of a GGUF file."""
    family = model.family
    hidden, q, kv = model.hidden, model.heads * model.head_dim, model.kv_heads * model.head_dim
    q_heads, k_heads = (model.heads, model.kv_heads) if family.permuted else (0, 0)
    projections = {
        "self_attn.q_proj": ("attn_q", (q, hidden), q_heads),
        "self_attn.k_proj": ("attn_k", (kv, hidden), k_heads),
        "self_attn.v_proj": ("attn_v", (kv, hidden), 0),
        "self_attn.o_proj": ("attn_output", (hidden, q), 0),
        "mlp.gate_proj": ("ffn_gate", (model.ffn, hidden), 0),
        "mlp.up_proj": ("ffn_up", (model.ffn, hidden), 0),
        "mlp.down_proj": ("ffn_down", (hidden, model.ffn), 0),
    }
    vectors = {module: (name, hidden) for module, name in family.norms.items()}
    if family.head_norms:
        for side in "qk":
            vectors[f"self_attn.{side}_norm"] = (f"attn_{side}_norm", model.head_dim)
    embeddings = (model.vocab, hidden)
    tensors = [Tensor("token_embd.weight", "model.embed_tokens.weight", embeddings)]
    for layer in range(model.layers):
        source, target = f"model.layers.{layer}", f"blk.{layer}"
        for module, (name, size) in vectors.items():
            names = f"{target}.{name}.weight", f"{source}.{module}.weight"
            tensors.append(Tensor(*names, (size,), offset=family.norm_offset))
        for module, (name, shape, heads) in projections.items():
            names = f"{target}.{name}.weight", f"{source}.{module}.weight"
            tensors.append(Tensor(*names, shape, heads, linear=True))
            if module.removeprefix("self_attn.") in family.biased:
                names = f"{target}.{name}.bias", f"{source}.{module}.bias"
                tensors.append(Tensor(*names, shape[:1]))
    norm = Tensor("output_norm.weight", "model.norm.weight", (hidden,), offset=family.norm_offset)
    tensors.append(norm)
    if not model.tied:
        tensors.append(Tensor("output.weight", "lm_head.weight", embeddings))
    return tensors


def list_linear(model: ModelShape) -> list[Tensor]:
    """The tensors of the blocks' linear layers, those that NF4 packs and LoRA adapts."""
    return [tensor for tensor in list_tensors(model) if tensor.linear]


@contextmanager
def open_safetensors(path: Path, framework: Literal["pt", "numpy"] = "pt") -> Iterator[Any]:
    """Give the open file; a broken one is an ExportError. "numpy" does not import torch."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ExportError(
            f"{path} cannot be read ({error}): copy, download or save it again"
        ) from error


def find_tensors(model_dir: Path, model: ModelShape) -> dict[str, Path]:
    """The file of every tensor; raises ExportError for missing and unknown tensors."""
    found: dict[str, Path] = {}
    for name in list_weight_files(model_dir):
        with open_safetensors(model_dir / name, "numpy") as file:
            found |= dict.fromkeys(file.keys(), model_dir / name)
    check_names(model_dir, model, found)
    return found


def split_weights(weights: Iterable[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield tensors by their names, about SHARD bytes at a time."""
    shard: dict[str, Any] = {}
    for name, tensor in weights:
        shard[name] = tensor
        if sum(one.nbytes for one in shard.values()) > SHARD:
            yield shard
            shard = {}
    if shard:
        yield shard


def write_weights(
    folder: Path, shards: Iterable[dict[str, Any]], save: Callable[..., None]
) -> list[str]:
    """Write each shard as a file, and the index of all; returns the names of the tensors.

    `save` is the `save_file` of safetensors for their kind, torch's or numpy's.
    """
    files: dict[str, str] = {}
    size = 0
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}.safetensors"
        save(shard, folder / name, metadata={"format": "pt"})
        files |= dict.fromkeys(shard, name)
        size += sum(tensor.nbytes for tensor in shard.values())
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": files})
    return list(files)


def write_json(path: Path, value: Any) -> None:
    """Write a value as an indented file."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def list_weight_files(model_dir: Path) -> list[str]:
    """The files that hold a model's weights, by its index unless there is a single file."""
    index = model_dir / INDEX
    if (model_dir / SINGLE).exists() or not index.exists():
        return [SINGLE]
    return sorted(set(read_json(index).get("weight_map", {}).values()))


def check_names(model_dir: Path, model: ModelShape, found: Collection[str]) -> None:
    """Raise ExportError where a tensor of the model is missing, or one is not part of it."""
    names = {tensor.source for tensor in list_tensors(model)}
    known = {"lm_head.weight", *names}  # transformers too ignores the copy for a tied head
    if model.packed:
        known |= {f"{one.source}.{part}" for one in list_linear(model) for part in PACKED_PARTS}
    # Old checkpoints stored the frequencies, which transformers ignores too.
    used = {name for name in found if not name.endswith(".rotary_emb.inv_freq")}
    if missing := sorted(names - set(found)):
        raise ExportError(
            f"{model_dir}: {len(missing)} tensors are missing, first {missing[0]}: "
            "download it again"
        )
    if extra := sorted(used - known):
        raise ExportError(
            f"{model_dir}: tensor {extra[0]} is not part of such a model: choose the plain one"
        )


_QWEN3_8B = ModelShape(
    4096, 36, 12288, 32, 8, 128, 151936, context=40960, eps=1e-6, theta=1000000.0, family=QWEN3
)
SHAPES = {
    "10m": ModelShape(256, 4, 768, 4, 2, 64, 4096),  # for tests
    # SmolLM2-135M-Instruct
    "135m": ModelShape(
        576, 30, 1536, 9, 3, 64, 49152, tied=True, context=8192, eps=1e-5, theta=100000.0
    ),
    "250m": ModelShape(1024, 16, 2816, 16, 4, 64, 32000),
    "1b": ModelShape(2048, 16, 8192, 32, 8, 64, 128256, tied=True),  # Llama-3.2-1B
    "3b": ModelShape(3072, 28, 8192, 24, 8, 128, 128256, tied=True),  # Llama-3.2-3B
    "llama-3-8b": ModelShape(4096, 32, 14336, 32, 8, 128, 128256),
    "qwen3-1.7b": replace(_QWEN3_8B, hidden=2048, layers=28, ffn=6144, heads=16, tied=True),
    # Qwen3-4B-Instruct-2507
    "qwen3-4b": replace(
        _QWEN3_8B, hidden=2560, ffn=9728, tied=True, context=262144, theta=5000000.0
    ),
    "qwen3-8b": _QWEN3_8B,
}

# Repositories that presets name, all of them in NF4.
BASES = {
    "unsloth/llama-3-8b-Instruct-bnb-4bit": "llama-3-8b",
    "unsloth/Llama-3.2-3B-Instruct-bnb-4bit": "3b",
    "unsloth/Llama-3.2-1B-Instruct-bnb-4bit": "1b",
    "unsloth/Qwen3-8B-bnb-4bit": "qwen3-8b",
    "unsloth/Qwen3-4B-Instruct-2507-bnb-4bit": "qwen3-4b",
    "unsloth/Qwen3-1.7B-bnb-4bit": "qwen3-1.7b",
}
