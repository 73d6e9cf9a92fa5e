"""Whole rows as one text, as some data sets have them in `text` beside the fields (Alpaca's).

Such a text may hold more than the fields: a persona, or how the answer should be. So all in it must
be one of the fields, a mark of a template, or the preamble of a known one.
"""

import re
from collections.abc import Mapping
from typing import Any

from selfreward_lite.data.other_fields import squeeze

# Alpaca's, with and without an input; as compared texts.
_PREAMBLE = re.compile(
    r"\A(?:below is an instruction that describes a task"
    r"(?:, paired with an input that provides further context)?\."
    r" write a response that appropriately completes the request\.)"
)
_CUT = re.compile(r"below is ?(?:…|\.\.\.)")  # as lists of examples shorten it
_SIGNS = re.compile(
    r"<[|｜][^<>|｜]*[|｜]>|</?s>|\[/?inst\]|<</?sys>>|<(?:start|end)_of_turn>|<[be]os>"
    r"|(?<=input: )(?:<noinput>|noinput|no input|n/a|none|nan|null)(?= |\Z)"
)
_MARKS = (
    *("instruction", "instructions", "input", "response", "output", "question", "answer", "query"),
    *("prompt", "completion", "context", "user", "human", "assistant", "system", "bot", "ai"),
    *("gpt", "model", "problem", "solution", "q", "a"),
)


def is_whole_row(text: str, asked: str, held: Mapping[str, Any]) -> bool:
    """Return whether a text says what its row says, and nothing else but the marks of a template.

    `asked` is the prompt, `held` are the fields of the row. Behind Alpaca's `### Response:` there
    is an answer, which may be anything.

    >>> row = {"question": "Why?", "answer": "So."}
    >>> is_whole_row("Q: Why?\\nA: So.", "Why?", row)
    True
    >>> is_whole_row("In Latin.\\nQ: Why?\\nA: So.", "Why?", row)
    False
    """
    if _CUT.fullmatch(squeeze(text)):
        return True
    rest = _PREAMBLE.sub("", squeeze(text)).partition("### response:")[0]
    others = _list_texts([one for name, one in held.items() if name != "text"])
    if squeeze(asked) not in rest:
        return False
    for other in sorted({*map(squeeze, others), squeeze(asked)}, key=len, reverse=True):
        # Once: a word of an answer may be one of a requirement, too.
        rest = re.sub(rf"(?<!\w){re.escape(other)}(?!\w)", " \x00 ", rest, count=1)
    words = re.findall(r"[^\W_]+", _SIGNS.sub(" ", rest))
    return {*words} <= {*_MARKS}


def _list_texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        value = [*value.values()]
    if isinstance(value, list):
        return [text for one in value for text in _list_texts(one)]
    return [str(value)] if isinstance(value, str | int | float) and str(value).strip() else []
