"""Files and data sets → rows and prompts; a line that cannot be used is named with file, number and reason.

Knows: JSON lines, JSON, CSV, Parquet, folders of them as the hub has them; the shapes in which prompts are passed around (plain
columns, chat messages, ShareGPT conversations). Does not know: ranks, stages. A file is read whole and strictly: one bad line
ends the command, or, where bad lines are to be skipped, is counted by its reason. Only the first turn of a conversation is
used, as in the papers.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfreward_lite.data.records import Drop
from selfreward_lite.system.errors import DataError

MAX_LINE_BYTES = 1_000_000  # a longer line is a broken file, not a prompt
PROMPT_COLUMNS = ("prompt", "instruction", "question", "query", "text")
CHAT_COLUMNS = ("messages", "conversations", "conversation")

# Every field that anybody here, or the seed stage, looks at.
COLUMNS = (
    *PROMPT_COLUMNS,
    *CHAT_COLUMNS,
    "input",
    "message_id",
    "parent_id",
    "role",
    "rank",
    "lang",
    "deleted",
    "review_result",
    "synthetic",
    "tree_state",
)
_ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
}
Row = Mapping[str, Any]


class BadRow(Exception):
    """A row cannot be used; the message is the reason, in a few words."""


@dataclass
class Rows:
    """The rows of a file or folder, each with its place (file and number), and what was skipped, by reason."""

    path: Path
    skip_bad: bool
    rows: list[tuple[str, Row]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def refuse(self, place: str | int, reason: str) -> None:
        """Count a bad row, or raise DataError naming it; a number alone is a line of the one file."""
        if not self.skip_bad:
            where = place if isinstance(place, str) else f"{self.path}:{place}"
            raise DataError(
                f"{where}: {reason}; mend or remove that line, or leave such lines out with --skip-bad"
            )
        self.skipped[reason] += 1

    def drops(self) -> tuple[Drop, ...]:
        """Return what was skipped as drops."""
        return tuple(Drop(reason, count) for reason, count in self.skipped.items())


def read_rows(path: Path, *, skip_bad: bool) -> Rows:
    """Return the rows of a JSONL, JSON, CSV or Parquet file, or of a folder of them.

    Raises DataError, with file and line, for what cannot be read.
    """
    if path.is_dir():
        return _read_folder(path, skip_bad)
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a JSONL, JSON, CSV or Parquet file")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: may not be read; change its permissions")
    readers = {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".json": _json_list,
        ".csv": _csv,
        ".parquet": _parquet,
    }
    if path.suffix.lower() not in readers:
        raise DataError(
            f"{path}: cannot tell its format by its name; call it .jsonl, .json, .csv or .parquet"
        )
    rows = Rows(path, skip_bad)
    for number, row in readers[path.suffix.lower()](rows):
        if isinstance(row, dict):
            rows.rows.append((f"{path}:{number}", row))
        else:
            rows.refuse(number, "not an object with named fields")
    if not rows.rows:
        raise DataError(
            f"{path}: no usable row in it" + (f" ({dict(rows.skipped)})" if rows.skipped else "")
        )
    return rows


def _read_folder(folder: Path, skip_bad: bool) -> Rows:
    """A data set as the hub has it: its Parquet files, all splits one after the other, or else its other tables."""
    tables = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in (".parquet", ".jsonl", ".csv")
    ]
    if not tables:
        raise DataError(
            f"{folder}: no table in it; give a folder with .parquet, .jsonl or .csv files"
        )
    whole = Rows(folder, skip_bad)
    if any(path.suffix.lower() == ".parquet" for path in tables):
        whole.rows = list(_splits(folder))
    else:  # `datasets` would guess a schema from the first rows, and refuse the others
        for path in tables:
            part = read_rows(path, skip_bad=skip_bad)
            whole.rows += part.rows
            whole.skipped += part.skipped
    if not whole.rows:
        raise DataError(f"{folder}: no usable row in it")
    return whole


def _splits(folder: Path) -> Iterator[tuple[str, Row]]:
    import datasets

    try:
        for name, split in datasets.load_dataset(str(folder), streaming=True).items():
            names = split.column_names or []
            known = split.select_columns(
                [column for column in names if column in COLUMNS] or names[:1]
            )
            for number, row in enumerate(known, 1):
                yield f"{folder} {name}:{number}", row
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{folder}: its Parquet files cannot be read ({str(error).splitlines()[0]}); download it again"
        ) from None


def extract_prompts(rows: Rows) -> list[str]:
    """Return the prompt of every row, as it stands there; a row without one is refused as `Rows.refuse` does."""
    found = []
    for place, row in rows.rows:
        try:
            found.append(extract_prompt(row))
        except BadRow as bad:
            rows.refuse(place, str(bad))
    if not found:
        raise DataError(f"{rows.path}: no prompt in it ({dict(rows.skipped)})")
    return found


def extract_prompt(row: Row) -> str:
    """Return the prompt that a row holds, or raise BadRow with the reason.

    >>> extract_prompt({"instruction": "Sort these.", "input": "b a"})
    'Sort these.\\n\\nb a'
    >>> extract_prompt({"conversations": [{"from": "human", "value": "Hi there"}, {"from": "gpt", "value": "Hello"}]})
    'Hi there'
    """
    if row.get("parent_id") is not None or row.get("role") == "assistant":
        raise BadRow("a reply in a message tree, not a prompt")
    for name in PROMPT_COLUMNS:
        if name in row:
            value = row[name]
            text = (
                _first_turn(value) if isinstance(value, list) else _text(value, f"field {name!r}")
            )
            extra = row.get("input") if name == "instruction" else None
            return f"{text}\n\n{_text(extra, 'field input')}" if extra else text
    for name in CHAT_COLUMNS:
        if name in row:
            return _first_turn(row[name])
    raise BadRow(f"no field with a prompt (one of {', '.join((*PROMPT_COLUMNS, *CHAT_COLUMNS))})")


def name_chat_format(row: Row) -> str | None:
    """Name the chat format of a row that holds a conversation, None for any other row."""
    if "conversations" in row or "conversation" in row:
        return "ShareGPT conversations"
    return "chat messages" if "messages" in row else None


def _first_turn(turns: Any) -> str:
    if (
        not isinstance(turns, list)
        or not turns
        or not all(isinstance(turn, dict) for turn in turns)
    ):
        raise BadRow("the conversation is not a list of messages")
    first = turns[0]
    role = first.get("role", first.get("from"))
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRow(f"unknown role {role!r}")
    if any(
        "tool_calls" in turn or turn.get("role", turn.get("from")) in ("tool", "function")
        for turn in turns
    ):
        raise BadRow("the conversation calls tools")
    if _ROLES[role] != "user":
        raise BadRow(f"the conversation begins with the {_ROLES[role]}, not with a user")
    return _text(first.get("content", first.get("value")), "the first message")


def _text(value: Any, what: str) -> str:
    if reason := find_text_fault(value):
        raise BadRow(f"{what} {reason}")
    if not value.strip():
        raise BadRow(f"{what} is empty")
    return str(value)


def find_text_fault(value: Any) -> str | None:
    """Say why a field holds no text that can be kept, if it does not."""
    if not isinstance(value, str):
        return "is empty" if value is None else "is not text"
    if "\x00" in value:
        return "holds a NUL character"
    if any("\ud800" <= sign <= "\udfff" for sign in value):
        return "holds half a character (a lone surrogate)"
    return None


def _json_lines(rows: Rows) -> Iterator[tuple[int, Any]]:
    with rows.path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if len(line) > MAX_LINE_BYTES:
                rows.refuse(number, f"longer than {MAX_LINE_BYTES} bytes")
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield number, _parse(text)
            except ValueError as error:  # not UTF-8, or not JSON
                rows.refuse(
                    number,
                    f"not JSON in UTF-8 ({error})" if not rows.skip_bad else "not JSON in UTF-8",
                )


def _json_list(rows: Rows) -> Iterator[tuple[int, Any]]:
    try:
        whole = _parse(rows.path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(
            f"{rows.path}: not JSON in UTF-8 ({error}); one object a line (.jsonl) survives a bad line"
        ) from None
    if not isinstance(whole, list):
        raise DataError(f"{rows.path}: a .json file must hold a list of objects")
    yield from enumerate(whole, 1)


def _parse(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            raise ValueError("a field stands there twice")
        return made

    try:
        return json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _csv(rows: Rows) -> Iterator[tuple[int, Any]]:
    with rows.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        while True:
            first = (
                reader.reader.line_num + 1
            )  # that of the row; one in quotes may go on for several
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if (
                    reader.reader.line_num > first
                ):  # nobody can count the rows that an open quote has swallowed
                    raise DataError(
                        f"{rows.path}:{first}: a quote that opens here is never closed, or too late"
                    ) from None
                rows.refuse(first, f"not CSV ({error})")
                continue
            if None in row or None in row.values():
                rows.refuse(first, "another number of fields than the first line")
            elif any("\udc80" <= sign <= "\udcff" for value in row.values() for sign in value):
                rows.refuse(first, "not UTF-8")
            else:
                yield (
                    first,
                    {name: value or None for name, value in row.items()},
                )  # CSV has no other nothing


def _parquet(rows: Rows) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        there = pyarrow.parquet.read_schema(rows.path).names
        # what no reader asks for is left alone, with whatever is wrong in it
        table = pyarrow.parquet.read_table(
            rows.path, columns=[name for name in there if name in COLUMNS] or there[:1]
        )
    except (pyarrow.ArrowException, OSError) as error:
        why = str(error).splitlines()[0]
        raise DataError(
            f"{rows.path}: not a whole Parquet file ({why}); download or export it again"
        ) from None
    number = 0
    for batch in table.to_batches(max_chunksize=1000):
        try:
            found = batch.to_pylist()
        except (
            ValueError,
            OverflowError,
        ):  # a text that is no UTF-8, a date that Python has not: which row is it?
            found = [_only(batch.slice(place, 1)) for place in range(batch.num_rows)]
        for row in found:
            number += 1
            if row is None:
                rows.refuse(
                    number, "a value that cannot be read (not UTF-8, or a date out of range)"
                )
            else:
                yield number, row


def _only(batch: Any) -> Any:
    """The one row of a Parquet batch, None where one of its values cannot be read."""
    try:
        return batch.to_pylist()[0]
    except (ValueError, OverflowError):
        return None
