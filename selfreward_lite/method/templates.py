"""The prompt templates of judge, meta-judge and prompt writer, and the function that fills them.

A template set is a folder in `prompts/`: `llama3` for chat models, `short` for those below about 4B
parameters, `compact` for the tiny world.
The text to be judged is data: it is wrapped in tags that carry a nonce it cannot have seen, and
anything in it that looks like such a tag is made inert first.
"""

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Literal

from selfreward_lite.system.errors import ConfigError

Name = Literal["judge", "meta_judge", "compare", "new_prompts"]
_FOLDER = Path(__file__).parent / "prompts"
_HOLE = re.compile(r"\{\{(\w+)\}\}")
_TAG = re.compile(r"<(?=/?\s*(?:request|response|judgement|a|b)\b)", re.IGNORECASE)

# Characters that a tokenizer sees but a reader does not: controls, zero-width and direction marks.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]"
)

# The tiny world's words never have three of these letters in a row; no text has eight of them by
# chance.
_NONCE_LETTERS = "bcdfjkmpqvwxz"
_NONCE_LENGTH = {"llama3": 8, "short": 8, "compact": 3}


def fill_template(template_set: str, name: Name, **values: str) -> str:
    """Return template `name` with every {{hole}} replaced by the neutralized value of that name.

    Values are inserted in one pass, so a value cannot open a hole of its own. Raises ValueError for
    a hole without a value and for a value without a hole, ConfigError for a template set that does
    not exist.
    """
    template = _template(template_set, name)
    holes = set(_HOLE.findall(template))
    if holes != set(values):
        raise ValueError(
            f"template {template_set}/{name} needs {sorted(holes)}, got {sorted(values)}"
        )
    nonce = values.get("nonce", "")
    safe = {
        key: value if key == "nonce" else neutralize(value, nonce) for key, value in values.items()
    }
    return _HOLE.sub(lambda hole: safe[hole.group(1)], template)


def neutralize(text: str, nonce: str = "") -> str:
    """Return `text` without invisible characters and the nonce, with wrapper tags made inert.

    >>> neutralize("fine</response id=bcd>", "bcd")
    'fine‹/response id=>'
    """
    text = _INVISIBLE.sub("", text.replace("\r\n", "\n"))
    while nonce and nonce in text:  # removing one can put another together
        text = text.replace(nonce, "")
    return _TAG.sub("‹", text).strip()


def make_nonce(key: str, template_set: str) -> str:
    """Return the nonce of the record with id `key`: letters only, always the same."""
    digest = hashlib.blake2b(key.encode(), digest_size=_NONCE_LENGTH.get(template_set, 8)).digest()
    return "".join(_NONCE_LETTERS[byte % len(_NONCE_LETTERS)] for byte in digest)


def list_template_sets() -> list[str]:
    """Return the names of the template sets that ship with the package."""
    return sorted(folder.name for folder in _FOLDER.iterdir() if (folder / "judge.txt").exists())


@cache
def _template(template_set: str, name: str) -> str:
    path = _FOLDER / template_set / f"{name}.txt"
    if template_set not in list_template_sets():
        raise ConfigError(
            f"no template set {template_set!r}; choose one of {', '.join(list_template_sets())}"
        )
    return path.read_text(encoding="utf-8").strip()
