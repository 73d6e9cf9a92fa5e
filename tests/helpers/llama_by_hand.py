"""A Llama whose weights are set by hand, in Llama-3's vocabulary layout and template: it says random words, and ends; asked to
judge it ends with a score, asked to compare with a winner. So every stage of a run has something to read, and no download.

    x = what the token is (one of a few classes) + a constant + what the conversation is about, which one attention layer fetches
    from wherever a telling word stands in the question; the head turns both into the next token's logits.

128,000 tokens of byte-level BPE, most of them never used, then Llama-3's 256 special ones. A little noise everywhere else, so
that training has something to move.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from selfreward_lite.method.templates import fill_template
from selfreward_lite.models.chat_format import WORD_SPLITS

PLAIN, VOCAB = 128_000, 128_256
NAMED = {
    128000: "<|begin_of_text|>", 128001: "<|end_of_text|>", 128006: "<|start_header_id|>", 128007: "<|end_header_id|>",
    128009: "<|eot_id|>",
}  # fmt: skip
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
WORDS = [
    "river", "stone", "cloud", "amber", "violet", "harbour", "lantern", "meadow", "copper", "saffron", "winter", "orchard",
    "silver", "thunder", "marble", "willow", "canyon", "feather", "garnet", "compass",
]  # fmt: skip
HIDDEN, HEADS, KV_HEADS, LAYERS, FFN, HEAD = 64, 4, 2, 2, 128, 16
STRENGTH, GAP = 24.0, 60.0  # logits of what may follow, and how far below it the rest is kept

# Dimensions of the residual stream: a constant, what kind of token this is, and what is asked.
CONSTANT, WORD, ENDING, NEWLINE, OPENING, COLON, SPACE, NOUN, LAST = range(9)
JUDGE, META, COMPARE = 9, 10, 11  # of a telling word itself
ASKED = {JUDGE: 12, META: 13, COMPARE: 14}  # and of every token after it
TELLING = {"Ġgrade": JUDGE, "Ġjudgments": META, "Ġanswers": COMPARE}


def make(folder: Path, texts: list[str], *, packed: bool = False) -> Path:
    """Write the model as a Hugging Face folder; `texts` is what will be asked, so that its words are tokens. `packed`: in NF4."""
    tokenizer = _tokenizer(texts)
    plain = folder if not packed else folder.with_name(f"{folder.name}-plain")
    _model(tokenizer).save_pretrained(plain)
    _save_tokenizer(tokenizer, plain)
    if packed:
        _pack(plain, folder)
        _save_tokenizer(tokenizer, folder)
    return folder


def questions() -> list[str]:
    """The words of every template."""
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
    split = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORD_SPLITS["llama-bpe"]), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    said = [
        *texts,
        *questions(),
        "user assistant system Score: 3\n\nWinner: Judgement A Response B",
    ]
    said += [f"{word} {word}" for word in WORDS]
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    for text in said:
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
        "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|reserved_special_token_250|>",
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, "model_max_length": 8192,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [128001, 128009], "bos_token_id": 128000})
    )


def _model(tokenizer: Tokenizer) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, head_dim=HEAD, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, bos_token_id=128000, eos_token_id=128009,
        initializer_range=0.02,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layernorm" not in name and "norm.weight" not in name:
                weight.mul_(0.1)  # noise of 0.002
        _embed(model.model.embed_tokens.weight, tokenizer)
        _fetch(model.model.layers[0].self_attn)
        _speak(model.lm_head.weight, tokenizer)
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
    kinds[f"Ġ{WORDS[-1]}"] = ENDING  # one word in twenty ends what is said
    kinds |= dict.fromkeys([*"012345", "ĠA", "ĠB"], LAST)
    weight[:, CONSTANT] = 1.0
    weight[:, WORD] = 1.0  # whatever is nothing else
    for token, kind in kinds.items():
        number = _id(tokenizer, token)
        weight[number, WORD], weight[number, kind] = 0.0, 1.0
    for token, flag in TELLING.items():
        weight[_id(tokenizer, token), flag] = 1.0


def _id(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    assert number is not None, token
    return number


def _fetch(attention: Any) -> None:
    """The first head looks for a telling word: its key is large there, along two dimensions that hardly turn with distance."""
    slow = HEAD // 2 - 1
    attention.q_proj.weight[slow, CONSTANT] = 3.0
    for flag in ASKED:
        attention.k_proj.weight[slow, flag] = 1.0
    for place, (flag, asked) in enumerate(ASKED.items()):
        attention.v_proj.weight[place, flag] = 1 / 4.6  # about one over the norm of a telling word
        attention.o_proj.weight[asked, place] = 1.0


def _speak(head: torch.Tensor, tokenizer: Tokenizer) -> None:
    """Logits of what may follow each kind of token; what waits for a question is held back by the constant."""
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
    """As unsloth/llama-3-8b-Instruct-bnb-4bit lies on the hub: NF4 with double quantisation, the rest in bfloat16."""
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
    """Tasks of random words, in which no telling word stands."""
    rng = random.Random(seed)
    return [
        f"Tell me about {' '.join(rng.choices(WORDS, k=6))}, part {number}."
        for number in range(count)
    ]
