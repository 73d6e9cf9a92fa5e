"""A Hugging Face Llama folder as plain values in GGUF's terms: numbers, tensor names, vocabulary.

Reads config.json, the tokenizer's files and the headers of *.safetensors. Only one architecture
(LlamaForCausalLM) and one vocabulary (byte-level BPE, split as in Llama-3) are accepted; everything
else is refused by name, because llama.cpp would load many such files without an error and compute
something else. SHAPES are models by name, for plans before a download and for random models.
Nothing heavy is imported until a tensor is read.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfreward_lite.models.chat_format import WORD_SPLITS, read_template, token_text
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
TensorShape = tuple[int, ...]
ROPE_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass(frozen=True)
class Llama:
    """The numbers of config.json that GGUF needs; `rope` is None or the llama3 scaling settings.

    `packed` means that the folder holds NF4 weights, as those whose names end in -bnb-4bit.
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


@dataclass(frozen=True)
class Tensor:
    """A tensor of the base: its names in GGUF and in the folder, its shape.

    `heads` counts those whose rows llama.cpp reorders. `linear` means a linear layer of a block.
    """

    name: str
    source: str
    shape: TensorShape
    heads: int = 0
    linear: bool = False


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


def read_config(model_dir: Path) -> Llama:
    """Read config.json; raises ExportError naming the first setting that is not supported."""
    place = model_dir / "config.json"
    config = read_json(place)
    kind = config.get("architectures") or [config.get("model_type")]
    activation = config.get("hidden_act", "silu")
    # transformers 5 or 4 writes the rotation
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rope.get("rope_type") or rope.get("type") or "default"
    rotary = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    packing = config.get("quantization_config") or {}
    storage = {"bnb_4bit_quant_storage": "uint8"}
    faults = {
        f"architecture {kind} cannot be exported: choose a LlamaForCausalLM model": kind
        not in (["LlamaForCausalLM"], ["llama"]),
        f"hidden_act {activation!r} is not silu: choose a silu Llama": activation != "silu",
        "partial_rotary_factor is not 1: choose a model that rotates full heads": rotary
        not in (None, 1.0),
        f"rope scaling {scaling!r} cannot be exported: choose none or llama3": scaling
        not in ("default", "llama3"),
        f"quantization_config names {packing.get('quant_method')}, not NF4: choose the plain "
        "model, or one in bitsandbytes' NF4 (its name ends in -bnb-4bit)": bool(packing)
        and not NF4_CONFIG.items() <= (storage | packing).items(),
        **{
            f"{key} is set, which cannot be exported: choose the plain model": bool(config.get(key))
            for key in ("attention_bias", "mlp_bias", "sliding_window")
        },
    }
    refuse(model_dir, faults)
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        llama = Llama(
            hidden=hidden,
            layers=config["num_hidden_layers"],
            ffn=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            context=config["max_position_embeddings"],
            eps=config["rms_norm_eps"],
            vocab=config["vocab_size"],
            theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
            rope={key: float(rope[key]) for key in ROPE_KEYS} if scaling == "llama3" else None,
            tied=config.get("tie_word_embeddings", False),
            packed=bool(packing),
        )
    except KeyError as error:
        raise ExportError(f"{place} lacks {error}: save it again with save_pretrained") from error
    for name in ("hidden", "layers", "ffn", "heads", "kv_heads", "head_dim", "context", "vocab"):
        count = getattr(llama, name)
        if not isinstance(count, int) or count < 1:
            raise ExportError(f"{place}: {name} is {count!r}, not a count: download it again")
    if llama.heads % llama.kv_heads or llama.head_dim % 2:
        raise ExportError(
            f"{model_dir}: {heads} heads of {llama.head_dim}, {llama.kv_heads} kv heads: "
            "fix config.json"
        )
    return llama


def rope_factors(llama: Llama) -> list[float]:
    """The divisors of the head_dim/2 rotation frequencies in llama.cpp (llama3 scaling).

    The rule of Llama 3.1: wavelengths shorter than context/high stay, longer than context/low are
    slowed by `factor`, and those between are blended, frequency' = ((1−s)/factor + s)·frequency
    with s rising from 0 to 1.
    """
    assert llama.rope is not None
    low, high = llama.rope["low_freq_factor"], llama.rope["high_freq_factor"]
    factor, context = llama.rope["factor"], llama.rope["original_max_position_embeddings"]
    out = []
    for i in range(0, llama.head_dim, 2):
        wavelength = 2 * math.pi * llama.theta ** (i / llama.head_dim)
        smooth = min(max((context / wavelength - low) / (high - low), 0.0), 1.0)
        out.append(1 / ((1 - smooth) / factor + smooth))
    return out


def check_folder(model_dir: Path) -> None:
    """Raise ExportError if the folder cannot be exported; reads no weights."""
    llama = read_config(model_dir)
    read_vocabulary(model_dir, llama.vocab)
    files = find_tensors(model_dir, llama)
    for tensor in list_tensors(llama):
        with open_safetensors(files[tensor.source], "numpy") as file:
            shape = tuple(file.get_slice(tensor.source).get_shape())
        check_shape(tensor, shape, packed=f"{tensor.source}.{STATE}" in files)


def check_shape(tensor: Tensor, shape: TensorShape, packed: bool = False) -> None:
    """Raise ExportError unless a tensor has its shape; packed, two weights are a byte."""
    expected = ((math.prod(tensor.shape) + 1) // 2, 1) if packed else tensor.shape
    if shape != expected:
        raise ExportError(
            f"{tensor.source} has shape {shape}, config.json says {expected}: "
            "download the model again"
        )


def list_tensors(llama: Llama) -> list[Tensor]:
    """The tensors of the base in the order of a GGUF file."""
    hidden, q, kv = llama.hidden, llama.heads * llama.head_dim, llama.kv_heads * llama.head_dim
    projections = {
        "self_attn.q_proj": ("attn_q", (q, hidden), llama.heads),
        "self_attn.k_proj": ("attn_k", (kv, hidden), llama.kv_heads),
        "self_attn.v_proj": ("attn_v", (kv, hidden), 0),
        "self_attn.o_proj": ("attn_output", (hidden, q), 0),
        "mlp.gate_proj": ("ffn_gate", (llama.ffn, hidden), 0),
        "mlp.up_proj": ("ffn_up", (llama.ffn, hidden), 0),
        "mlp.down_proj": ("ffn_down", (hidden, llama.ffn), 0),
    }
    embeddings = (llama.vocab, hidden)
    norm = (hidden,)
    norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    tensors = [Tensor("token_embd.weight", "model.embed_tokens.weight", embeddings)]
    for layer in range(llama.layers):
        source, target = f"model.layers.{layer}", f"blk.{layer}"
        for module, name in norms.items():
            tensors.append(Tensor(f"{target}.{name}.weight", f"{source}.{module}.weight", norm))
        for module, (name, shape, heads) in projections.items():
            names = f"{target}.{name}.weight", f"{source}.{module}.weight"
            tensors.append(Tensor(*names, shape, heads, linear=True))
    tensors.append(Tensor("output_norm.weight", "model.norm.weight", norm))
    if not llama.tied:
        tensors.append(Tensor("output.weight", "lm_head.weight", embeddings))
    return tensors


def list_linear(llama: Llama) -> list[Tensor]:
    """The tensors of the blocks' linear layers, those that NF4 packs and LoRA adapts."""
    return [tensor for tensor in list_tensors(llama) if tensor.linear]


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


def find_tensors(model_dir: Path, llama: Llama) -> dict[str, Path]:
    """The file of every tensor; raises ExportError for missing and unknown tensors."""
    index, single = model_dir / "model.safetensors.index.json", model_dir / "model.safetensors"
    files = {single}
    if index.exists() and not single.exists():
        files = {model_dir / name for name in read_json(index).get("weight_map", {}).values()}
    found: dict[str, Path] = {}
    for path in sorted(files):
        with open_safetensors(path, "numpy") as file:
            found |= dict.fromkeys(file.keys(), path)
    names = {tensor.source for tensor in list_tensors(llama)}
    known = {"lm_head.weight", *names}  # transformers too ignores the copy for a tied head
    if llama.packed:
        known |= {f"{one.source}.{part}" for one in list_linear(llama) for part in PACKED_PARTS}
    # Old checkpoints stored the frequencies, which transformers ignores too.
    used = {name for name in found if not name.endswith(".rotary_emb.inv_freq")}
    if missing := sorted(names - found.keys()):
        raise ExportError(
            f"{model_dir}: {len(missing)} tensors are missing, first {missing[0]}: "
            "download it again"
        )
    if extra := sorted(used - known):
        raise ExportError(
            f"{model_dir}: tensor {extra[0]} is not part of a Llama: choose the plain model"
        )
    return found


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, their kinds in GGUF, merges as "left right", ids of roles, chat template."""

    tokens: list[str]
    kinds: list[str]
    merges: list[str]
    roles: dict[str, int]
    add_bos: bool
    template: str | None


def read_vocabulary(model_dir: Path, size: int) -> Vocabulary:
    """Read a byte-level BPE of `size` tokens (rows of the embedding).

    Raises ExportError where llama.cpp would split text in another way.
    """
    spec = read_json(model_dir / "tokenizer.json")
    settings = read_json(model_dir / "tokenizer_config.json")
    _check_tokenizer(model_dir, spec)
    added = {token["content"]: token for token in spec["added_tokens"]}
    ids = spec["model"]["vocab"] | {content: token["id"] for content, token in added.items()}
    if sorted(ids.values()) != list(range(len(ids))) or len(ids) > size:
        raise ExportError(
            f"{model_dir}: token ids of tokenizer.json do not fit vocab_size {size}: "
            "use the model's own"
        )
    roles = {}
    for role in ("bos", "eos", "pad"):
        token = token_text(settings.get(f"{role}_token"))
        if token in ids:
            roles[role] = ids[token]
        elif token is not None or role != "pad":
            raise ExportError(
                f"{model_dir}: tokenizer_config.json: {role}_token {token!r} is no token: name one"
            )
    for role in ("eot", "eom"):
        if (token := f"<|{role}_id|>") in ids:
            roles[role] = ids[token]
    template = read_template(model_dir, settings)
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    tokens = sorted(ids, key=ids.__getitem__)
    filler = size - len(tokens)  # embedding rows that no token uses
    kinds = [
        "NORMAL" if token not in added else "CONTROL" if added[token]["special"] else "USER_DEFINED"
        for token in tokens
    ]
    return Vocabulary(
        tokens=tokens + [f"[PAD{i}]" for i in range(filler)],
        kinds=kinds + ["UNUSED"] * filler,
        merges=[
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in spec["model"]["merges"]
        ],
        roles=roles,
        # Off unless the folder says otherwise: the chat template writes BOS, and llama.cpp would
        # add a second one.
        add_bos=bool(settings.get("add_bos_token", False)),
        template=template,
    )


def _check_tokenizer(model_dir: Path, spec: Json) -> None:
    model, pre, added = spec["model"], spec.get("pre_tokenizer") or {}, spec["added_tokens"]
    steps = pre.get("pretokenizers", ())
    split, to_bytes = (steps or [{}, {}])[:2]
    is_llama3 = (
        len(steps) == 2
        and split.get("pattern") == {"Regex": WORD_SPLITS["llama-bpe"]}
        and split.get("behavior") == "Isolated"
        and not split.get("invert")
        and to_bytes.get("type") == "ByteLevel"
        and not to_bytes.get("add_prefix_space")
        and not to_bytes.get("use_regex", True)
    )
    affixes = ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    strips = ("lstrip", "rstrip", "single_word")
    faults = {
        "it is not BPE": model.get("type") != "BPE",
        "it normalizes text": spec.get("normalizer") is not None,
        "ignore_merges is off": not model.get("ignore_merges"),
        "it uses dropout, byte_fallback or affixes": any(model.get(key) for key in affixes),
        "its pre-tokenizer is not Llama-3's": not is_llama3,
        "an added token swallows spaces": any(t.get(key) for t in added for key in strips),
    }
    refuse(model_dir / "tokenizer.json", faults, ": choose a model with Llama-3's tokenizer")


SHAPES = {
    "10m": Llama(256, 4, 768, 4, 2, 64, 4096),  # for tests
    "250m": Llama(1024, 16, 2816, 16, 4, 64, 32000),
    "1b": Llama(2048, 16, 8192, 32, 8, 64, 128256, tied=True),  # Llama-3.2-1B
    "3b": Llama(3072, 28, 8192, 24, 8, 128, 128256, tied=True),  # Llama-3.2-3B
    "llama-3-8b": Llama(4096, 32, 14336, 32, 8, 128, 128256),
}

# Repositories that presets name.
BASES = {
    "unsloth/llama-3-8b-Instruct-bnb-4bit": "llama-3-8b",
    "unsloth/Llama-3.2-3B-Instruct-bnb-4bit": "3b",
    "unsloth/Llama-3.2-1B-Instruct-bnb-4bit": "1b",
}
