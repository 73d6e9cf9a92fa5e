"""Random chat models of every supported kind, with tokenizers of a few hundred tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from random_llama import CORPUS, KINDS, make_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from selfreward_lite.models import random_models, vocabulary
from selfreward_lite.models.vocabulary import BYTE_TOKEN, SPACE, UNKNOWN, Vocabulary

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)


def make_qwen_tokenizer(folder: Path) -> Path:
    """Bytes and a few merges, digits alone, ChatML; one token is in use and not special."""
    qwen = _kind("Qwen")
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens, merges = _train(trained, sorted(pre_tokenizers.ByteLevel.alphabet()))
    return _write(
        folder,
        Vocabulary(
            kind=qwen,
            tokens=[*tokens, *special, "<think>"],
            kinds=["NORMAL"] * len(tokens) + ["CONTROL"] * len(special) + ["USER_DEFINED"],
            merges=merges,
            roles={"bos": len(tokens), "eos": len(tokens) + 2, "pad": len(tokens)},
            add_bos=False,
            template=CHATML,
        ),
    )


def make_gemma_tokenizer(folder: Path) -> Path:
    """SentencePiece's BPE: characters and a few merges, bytes for characters that it lacks."""
    gemma = _kind("Gemma")
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", SPACE)
    first = ["<pad>", "<eos>", "<bos>", UNKNOWN, "<start_of_turn>", "<end_of_turn>"]
    plain = [BYTE_TOKEN.format(byte) for byte in range(256)]
    tokens, merges = _train(trained, [])
    return _write(
        folder,
        Vocabulary(
            kind=gemma,
            tokens=[*first, *plain, *tokens],
            kinds=["CONTROL"] * 3
            + ["UNKNOWN"]
            + ["CONTROL"] * 2
            + ["BYTE"] * 256
            + ["NORMAL"] * len(tokens),
            merges=merges,
            roles={"pad": 0, "eos": 1, "bos": 2, "unk": 3},
            add_bos=False,
            template=TURNS,
        ),
    )


def _kind(name: str) -> vocabulary.TokenizerKind:
    return next(kind for kind in vocabulary.KINDS if kind.name == name)


def _train(tokenizer: Tokenizer, alphabet: list[str]) -> tuple[list[str], list[str]]:
    """Tokens in the order of their ids, and merges."""
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, show_progress=False, max_token_length=8
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    spec = json.loads(tokenizer.to_str())["model"]
    return sorted(spec["vocab"], key=spec["vocab"].get), [" ".join(one) for one in spec["merges"]]


def _write(folder: Path, made: Vocabulary) -> Path:
    folder.mkdir(parents=True)
    vocabulary.write_tokenizer(folder, made)
    return folder


def _write_family(name: str, make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    return lambda folder: random_models.write_family(
        folder, name, make(folder.with_name(f"{folder.name}-tokenizer"))
    )


# Without an end of text, which transformers would write as 2; rows of 256 fit every packed type.
LLAMA = {"eos_token_id": None, "intermediate_size": 256}
MAKERS: dict[str, Callable[[Path], Path]] = {
    "llama": lambda folder: make_model(folder, **KINDS["gqa"], **LLAMA),
    "llama3_1": lambda folder: make_model(folder, **KINDS["llama3"], **LLAMA),
    "qwen2_5": _write_family("qwen2_5", make_qwen_tokenizer),
    "qwen3": _write_family("qwen3", make_qwen_tokenizer),
    "gemma3": _write_family("gemma3", make_gemma_tokenizer),
}


def make_small(kind: str, folder: Path, patch: Any) -> Path:
    """A model of one of MAKERS; `patch` keeps its embedding as small as its tokenizer."""
    patch.setattr(random_models, "FAMILY_VOCABULARIES", {})
    return MAKERS[kind](folder)
