"""Random Llamas with 0.1M parameters as Hugging Face folders, and LoRA folders for them.

The tokenizer is of Llama-3's kind. Weights and B matrices are large enough for a logit spread of
about 1, so that a wrong export is far from the right one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from selfreward_lite.models.vocabulary import WORD_SPLITS
from selfreward_lite.training.tiny_base.tokenizer import BOS, EOT, PAD, SPECIAL_TOKENS

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CORPUS = [
    "Sort the letters of the word and repeat the answer.",
    "Score: 4",
    "the response is correct and brief",
    "I'll don't we've 1234 5678 99",
    "x = [1, 2, 3]\n\nfor y in x:\n    print(y)",
] * 4
LISTS = [
    [0, 7, 42, 99, 180, 255, 31, 8, 4],
    list(range(20, 84)),
    [5],
]  # token ids to compare logits on
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
KINDS: dict[str, dict[str, Any]] = {
    "gqa": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "mha": {"num_key_value_heads": 4, "tie_word_embeddings": True, "head_dim": 32},
    "llama3": {
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "rope_parameters": LLAMA3_ROPE,
    },
}


def make_tokenizer(corpus: Sequence[str] = CORPUS) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_SPLITS["llama-bpe"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=330,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOT,
        pad_token=PAD,
        chat_template=TEMPLATE,
    )


def make_model(folder: Path, **settings: Any) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(1)
    base = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.15,
        "vocab_size": len(tokenizer) + 5,
    }
    LlamaForCausalLM(LlamaConfig(**base | settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edited(folder: Path, target: Path, name: str, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """Copy a folder with one JSON file changed."""
    shutil.copytree(folder, target)
    data = json.loads((target / name).read_text())
    edit(data)
    (target / name).write_text(json.dumps(data))
    return target


def value_of(reader: GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()
