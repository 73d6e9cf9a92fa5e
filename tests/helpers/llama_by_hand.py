"""A Llama with hand-made weights, in Llama-3's vocabulary layout and template.

It generates random words and then ends; a judgment ends with a score, a comparison with a winner.
So every stage of a run can read its output, without a download.

The residual stream is the sum of the token's class, a constant, and the kind of question, which one
attention layer copies from the keyword in the question. The head turns them into the next token's
logits. Everything else is a little noise, so that training has weights to move.

The vocabulary is 128,000 tokens of byte-level BPE, most of them unused, then Llama-3's 256 special
ones.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from selfreward_lite.method.templates import fill_template
from selfreward_lite.models.vocabulary import WORD_SPLITS

PLAIN, VOCAB = 128_000, 128_256
NAMED = {
    128000: "<|begin_of_text|>",
    128001: "<|end_of_text|>",
    128006: "<|start_header_id|>",
    128007: "<|end_header_id|>",
    128009: "<|eot_id|>",
}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
WORDS = [
    "river",
    "stone",
    "cloud",
    "amber",
    "violet",
    "harbour",
    "lantern",
    "meadow",
    "copper",
    "saffron",
    "winter",
    "orchard",
    "silver",
    "thunder",
    "marble",
    "willow",
    "canyon",
    "feather",
    "garnet",
    "compass",
]
HIDDEN, HEADS, KV_HEADS, LAYERS, FFN, HEAD = 64, 4, 2, 2, 128, 16
STRENGTH, GAP = 24.0, 60.0  # logits of a token that may follow, and how far the others are below it

# Dimensions of the residual stream: a constant, the class of the token, the kind of question.
CONSTANT, WORD, ENDING, NEWLINE, OPENING, COLON, SPACE, NOUN, LAST = range(9)
JUDGE, META, COMPARE = 9, 10, 11  # at the keyword itself
ASKED = {JUDGE: 12, META: 13, COMPARE: 14}  # at every token after it
KEYWORDS = {"Ġgrade": JUDGE, "Ġjudgments": META, "Ġanswers": COMPARE}


def make(folder: Path, texts: list[str], *, packed: bool = False) -> Path:
    """Write the model as a folder, in NF4 if `packed`; words of `texts` become tokens."""
    tokenizer = _tokenizer(texts)
    plain = folder if not packed else folder.with_name(f"{folder.name}-plain")
    _model(tokenizer).save_pretrained(plain)
    _save_tokenizer(tokenizer, plain)
    if packed:
        _pack(plain, folder)
        _save_tokenizer(tokenizer, folder)
    return folder


def questions() -> list[str]:
    """Return every template, filled."""
    holes = {"prompt": "p", "response": "r", "nonce": "n", "response_a": "a", "response_b": "b"}
    return [
        fill_template(
            "llama3", "judge", **{name: holes[name] for name in ("prompt", "response", "nonce")}
        ),
        fill_template(
            "llama3",
            "meta_judge",
            prompt="p",
            response="r",
            nonce="n",
            judgment_a="a",
            judgment_b="b",
        ),
        fill_template(
            "llama3",
            "compare",
            **{name: holes[name] for name in ("prompt", "response_a", "response_b", "nonce")},
        ),
        fill_template("llama3", "new_prompts", tasks="1. t"),
    ]


def _tokenizer(texts: list[str]) -> Tokenizer:
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_SPLITS["llama-bpe"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    spoken = [
        *texts,
        *questions(),
        "user assistant system Score: 3\n\nWinner: Judgement A Response B",
    ]
    spoken += [f"{word} {word}" for word in WORDS]
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    for text in spoken:
        tokens += [piece for piece, _ in split.pre_tokenize_str(text)]
    tokens = list(dict.fromkeys([*tokens, "in"]))
    tokens += [f"filler{number}" for number in range(PLAIN - len(tokens))]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, [("i", "n")], ignore_merges=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    reserved = iter(f"<|reserved_special_token_{number}|>" for number in range(251))
    special = [NAMED.get(number) or next(reserved) for number in range(PLAIN, VOCAB)]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    assert tokenizer.token_to_id("<|eot_id|>") == 128009
    assert tokenizer.get_vocab_size() == VOCAB
    return tokenizer


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "pad_token": "<|reserved_special_token_250|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": TEMPLATE,
        "model_max_length": 8192,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [128001, 128009], "bos_token_id": 128000})
    )


def _model(tokenizer: Tokenizer) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=128000,
        eos_token_id=128009,
        initializer_range=0.02,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layernorm" not in name and "norm.weight" not in name:
                weight.mul_(0.1)  # noise of 0.002
        _embed(model.model.embed_tokens.weight, tokenizer)
        _set_attention(model.model.layers[0].self_attn)
        _set_head(model.lm_head.weight, tokenizer)
    return model


def _embed(weight: torch.Tensor, tokenizer: Tokenizer) -> None:
    kinds = {
        "Ċ": NEWLINE,
        "Score": OPENING,
        "Winner": OPENING,
        ":": COLON,
        "Ġ": SPACE,
        "ĠJudgement": NOUN,
        "ĠResponse": NOUN,
    }
    kinds[f"Ġ{WORDS[-1]}"] = ENDING  # one word in twenty ends the text
    kinds |= dict.fromkeys([*"012345", "ĠA", "ĠB"], LAST)
    weight[:, CONSTANT] = 1.0
    weight[:, WORD] = 1.0  # all other tokens
    for token, kind in kinds.items():
        number = _id(tokenizer, token)
        weight[number, WORD], weight[number, kind] = 0.0, 1.0
    for token, flag in KEYWORDS.items():
        weight[_id(tokenizer, token), flag] = 1.0


def _id(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    assert number is not None, token
    return number


def _set_attention(attention: Any) -> None:
    """Let the first head find the keyword: its key is large where RoPE hardly turns."""
    slow = HEAD // 2 - 1
    attention.q_proj.weight[slow, CONSTANT] = 3.0
    for flag in ASKED:
        attention.k_proj.weight[slow, flag] = 1.0
    for place, (flag, asked) in enumerate(ASKED.items()):
        attention.v_proj.weight[place, flag] = 1 / 4.6  # about one over the norm of a keyword
        attention.o_proj.weight[asked, place] = 1.0


def _set_head(head: torch.Tensor, tokenizer: Tokenizer) -> None:
    """Set which tokens may follow each class; some only in answer to a question."""
    scale = (3 / HIDDEN) ** 0.5  # the last norm divides by about the root of 2/64 to 3/64

    def after(token: str, kind: int, *asked: int, unless: tuple[int, ...] = ()) -> None:
        number = _id(tokenizer, token)
        head[number, kind] = STRENGTH * scale
        if asked:
            head[number, CONSTANT] = -GAP * scale
        for flag in asked:
            head[number, ASKED[flag]] = GAP * scale
        for flag in unless:
            head[number, ASKED[flag]] = -GAP * scale

    for word in WORDS:
        after(f"Ġ{word}", WORD)
    after("<|eot_id|>", ENDING, unless=tuple(ASKED))
    head[_id(tokenizer, "<|eot_id|>"), LAST] = 4 * GAP * scale
    after("Ċ", ENDING, *ASKED)
    after("Score", NEWLINE, JUDGE)
    after("Winner", NEWLINE, META, COMPARE)
    after(":", OPENING)
    after("Ġ", COLON, JUDGE)
    after("ĠJudgement", COLON, META)
    after("ĠResponse", COLON, COMPARE)
    for digit in "012345":
        after(digit, SPACE)
    for letter in ("ĠA", "ĠB"):
        after(letter, NOUN)


def _pack(plain: Path, folder: Path) -> None:
    """Save it as unsloth/llama-3-8b-Instruct-bnb-4bit is: NF4, the rest in bfloat16."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=nf4, dtype=torch.bfloat16, device_map={"": "cpu"}
    ).save_pretrained(folder)


def prompts(count: int, seed: int = 0) -> list[str]:
    """Return tasks of random words, without keywords."""
    rng = random.Random(seed)
    return [
        f"Tell me about {' '.join(rng.choices(WORDS, k=6))}, part {number}."
        for number in range(count)
    ]
