"""A GGUF as a Hugging Face folder: who has only the GGUF of a chat model can train on it.

The weights are unpacked to 16 bits, the tokenizer is built from the GGUF's own vocabulary.
transformers reads GGUFs too, but splits digits as GPT-2 does, and takes SmolLM2's beginning of a
turn for its end.
"""

from __future__ import annotations

import hashlib
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from selfreward_lite.data import hub
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.checks import check_files
from selfreward_lite.models.families import FAMILIES, WINDOW_PATTERN, Family, list_families
from selfreward_lite.models.hf_folder import (
    DEFAULT_THETA,
    GGUF_HEAD_SIZES,
    GGUF_NUMBERS,
    ROPE_KEYS,
    ModelShape,
    Tensor,
    build_config,
    check_counts,
    list_tensors,
    read_config,
    rope_factors,
    split_weights,
    write_json,
    write_weights,
)
from selfreward_lite.models.vocabulary import (
    KINDS,
    SUPPORTED,
    Vocabulary,
    build_merges,
    write_tokenizer,
)
from selfreward_lite.system.errors import ConfigError, ExportError, UserError
from selfreward_lite.system.files import check_disk

if TYPE_CHECKING:
    Read = Callable[..., Any]  # a value of the file by its key; a default if it may be missing
    Stored = Mapping[str, Any]  # the reader's tensors by name

# What the reader raises for a file that is none, or is cut.
BROKEN = (ValueError, LookupError, OSError, AttributeError, TypeError)
# Roles of tokens, by their names in metadata. Three of them end a turn.
ROLES = {"bos": "bos", "pad": "padding", "unk": "unknown", "eot": "eot", "eos": "eos", "eom": "eom"}
ENDS = ("eot", "eos", "eom")
# Part of a model in several files, by its name.
SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf")
JOIN = "join the parts with `llama-gguf-split --merge`, and give the whole file"
ROPE = "rope_freqs.weight"
# The context before Llama 3.1's was stretched, and others for small models.
ROPE_CONTEXTS = (8192.0, *(2.0**power for power in range(4, 21)))
# Numbers that change what is computed, and the values at which they do not.
PLAIN: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "rope.scaling.type": ("none", "linear"),
    "rope.scaling.factor": (1.0, 0.0),
    "rope.scale_linear": (1.0,),
    "attention.sliding_window_pattern": (WINDOW_PATTERN,),
}
# Since Mistral v0.3 a token of its own. Such models put no space before a text, although GGUFs that
# llama.cpp's converter makes say nothing of it.
INSTRUCTION = "[INST]"
WAIT = 600.0  # seconds to wait for another that unpacks the same file, as pages of the app do
TOKEN_KINDS = ("UNDEFINED", "NORMAL", "UNKNOWN", "CONTROL", "USER_DEFINED", "UNUSED", "BYTE")


def find_base(base: str) -> Path:
    """The folder of the base model that a setting names: a folder, a download, or a GGUF unpacked.

    A GGUF is unpacked once; it lies beside the downloads, under a name made of its path, size and
    time. Raises UserError or ConfigError where there is no model.
    """
    path = _find_gguf(base)
    if path is None:
        return hub.find_model_folder(base)
    stat = path.stat()
    facts = f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns}"
    digest = hashlib.sha256(facts.encode()).hexdigest()[:16]
    folder = hub.home() / "unpacked" / f"{path.stem}-{digest}"
    if (folder / "config.json").exists():
        return folder
    with hub.lock(folder, f"another command is unpacking {path}", WAIT):
        return folder if folder.exists() else unpack_gguf(path, folder)


def find_shape(base: str) -> ModelShape:
    """The shape of the base that a setting names, which is on this machine; unpacks no GGUF."""
    path = _find_gguf(base)
    if path is None:
        return read_config(hub.find_model_folder(base))
    return _read_shape(path, *_open(path))


def refuse_split(text: str | None) -> None:
    """Raise ConfigError if a setting names one part of a GGUF that is split into several files."""
    if text and SPLIT.search(text):
        raise ConfigError(f"{text} is one part of a split GGUF; {JOIN}")


def check_gguf(path: Path) -> None:
    """Raise UserError or ConfigError, naming the file, if it is no whole GGUF of a model."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; fix model.gguf_file")
    _open(path)


def unpack_gguf(path: Path, folder: Path) -> Path:
    """Write the model of a GGUF as a folder with weights in float16; returns the folder.

    The folder appears complete or not at all. Raises ConfigError, naming the file, for what is not
    supported; then no weights were written.
    """
    read, stored = _open(path)
    shape = _read_shape(path, read, stored)
    tensors = list_tensors(shape)
    _check_tensors(path, stored, tensors)
    needs = {"weights": 2 * sum(math.prod(tensor.shape) for tensor in tensors)}
    check_disk(folder, needs, str(path), "free space, or set HF_HOME elsewhere")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _write_vocabulary(part, _read_vocabulary(path, read))
        write_json(part / "config.json", build_config(shape) | {"dtype": "float16"})
        with _name_file(path, part):
            check_files(part)
        write_weights(part, split_weights(_read_weights(path, stored, tensors)), save_file)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _find_gguf(base: str) -> Path | None:
    """The GGUF that a setting names, if it names one; raises UserError if there is no such file."""
    path = None if base == "tiny" else hub.find_local(base, "model")
    if path is None or not (path.is_file() or path.suffix == ".gguf"):
        return None
    if not path.is_file():
        raise UserError(f"{path}: no such file; fix model.base")
    return path


def _check_tensors(path: Path, stored: Stored, tensors: Iterable[Tensor]) -> None:
    """Refuse missing, unknown and misshapen tensors, and types that cannot be unpacked."""
    from gguf.quants import dequantize

    names = {tensor.name for tensor in tensors}
    if extra := sorted(stored.keys() - names - {ROPE}):
        raise ConfigError(
            f"{path}: tensor {extra[0]} is not part of such a model; choose the plain one"
        )
    for tensor in tensors:
        if tensor.name not in stored:
            raise ConfigError(f"{path}: {tensor.name} is missing; download it again")
        found = stored[tensor.name]
        if tuple(reversed(found.shape.tolist())) != tensor.shape:
            raise ConfigError(f"{path}: {tensor.name} has another shape; download it again")
    for kind, found in {one.tensor_type: one for one in stored.values()}.items():
        try:
            dequantize(found.data[:1], kind)
        except NotImplementedError:
            raise ConfigError(
                f"{path}: {found.name} is of type {kind.name}, which cannot be unpacked; choose a "
                "GGUF in Q4_K_M, Q8_0 or 16 bits"
            ) from None


def _read_weights(
    path: Path, stored: Stored, tensors: Iterable[Tensor]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the weights with their names in a folder."""
    from gguf.quants import dequantize

    for tensor in tensors:
        found = stored[tensor.name]
        values = dequantize(found.data, found.tensor_type).reshape(tensor.shape)
        values = unpermute(values, tensor.heads) - tensor.offset
        with np.errstate(over="ignore"):
            weight = np.ascontiguousarray(values, np.float16)
        if not np.isfinite(weight).all():
            raise ConfigError(
                f"{path}: {tensor.name} holds NaN, infinity or values above 65504; choose another "
                "GGUF"
            )
        yield tensor.source, weight


def unpack_tokenizer(path: Path, folder: Path) -> None:
    """Write the tokenizer and the chat template of a GGUF into a folder that is there.

    Raises ConfigError where it splits text in a way that is not supported.
    """
    read, _ = _open(path)
    _write_vocabulary(folder, _read_vocabulary(path, read))


def load_chat(path: Path) -> ChatFormat:
    """The chat format of a GGUF; raises ConfigError, naming the file, where it has none."""
    with tempfile.TemporaryDirectory() as scratch, _name_file(path, Path(scratch)):
        unpack_tokenizer(path, Path(scratch))
        return ChatFormat.load(Path(scratch))


@contextmanager
def _name_file(path: Path, folder: Path) -> Iterator[None]:
    """Name the user's file, not the folder that is made of it, in errors."""
    try:
        yield
    except (ExportError, ConfigError) as error:
        raise ConfigError(str(error).replace(str(folder), str(path))) from None


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of each head from llama.cpp's interleaved pairs to HF's halves."""
    if not heads:
        return weight
    return weight.reshape(heads, -1, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def _open(path: Path) -> tuple[Read, Stored]:
    """Access to the values and the tensors of a GGUF that holds one whole model."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except BROKEN as error:
        raise ConfigError(
            f"{path} is no GGUF that can be read ({error}); download it again"
        ) from None

    def read(name: str, *default: Any) -> Any:
        field = reader.fields.get(name)
        if field is None and not default:
            raise ConfigError(f"{path} lacks {name}; use a GGUF of a chat model")
        try:
            return default[0] if field is None else field.contents()
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: {name} is no text; download it again") from None

    if (kind := read("general.type", "model")) != "model":
        raise ConfigError(f"{path} holds no model but an {kind}; use a GGUF of a chat model")
    return read, {tensor.name: tensor for tensor in reader.tensors}


def _find_family(path: Path, read: Read) -> Family:
    """The first family of the file's architecture; those that share one are the same in a GGUF."""
    architecture = read("general.architecture")
    for family in FAMILIES.values():
        if family.gguf == architecture:
            return family
    raise ConfigError(
        f"{path}: {architecture} is no family that is supported; choose a model of one of these: "
        f"{list_families()}"
    )


def _read_shape(path: Path, read: Read, stored: Stored) -> ModelShape:
    family = _find_family(path, read)
    if read("split.count", 1) > 1:
        raise ConfigError(f"{path} is one part of a split GGUF; {JOIN}")

    def number(name: str, *default: Any) -> Any:
        return read(f"{family.gguf}.{name}", *default)

    optional = {
        "kv_heads": number(GGUF_NUMBERS["heads"]),
        "head_dim": None,
        "theta": DEFAULT_THETA,
        "window": None,
        "window_theta": DEFAULT_THETA,
    }
    values = {
        name: number(key, optional[name]) if name in optional else number(key)
        for name, key in GGUF_NUMBERS.items()
    }
    if not family.window:
        values |= {"window": None, "window_theta": None}
    try:
        values["head_dim"] = values["head_dim"] or values["hidden"] // values["heads"]
        shape = ModelShape(
            **values,
            vocab=len(read("tokenizer.ggml.tokens")),
            tied="output.weight" not in stored,
            family=family,
        )
        check_counts(shape, path)
    except (ArithmeticError, TypeError) as error:
        raise ConfigError(
            f"{path} has a number of a wrong kind ({error}); download it again"
        ) from None
    plain = PLAIN | dict.fromkeys(GGUF_HEAD_SIZES, (shape.head_dim,))
    if not family.window:
        plain[GGUF_NUMBERS["window"]] = (0,)
    if number("rope.scaling.type", "linear") == "none":
        del plain["rope.scaling.factor"]
    for name, allowed in plain.items():
        if (value := number(name, allowed[0])) not in allowed:
            raise ConfigError(
                f"{path}: {name} is {value}, not {allowed[0]}; choose the plain model"
            )
    return replace(shape, rope=_read_rope(path, stored, shape))


def _read_rope(path: Path, stored: Stored, shape: ModelShape) -> dict[str, float] | None:
    """The scaled rotation of Llama 3.1, of which a GGUF holds only what follows from it."""
    if ROPE not in stored:
        return None
    found = np.asarray(stored[ROPE].data, np.float64)
    for context in ROPE_CONTEXTS:
        rope = dict(zip(ROPE_KEYS, (float(found.max()), 1.0, 4.0, context), strict=True))
        expected = rope_factors(replace(shape, rope=rope))
        if found.shape == (len(expected),) and np.allclose(found, expected, rtol=1e-4):
            return rope
    raise ConfigError(
        f"{path}: {ROPE} scales the rotation in another way than Llama 3.1; choose the plain model"
    )


def _read_vocabulary(path: Path, read: Read) -> Vocabulary:
    model, pre = read("tokenizer.ggml.model"), read("tokenizer.ggml.pre", "default")
    tokens = read("tokenizer.ggml.tokens")
    kinds = [TOKEN_KINDS[number] for number in read("tokenizer.ggml.token_type")]
    has_prefix = bool(read("tokenizer.ggml.add_space_prefix", model == "llama"))
    if INSTRUCTION in tokens and kinds[tokens.index(INSTRUCTION)] == "CONTROL":
        has_prefix = False
    for kind in KINDS:
        if (kind.model, kind.space_prefix) == (model, has_prefix and model == "llama") and (
            model == "llama" or kind.pre == pre
        ):
            break
    else:
        raise ConfigError(
            f"{path}: its tokenizer splits words as {pre!r} of {model!r}; supported are tokenizers "
            f"as of {SUPPORTED}"
        )
    scores = read("tokenizer.ggml.scores") if model == "llama" else None
    roles = {role: read(f"tokenizer.ggml.{name}_token_id", None) for role, name in ROLES.items()}
    roles["eos"] = read("tokenizer.ggml.eos_token_id")  # the one that there must be
    roles = {role: index for role, index in roles.items() if index is not None}
    if len(kinds) != len(tokens) or max(roles.values()) >= len(tokens):
        raise ConfigError(
            f"{path}: its tokenizer has {len(tokens)} tokens, and uses others; download it again"
        )
    return Vocabulary(
        kind=kind,
        tokens=tokens,
        kinds=kinds,
        merges=_merge_plain(tokens, kinds, scores) if scores else read("tokenizer.ggml.merges"),
        roles=roles,
        add_bos=False,
        template=read("tokenizer.chat_template"),
        scores=scores,
    )


def _merge_plain(tokens: list[str], kinds: list[str], scores: list[float]) -> list[str]:
    """The merges of tokens that a text may have: none makes a control token of its letters."""
    plain = [kind not in ("CONTROL", "UNKNOWN", "BYTE") for kind in kinds]
    return build_merges(list(compress(tokens, plain)), list(compress(scores, plain)))


def _write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    write_tokenizer(folder, vocabulary)
    ends = [vocabulary.roles[role] for role in ENDS if role in vocabulary.roles]
    write_json(folder / "generation_config.json", {"eos_token_id": list(dict.fromkeys(ends))})
