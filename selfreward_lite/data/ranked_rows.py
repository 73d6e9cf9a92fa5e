"""Rows of ranked data: messages in OASST's schema, one by one or as whole trees.

Schema: Köpf et al. 2023 (arXiv 2304.07327). Files leave out what they have no value for, and tables
write truth and numbers in several ways.
"""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from selfreward_lite.data.fields import MESSAGE, SCHEMA, normalise_name
from selfreward_lite.data.fillers import is_filler
from selfreward_lite.data.other_fields import (
    find_task_fields,
    list_lost_beside_text,
    list_unused_names,
    name_part,
)
from selfreward_lite.data.prompt_rows import name_shape, read_id
from selfreward_lite.data.rows import (
    BadRow,
    DataRow,
    DataRows,
    find_text_fault,
    is_empty,
    read_truth,
)
from selfreward_lite.system.errors import DataError

_NEEDED = ("message_id", "text", "role")  # a prompt has no parent, an unranked answer no rank
_SCORES = ("score", "rating", "overall_score", "reward", "label", "preference")
_HIGHEST_RANK = 1_000_000  # more answers to one prompt nobody ranks


def read_messages(rows: DataRows) -> list[dict[str, Any]]:
    """Return the messages in rows; a bad one is refused as `DataRows.refuse` does.

    Raises DataError if no message has a rank.
    """
    found: list[dict[str, Any]] = []
    for path, placed in rows.by_file():
        messages = [(place, one) for place, row in placed for one in _list_messages(row)]
        task_fields = find_task_fields(one for _, one in messages)
        used: list[dict[str, Any]] = []
        for place, message in messages:
            try:
                used.append(_check_message(message, task_fields))
            except BadRow as bad:
                rows.refuse(place, str(bad))
        found += used
        names = {name for one in used for name, value in one.items() if not is_empty(value)}
        unread = map(normalise_name, rows.unread.get(path, []) if used else [])
        others = sorted({one for one in (*names, *unread) if not one.startswith("__")} - SCHEMA)
        if others:
            rows.notes.append(f"{path}: fields that are not used: {list_unused_names(others)}")
    if found and all(one.get("rank") is None for one in found):
        names = {name for one in found for name in one}
        scored = next((name for name in _SCORES if name in names), None)
        instead = f" (the field {scored!r} is not used)" if scored else ""
        raise DataError(
            f"{rows.path}: no message has a rank{instead}; give each answer a field 'rank', 0 for "
            "the best one to its prompt"
        )
    if _are_scores(found):
        raise DataError(
            f"{rows.path}: most prompts have no answer of rank 0 or 1, so the ranks seem to be "
            "scores; rank 0 is the best answer to its prompt, 1 the next one"
        )
    return found


def _are_scores(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether ranks begin too high for ranks, so that the worst answer may have the lowest."""
    ranks = defaultdict[str | None, list[float]](list)
    for one in messages:
        if one.get("rank") is not None and one["role"] == "assistant":
            ranks[read_id(one.get("parent_id"))].append(one["rank"])
    compared = [min(held) > 1 for held in ranks.values() if len(held) > 1]
    return 2 * sum(compared) > len(compared)


def is_english(language: Any) -> bool:
    """Return whether a message is in English, of any region; one without a language counts.

    >>> [is_english(one) for one in ("en", "en-US", "EN_gb", "English", "eng_Latn", None)]
    [True, True, True, True, True, True]
    >>> [is_english(one) for one in ("de", "enm", "Old English")]
    [False, False, False]
    """
    if is_empty(language):
        return True
    return re.split(r"[-_\s(]", str(language).strip().casefold())[0] in ("en", "eng", "english")


def _list_messages(row: DataRow) -> Iterator[dict[str, Any]]:
    """The messages of a row: all of a tree, each with its parent, else the row itself."""
    named = _name_fields(row)
    prompt = _name_fields(named["prompt"]) if isinstance(named.get("prompt"), Mapping) else {}
    if "message_id" not in prompt:
        yield named
        return
    state = {name: value for name, value in named.items() if name == "tree_state"}
    beside = {name: value for name, value in named.items() if name != "prompt"}
    waiting: list[tuple[dict[str, Any], Any]] = [(beside | prompt, None)]
    while waiting:
        message, parent = waiting.pop()
        replies = message.pop("replies", None)
        yield {**state, "parent_id": parent, **message}
        waiting += [
            (_name_fields(reply), message.get("message_id"))
            for reply in reversed(replies if isinstance(replies, list) else [])
            if isinstance(reply, Mapping)
        ]


def _name_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    return {normalise_name(name): value for name, value in row.items()}


def _check_message(row: dict[str, Any], task_fields: Collection[str]) -> dict[str, Any]:
    """A message with numbers and truth values where its file had text. Raises BadRow."""
    missing = [name for name in _NEEDED if name not in row]
    if missing and (shape := name_shape(row)):
        raise BadRow(
            f"this file holds {shape}, which rank no answers; ranked data must be in OASST's "
            f"schema ({', '.join(MESSAGE)})"
        )
    if missing:
        raise BadRow(f"no field {missing[0]!r}; ranked data must be in OASST's schema")
    if fault := _find_fault(row, task_fields):
        raise BadRow(fault)
    converted: dict[str, Any] = {"role": row["role"].strip().casefold()}
    if "rank" in row:
        converted["rank"] = _read_rank(row["rank"])
    for name in ("deleted", "synthetic", "review_result"):
        if name in row:
            converted[name] = read_truth(name, row[name])
    return row | converted


def _find_fault(row: Mapping[str, Any], task_fields: Collection[str]) -> str | None:
    """Why a message cannot be used, None if it can."""
    role = row["role"].strip().casefold() if isinstance(row["role"], str) else ""
    if role not in ("prompter", "assistant"):
        return f"role {row['role']!r} is neither prompter nor assistant"
    for name in ("message_id", "parent_id"):
        if not isinstance(row.get(name), str | int | float | None):
            return f"{name} {row[name]!r} is not an id"
    if read_id(row["message_id"]) is None:
        return "message_id is empty"
    fault = find_text_fault(row["text"])
    if fault and row["text"] is not None:  # OASST has empty texts; they are dropped later
        return f"text {fault}"
    kept = {name: value for name, value in row.items() if not is_filler(value)}
    lost = list_lost_beside_text({**kept, "text": row["text"]}, SCHEMA, task_fields)
    if not lost:
        return None
    return (
        f"{name_part(lost[0], row[lost[0]])} belongs to the task and is not used; write it into "
        "the text, or remove it if the text is whole without it"
    )


def _read_rank(value: Any) -> int | float | None:
    """A rank, None where there is none; 0 is the best."""
    if is_empty(value) or (isinstance(value, str) and value.strip().casefold() in ("nan", "null")):
        return None
    shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}…"
    fault = BadRow(f"rank {shown} is not a number from 0 to {_HIGHEST_RANK:,}")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise fault
    try:
        rank = float(value) if isinstance(value, str) else value
    except ValueError:
        raise fault from None
    if not (0 <= rank <= _HIGHEST_RANK) or math.isnan(rank):
        raise fault
    return rank
