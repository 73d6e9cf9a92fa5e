"""Faults of values in plain words: what was given, what is expected, and what may be meant.

Pydantic finds the faults; its own words are for programmers.
"""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

NUMBERS = ("int_parsing", "int_type", "int_from_float", "int_parsing_size")
DECIMALS = ("float_parsing", "float_type")
# What each kind of fault expects, with the numbers of its limits in brackets.
EXPECTED = {
    **dict.fromkeys(NUMBERS, "a whole number"),
    **dict.fromkeys(DECIMALS, "a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), 'a list, as in ["a", "b"]'),
    **dict.fromkeys(("dict_type", "model_type"), "an object with named fields"),
    "finite_number": "a finite number",
    "string_type": "a text",
    "literal_error": "{expected}",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "string_too_long": "at most {max_length} characters",
    "too_short": "at least {min_length}",
    "too_long": "at most {max_length}",
}
SHOWN = 60  # characters of a value


def explain_fault(name: str, fault: Mapping[str, Any]) -> str:
    """Return one of pydantic's errors as a line; `name` is what the user calls the value.

    >>> fault = {"type": "float_parsing", "input": "0,2", "msg": "…"}
    >>> explain_fault("dpo.beta", fault)
    'dpo.beta=0,2: give a number, with a point in place of the comma: 0.2'
    >>> explain_fault("seed", {"type": "missing", "input": {}, "msg": "Field required"})
    'seed is missing'
    """
    kind, value = fault["type"], fault["input"]
    if kind == "missing":
        return f"{name} is missing"
    if kind == "value_error":  # our own words, which name the value where that helps
        return f"{name}: {fault['msg'].removeprefix('Value error, ')}"
    shown = None if kind == "string_too_long" else _show(value)
    given = name if shown is None else f"{name}={shown}"
    if kind not in EXPECTED:
        return f"{given}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"
    limits = {
        key: int(limit) if isinstance(limit, float) and limit.is_integer() else limit
        for key, limit in fault.get("ctx", {}).items()
    }
    expected = EXPECTED[kind].format(**limits)
    return f"{given}: give {expected}{_advise_on_comma(kind, value)}"


def name_place(parts: Iterable[str | int]) -> str:
    """Return the place of a value in a document.

    >>> name_place(("messages", 0, "content"))
    'messages[0].content'
    """
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


def suggest(word: str, names: Iterable[str]) -> str:
    """Return a question that ends a line, with the names that may be meant; "" without any.

    >>> suggest("dpo.bta", ["dpo.beta", "seed"]), suggest("Tiny", ["tiny"]), suggest("x", ["tiny"])
    ('; did you mean dpo.beta?', '; did you mean tiny?', '')
    >>> suggest("learning-rate", ["dpo.learning_rate", "sft.learning_rate", "lora.rank"])
    '; did you mean dpo.learning_rate or sft.learning_rate?'
    """
    known = {name.casefold(): name for name in names}
    plain = word.strip().casefold().replace("-", "_")
    last = [name for name in known if name.rpartition(".")[2] == plain.rpartition(".")[2]]
    if plain in known:
        close = [plain]
    elif last and "." not in plain:
        close = last[:3]
    else:
        close = get_close_matches(plain, [*known], n=1, cutoff=0.75) or last[:1]
    if not close and "." not in plain:
        ends = {name.rpartition(".")[2]: name for name in known}
        close = [ends[one] for one in get_close_matches(plain, [*ends], n=1, cutoff=0.75)]
    return f"; did you mean {' or '.join(known[one] for one in close)}?" if close else ""


def _show(value: Any) -> str | None:
    """A value as it may be shown in one line; None for one that has parts."""
    if isinstance(value, dict | list | tuple):
        return None
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    # What is before an @ in an address may be a password.
    text = re.sub(r"//[^/\s]*@", "//…@", str(value))
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _advise_on_comma(kind: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[+-]?\d+,\d+", value.strip()):
        return ""
    if kind in NUMBERS:
        return f", without a comma: {value.strip().replace(',', '')}"
    if kind in DECIMALS:
        return f", with a point in place of the comma: {value.strip().replace(',', '.')}"
    return ""
