"""A model's vocabulary, as tokenizer.json and as GGUF write it.

Which tokenizers are supported stands in one table, KINDS. Every other is refused, because llama.cpp
would load many such files without an error and split text in another way.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from selfreward_lite.models.chat_format import ChatFormat, token_text
from selfreward_lite.models.chat_template import read_template
from selfreward_lite.models.hf_folder import read_json, refuse
from selfreward_lite.system.errors import ExportError
from selfreward_lite.system.files import Json

SPACE = "\u2581"  # a space in SentencePiece's tokens
BYTES = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}


# How text is split into words of Llama 3 and of Qwen, by the name in GGUF.
WORD_SPLITS = {
    name: r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for name, digits in (("llama-bpe", r"\p{N}{1,3}"), ("qwen2", r"\p{N}"))
}


def _split(name: str) -> list[Json]:
    """The steps of tokenizer.json for one of WORD_SPLITS."""
    pattern = {"Regex": WORD_SPLITS[name]}
    return [{"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}, BYTES]


@dataclass(frozen=True)
class TokenizerKind:
    """How a tokenizer works: in GGUF's names, and as the parts of tokenizer.json.

    `model` is GGUF's: gpt2 is BPE over bytes, llama is SentencePiece's BPE over characters, with
    bytes for those that it lacks. `pre` names how gpt2 splits text into words.
    """

    name: str
    model: Literal["gpt2", "llama"]
    pre: str
    normalizer: Json | None = None
    words: Sequence[Json] = ()
    ignore_merges: bool = False
    space_prefix: bool = False
    decoder: Json = field(default_factory=lambda: BYTES)

    @property
    def splitter(self) -> Json | None:
        """The `pre_tokenizer` of tokenizer.json."""
        if len(self.words) < 2:
            return self.words[0] if self.words else None
        return {"type": "Sequence", "pretokenizers": list(self.words)}


_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, _REPLACE]}
_TO_TEXT = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
# A space before the first word of a text, which `ChatFormat` leaves out: a template's own token is
# first. In a GGUF there is no difference to Gemma's.
METASPACE = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
_ONE_SPACE = {"pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}

KINDS = (
    TokenizerKind("Llama 3", "gpt2", "llama-bpe", words=_split("llama-bpe"), ignore_merges=True),
    TokenizerKind("Qwen", "gpt2", "qwen2", normalizer={"type": "NFC"}, words=_split("qwen2")),
    TokenizerKind(
        "SmolLM",
        "gpt2",
        "smollm",
        words=[{"type": "Digits", "individual_digits": True}, BYTES | {"use_regex": True}],
    ),
    TokenizerKind(
        "Llama 2, Mistral",
        "llama",
        "default",
        normalizer=_PREPEND,
        space_prefix=True,
        decoder={"type": "Sequence", "decoders": [*_TO_TEXT, _STRIP]},
    ),
    TokenizerKind(
        "Gemma",
        "llama",
        "default",
        normalizer=_REPLACE,
        words=[{"type": "Split", **_ONE_SPACE}],
        decoder={"type": "Sequence", "decoders": _TO_TEXT},
    ),
    TokenizerKind(
        "Mistral v0.3",
        "llama",
        "default",
        words=[METASPACE],
        decoder={"type": "Sequence", "decoders": [*_TO_TEXT, _STRIP]},
    ),
)
SUPPORTED = ", ".join(kind.name for kind in KINDS)

# Settings of a step that change offsets, and no token.
NEUTRAL = ("trim_offsets",)
BYTE_TOKEN = "<0x{:02X}>"
UNKNOWN = "<unk>"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, with scores for SentencePiece, their kinds in GGUF, merges as "left right".

    `roles` are ids by GGUF's names: bos, eos, pad, unk, eot, eom.
    """

    kind: TokenizerKind
    tokens: list[str]
    kinds: list[str]
    merges: list[str]
    roles: dict[str, int]
    add_bos: bool
    template: str | None
    scores: list[float] | None = None


def read_vocabulary(model_dir: Path, size: int) -> Vocabulary:
    """Read the vocabulary of a folder, of `size` tokens (rows of the embedding).

    Raises ExportError where llama.cpp would split text in another way.
    """
    spec = read_json(model_dir / "tokenizer.json")
    settings = read_json(model_dir / "tokenizer_config.json")
    kind = find_kind(spec, model_dir / "tokenizer.json")
    added = {token["content"]: token for token in spec.get("added_tokens") or []}
    ids = spec["model"]["vocab"] | {content: token["id"] for content, token in added.items()}
    if sorted(ids.values()) != list(range(len(ids))) or len(ids) > size:
        raise ExportError(
            f"{model_dir}: token ids of tokenizer.json do not fit vocab_size {size}: "
            "use the model's own"
        )
    tokens = sorted(ids, key=ids.__getitem__)
    merges = [
        merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]
    ]
    filler = size - len(tokens)  # embedding rows that no token uses
    roles = _find_roles(model_dir, settings, ids, added)
    chat = ChatFormat.load(model_dir) if read_template(model_dir, settings) else None
    if chat:
        roles["eot"] = chat.end_of_turn
    return Vocabulary(
        kind=kind,
        tokens=tokens + [f"[PAD{i}]" for i in range(filler)],
        kinds=[
            _token_kind(token, added.get(token), kind, has_role=ids[token] in roles.values())
            for token in tokens
        ]
        + ["UNUSED"] * filler,
        merges=merges,
        roles=roles,
        # Off unless the folder says otherwise: the chat template writes BOS, and llama.cpp would
        # add a second one.
        add_bos=kind.model == "gpt2" and bool(settings.get("add_bos_token", False)),
        template=chat.template.source if chat else None,
        scores=_score_tokens(tokens, merges, filler) if kind.model == "llama" else None,
    )


def find_kind(spec: Json, place: Path) -> TokenizerKind:
    """The kind of a tokenizer.json; raises ExportError, naming what differs, if it has none."""
    model, added = spec.get("model") or {}, spec.get("added_tokens") or []
    affixes = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    strips = ("lstrip", "rstrip", "single_word")
    splitter, normalizer = _plain(spec.get("pre_tokenizer")), _plain(spec.get("normalizer"))
    advice = f"; supported are tokenizers as of {SUPPORTED}"
    faults = {
        "it is not BPE": model.get("type") != "BPE",
        "it uses dropout or affixes": any(model.get(key) for key in affixes),
        "an added token swallows spaces": any(t.get(key) for t in added for key in strips),
    }
    refuse(place, faults, advice)
    known = [kind for kind in KINDS if _plain(kind.splitter) == splitter]
    refuse(place, {"its pre-tokenizer splits text in another way": not known}, advice)
    found = [kind for kind in known if _plain(kind.normalizer) == normalizer]
    refuse(place, {"it normalizes text in another way": not found}, advice)
    (kind,) = found
    parts = {"ignore_merges": kind.ignore_merges, "byte_fallback": kind.model == "llama"}
    for name, value in parts.items():
        fault = f"{name} is not {value}, as in tokenizers of {kind.name}"
        refuse(place, {fault: bool(model.get(name)) != value}, advice)
    return kind


def _plain(part: Any) -> Any:
    """A part of tokenizer.json without what changes no token, and lists of one as that one."""
    if isinstance(part, list):
        return [_plain(one) for one in part]
    if not isinstance(part, dict):
        return part
    return {name: _plain(value) for name, value in part.items() if name not in NEUTRAL}


def _find_roles(
    model_dir: Path, settings: Json, ids: dict[str, int], added: Mapping[str, Json]
) -> dict[str, int]:
    """The ids of tokens with a role; those that begin and end a text are added tokens."""
    roles = {}
    for role in ("bos", "eos", "pad", "unk"):
        token = token_text(settings.get(f"{role}_token"))
        known = added if role in ("bos", "eos") else ids
        if token is not None and token in known:
            roles[role] = ids[token]
        elif token is not None or role == "eos":
            raise ExportError(
                f"{model_dir}: tokenizer_config.json: {role}_token {token!r} is no token: name one "
                "of the added_tokens of tokenizer.json"
            )
    if "<|eom_id|>" in ids:
        roles["eom"] = ids["<|eom_id|>"]
    return roles


def _token_kind(token: str, added: Json | None, kind: TokenizerKind, *, has_role: bool) -> str:
    if added:
        return "CONTROL" if added["special"] or has_role else "USER_DEFINED"
    is_byte = kind.model == "llama" and len(token) == 6 and token.startswith("<0x")
    return "BYTE" if is_byte else "NORMAL"


def _score_tokens(tokens: list[str], merges: list[str], filler: int) -> list[float]:
    """SentencePiece's scores: the sooner a token is merged, the higher; 0 if no merge makes it."""
    ranks: dict[str, int] = {}
    for merge in merges:
        ranks.setdefault(merge.replace(" ", ""), len(ranks) + 1)
    return [-float(ranks.get(token, 0)) for token in tokens] + [0.0] * filler


# -- tokenizer.json from a GGUF ----------


def build_merges(tokens: Sequence[str], scores: Sequence[float]) -> list[str]:
    """The merges that SentencePiece's scores mean: all ways to make a token of two, best first."""
    ranks = dict(zip(tokens, scores, strict=True))
    found = [
        (-score, len(token[:cut]), token[:cut], token[cut:])
        for token, score in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    return [f"{left} {right}" for _, _, left, right in sorted(found, key=lambda one: one[:2])]


def write_tokenizer(folder: Path, vocabulary: Vocabulary) -> None:
    """Write tokenizer.json and tokenizer_config.json for a vocabulary that a GGUF holds."""
    kind = vocabulary.kind
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    added = [
        {
            "id": index,
            "content": token,
            "special": vocabulary.kinds[index] != "USER_DEFINED",
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
        for token, index in ids.items()
        if vocabulary.kinds[index] in ("CONTROL", "UNKNOWN", "USER_DEFINED")
    ]
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": kind.normalizer,
        "pre_tokenizer": kind.splitter,
        "post_processor": None,
        "decoder": kind.decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNKNOWN if kind.model == "llama" else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": kind.model == "llama",
            "byte_fallback": kind.model == "llama",
            "ignore_merges": kind.ignore_merges,
            "vocab": ids,
            "merges": [merge.split(" ", 1) for merge in vocabulary.merges],
        },
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": vocabulary.add_bos,
        **{
            f"{role}_token": vocabulary.tokens[index]
            for role, index in vocabulary.roles.items()
            if role in ("bos", "eos", "pad", "unk")
        },
        "chat_template": vocabulary.template,
    }
    for name, value in (("tokenizer.json", spec), ("tokenizer_config.json", settings)):
        (folder / name).write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
