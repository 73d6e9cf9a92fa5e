"""Data files as rows and prompts: JSON lines, JSON, CSV, Parquet, and folders of them.

Files are read completely and strictly: a bad row ends the command with file, line and reason, or is
counted by its reason if bad rows are skipped. Of a conversation only the first turn is used, as in
the papers.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from selfreward_lite.system.errors import DataError

MAX_LINE_BYTES = 1_000_000  # a longer line is a broken file, not a prompt
PROMPT_COLUMNS = ("prompt", "instruction", "question", "query", "text")
CHAT_COLUMNS = ("messages", "conversations", "conversation")
_ALL_PROMPT_COLUMNS = (*PROMPT_COLUMNS, *CHAT_COLUMNS)

# Every column that this file or `ranked` reads.
COLUMNS = (
    *_ALL_PROMPT_COLUMNS,
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
DataRow = Mapping[str, Any]
NumberedRows = Iterator[tuple[int, Any]]  # each with its line or number in the file


class BadRow(Exception):
    """A row cannot be used; the message is the reason, in a few words."""


@dataclass
class DataRows:
    """The rows of a file or folder, each with its place (file and number), and what was skipped."""

    path: Path
    skip_bad: bool
    rows: list[tuple[str, DataRow]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def refuse(self, place: str | int, reason: str, detail: str = "") -> None:
        """Count a bad row by its reason, or raise DataError; a number is a line of the one file."""
        if not self.skip_bad:
            where = place if isinstance(place, str) else f"{self.path}:{place}"
            raise DataError(
                f"{where}: {reason}{detail}; correct or remove that line, or skip such lines with "
                "--skip-bad"
            )
        self.skipped[reason] += 1


def read_rows(path: Path, *, skip_bad: bool) -> DataRows:
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
        ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines,
        ".json": _read_json,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    if path.suffix.lower() not in readers:
        raise DataError(
            f"{path}: its name does not tell its format; call it .jsonl, .json, .csv or .parquet"
        )
    rows = DataRows(path, skip_bad)
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


def extract_prompts(rows: DataRows) -> list[str]:
    """Return the prompt of every row; a row without one is refused as `DataRows.refuse` does."""
    found = []
    for place, row in rows.rows:
        try:
            found.append(extract_prompt(row))
        except BadRow as bad:
            rows.refuse(place, str(bad))
    if not found:
        raise DataError(f"{rows.path}: no prompt in it ({dict(rows.skipped)})")
    return found


def extract_prompt(row: DataRow) -> str:
    """Return the prompt of a row. Raises BadRow with the reason if it has none.

    >>> extract_prompt({"instruction": "Sort these.", "input": "b a"})
    'Sort these.\\n\\nb a'
    >>> extract_prompt({"conversations": [{"from": "human", "value": "Hi"}]})
    'Hi'
    """
    if row.get("parent_id") is not None or row.get("role") == "assistant":
        raise BadRow("a reply in a message tree, not a prompt")
    name = next((name for name in _ALL_PROMPT_COLUMNS if name in row), None)
    if name is None:
        raise BadRow(f"no field with a prompt (one of {', '.join(_ALL_PROMPT_COLUMNS)})")
    if name in CHAT_COLUMNS or isinstance(row[name], list):
        text = _extract_first_turn(row[name])
    else:
        text = _check_text(row[name], f"field {name!r}")
    extra = row.get("input") if name == "instruction" else None
    return f"{text}\n\n{_check_text(extra, 'field input')}" if extra else text


def name_chat_format(row: DataRow) -> str | None:
    """Return the name of the chat format of a row with a conversation, None for any other row."""
    if "conversations" in row or "conversation" in row:
        return "ShareGPT conversations"
    return "chat messages" if "messages" in row else None


def find_text_fault(value: Any) -> str | None:
    """Return why a value is not a text that can be stored, None if it is."""
    if not isinstance(value, str):
        return "is empty" if value is None else "is not text"
    if "\x00" in value:
        return "holds a NUL character"
    if any("\ud800" <= sign <= "\udfff" for sign in value):
        return "holds half a character (a lone surrogate)"
    return None


def _extract_first_turn(turns: Any) -> str:
    if not isinstance(turns, list) or not turns or not all(isinstance(one, dict) for one in turns):
        raise BadRow("the conversation is not a list of messages")
    roles = [turn.get("role", turn.get("from")) for turn in turns]
    if not isinstance(roles[0], str) or roles[0] not in _ROLES:
        raise BadRow(f"unknown role {roles[0]!r}")
    if any("tool_calls" in turn for turn in turns) or "tool" in roles or "function" in roles:
        raise BadRow("the conversation calls tools")
    if _ROLES[roles[0]] != "user":
        raise BadRow(f"the conversation begins with the {_ROLES[roles[0]]}, not with a user")
    return _check_text(turns[0].get("content", turns[0].get("value")), "the first message")


def _check_text(value: Any, what: str) -> str:
    if reason := find_text_fault(value):
        raise BadRow(f"{what} {reason}")
    if not value.strip():
        raise BadRow(f"{what} is empty")
    return str(value)


# -- formats -------------------------------------------------------------------------------------


def _read_folder(folder: Path, skip_bad: bool) -> DataRows:
    """A data set as on the hub: the Parquet files of all splits, or else its other tables."""
    suffixes = (".parquet", ".jsonl", ".csv")
    tables = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in suffixes]
    if not tables:
        raise DataError(
            f"{folder}: no table in it; give a folder with .parquet, .jsonl or .csv files"
        )
    found = DataRows(folder, skip_bad)
    if any(path.suffix.lower() == ".parquet" for path in tables):
        found.rows = list(_read_splits(folder))
    else:  # `datasets` would guess a schema from the first rows, and refuse the others
        for path in tables:
            part = read_rows(path, skip_bad=skip_bad)
            found.rows += part.rows
            found.skipped += part.skipped
    if not found.rows:
        raise DataError(f"{folder}: no usable row in it")
    return found


def _read_splits(folder: Path) -> Iterator[tuple[str, DataRow]]:
    import datasets

    try:
        for name, split in datasets.load_dataset(str(folder), streaming=True).items():
            known = split.select_columns(_pick_columns(split.column_names or []))
            for number, row in enumerate(known, 1):
                yield f"{folder} {name}:{number}", row
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{folder}: its Parquet files cannot be read ({str(error).splitlines()[0]}); download "
            "it again"
        ) from None


def _pick_columns(names: list[str]) -> list[str]:
    """The columns that are read; faults in any other column do no harm."""
    return [name for name in names if name in COLUMNS] or names[:1]


def _read_json_lines(rows: DataRows) -> NumberedRows:
    with rows.path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if len(line) > MAX_LINE_BYTES:
                rows.refuse(number, f"longer than {MAX_LINE_BYTES} bytes")
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield number, _parse_json(text)
            except ValueError as error:
                rows.refuse(number, "not JSON in UTF-8", f" ({error})")


def _read_json(rows: DataRows) -> NumberedRows:
    try:
        found = _parse_json(rows.path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(
            f"{rows.path}: not JSON in UTF-8 ({error}); in a file with one object a line (.jsonl) "
            "a bad line can be skipped"
        ) from None
    if not isinstance(found, list):
        raise DataError(f"{rows.path}: a .json file must hold a list of objects")
    yield from enumerate(found, 1)


def _parse_json(text: str) -> Any:
    def build_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            raise ValueError("a field is there twice")
        return made

    try:
        return json.loads(text, object_pairs_hook=build_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _read_csv(rows: DataRows) -> NumberedRows:
    with rows.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        while True:
            first = reader.reader.line_num + 1  # a row may take several lines
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if reader.reader.line_num > first:  # the open quote took an unknown number of rows
                    raise DataError(
                        f"{rows.path}:{first}: a quote that opens here is never closed, or too late"
                    ) from None
                rows.refuse(first, f"not CSV ({error})")
                continue
            if None in row or None in row.values():
                rows.refuse(first, "another number of fields than the first line")
            elif any("\udc80" <= sign <= "\udcff" for value in row.values() for sign in value):
                rows.refuse(first, "not UTF-8")
            else:  # an empty field is all that CSV has for None
                yield first, {name: value or None for name, value in row.items()}


def _read_parquet(rows: DataRows) -> NumberedRows:
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(rows.path).names
        table = pyarrow.parquet.read_table(rows.path, columns=_pick_columns(names))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{rows.path}: not a complete Parquet file ({str(error).splitlines()[0]}); download or "
            "export it again"
        ) from None
    batches = table.to_batches(max_chunksize=1000)
    for number, row in enumerate(chain.from_iterable(map(_convert_batch, batches)), 1):
        if row is None:
            rows.refuse(number, "a value that cannot be read (not UTF-8, or a date out of range)")
        else:
            yield number, row


def _convert_batch(batch: Any) -> list[Any]:
    """The rows of a Parquet batch, None for one that is not UTF-8 or has an odd date."""
    try:
        found: list[Any] = batch.to_pylist()
    except (ValueError, OverflowError):
        if batch.num_rows == 1:
            return [None]
        rows = (batch.slice(place, 1) for place in range(batch.num_rows))  # to find the bad one
        return [*chain.from_iterable(map(_convert_batch, rows))]
    return found
