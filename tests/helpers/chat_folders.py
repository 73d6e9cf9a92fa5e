"""Small tokenizers with chat templates as folders: of Llama 3's kind, and of Llama 2's."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from selfreward_lite.models.vocabulary import (
    BYTE_TOKEN,
    KINDS,
    SPACE,
    Vocabulary,
    build_merges,
    write_tokenizer,
)

LINE_ENDS = ["\n\n", "\n\n\n", "user\n", "assistant\n"] * 9  # so that two ends can be one token
WORDS = ("user", "assistant", "the", "answer", "hello", "INST")
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
INST_TOKENS = ("[INST]", "[/INST]")

LOOP = "{% for m in messages %}"
HEADER = "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
ASK_HEADER = (
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = (
    LOOP + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The ways in which templates for the tokens of `byte_folder` write a conversation.
TEMPLATES = {
    "trimmed": "{{ bos_token }}"
    + LOOP
    + HEADER
    + "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    + ASK_HEADER,
    "untrimmed": CHATML,
    "trimmed before": CHATML.replace("m['content']", "m['content'].lstrip()"),
    "answers trimmed": CHATML.replace(
        "m['content']", "(m['content'] | trim if m['role'] == 'assistant' else m['content'])"
    ),
    "default system turn": "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nbe brief<|im_end|>\n' }}{% endif %}" + CHATML,
    "always asks": "{{ bos_token }}"
    + LOOP
    + HEADER
    + "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
    "tags": "{{ bos_token }}"
    + LOOP
    + "{% if m['role'] == 'tool' %}{% continue %}{% endif %}"
    + HEADER
    + "{% generation %}{{ m['content'] | trim }}<|eot_id|>{% endgeneration %}{% endfor %}"
    + ASK_HEADER,
    "line before the end": CHATML.replace("'<|im_end|>", "'\n<|im_end|>"),
}
# Mistral's: no header asks the assistant to speak. In the second, a space follows each token.
INST = (
    "{{ bos_token }}"
    + LOOP
    + "{% if m['role'] == 'user' %}{{ '[INST]' + m['content'] | trim + '[/INST]' }}"
    "{% else %}{{ m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
INST_SPACE = INST.replace("{{ m['content']", "{{ ' ' + m['content']").replace(
    "'[INST]'", "'[INST] '"
)


def byte_folder(
    folder: Path, template: Any, *, tokens: Sequence[str] = CHATML_TOKENS, **settings: Any
) -> Path:
    """Write a tokenizer of Llama 3's kind, with more special tokens, and a template.

    Ends of lines that follow one another are one token.
    """
    from random_llama import CORPUS, make_tokenizer  # loads torch

    tokenizer = make_tokenizer([*CORPUS, *LINE_ENDS])
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit_json(
        folder / "tokenizer_config.json",
        lambda data: data.update({"chat_template": template} | settings),
    )
    return folder


def piece_folder(
    folder: Path, template: str, *, kind: str = "Llama 2, Mistral", tokens: Sequence[str] = ()
) -> Path:
    """Write a tokenizer of one of SentencePiece's kinds, with more special tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, make_pieces(kind, tokens, template))
    return folder


def make_pieces(kind: str, tokens: Sequence[str], template: str | None = None) -> Vocabulary:
    """A vocabulary of SentencePiece: bytes, letters, WORDS and all that leads to them."""
    special = ["<unk>", "<s>", "</s>"]
    pieces = [BYTE_TOKEN.format(number) for number in range(256)]
    letters = [SPACE, *map(chr, range(33, 127))]
    words = {SPACE + word[:end] for word in WORDS for end in range(1, len(word) + 1)}
    words |= {word[:end] for word in WORDS for end in range(2, len(word) + 1)} | {SPACE * 2}
    words = sorted(words, key=lambda word: (-len(word), word))
    scores = [float(-number) for number in range(len(letters) + len(words))]
    texts = words + letters
    names = special + pieces + texts + list(tokens)
    return Vocabulary(
        kind=next(one for one in KINDS if one.name == kind),
        tokens=names,
        kinds=["UNKNOWN", "CONTROL", "CONTROL"]
        + ["BYTE"] * len(pieces)
        + ["NORMAL"] * len(texts)
        + ["CONTROL"] * len(tokens),
        merges=build_merges(texts, scores),
        roles={"bos": 1, "eos": 2, "unk": 0},
        add_bos=False,
        template=template,
        scores=[0.0] * (len(special) + len(pieces)) + scores + [0.0] * len(tokens),
    )


def edit_json(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file in place."""
    data = json.loads(path.read_text(encoding="utf-8"))
    edit(data)
    path.write_text(json.dumps(data), encoding="utf-8")
