"""Data files as rows: JSON lines, JSON, tables, Parquet, and folders of them.

Files are read completely and strictly: a bad row ends the command with its place and the reason, or
is counted by its reason if bad rows are skipped. What is guessed or left out is said in a note.
"""

import os
import re
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from selfreward_lite.data.choices import may_be_choice
from selfreward_lite.data.fields import (
    CHATS,
    PROMPTS,
    ROW_SPEAKERS,
    is_about,
    is_read,
    name_kind,
    normalise_name,
)
from selfreward_lite.data.first_bytes import (
    TO_PARQUET,
    name_foreign,
    name_format,
    name_mistake,
    name_text,
)
from selfreward_lite.data.json_text import JsonFault, parse_json
from selfreward_lite.data.other_fields import (
    changes_task,
    find_inside,
    is_sentence,
    is_text,
    list_unused_names,
)
from selfreward_lite.data.rows import DataRow, DataRows, PlacedRows, list_names
from selfreward_lite.data.tables import name_table, read_table
from selfreward_lite.data.text_files import open_text
from selfreward_lite.system.errors import DataError

MAX_LINE = 1_000_000  # characters; a longer line of JSON is a broken file, not a prompt
NAMES = ".jsonl, .ndjson, .json, .csv or .tsv (each may end in .gz), or .parquet"
_HIDDEN = ("__MACOSX",)  # and what begins with a dot
# What `datasets`, the hub and other programs write beside the data.
_ABOUT_DATA = re.compile(
    r"(?:dataset_infos?|dataset_dict|state|trainer_state|croissant|(?:\w+_)?config|tokenizer\w*"
    r"|special_tokens_map|added_tokens|vocab|.+\.index|package|package-lock|tsconfig)\.json"
)


# Beside a list of rows: what is said about it (`schema` is pandas'), and what is set for each row.
_ABOUT_LIST = ("schema", "description", "citation", "about", "homepage", "copyright")
_FOR_ALL_ROWS = ("default", "defaults", "common", "shared", "params", "parameters", "settings")
_NOTEBOOK = "a Jupyter notebook; save the data in it as .jsonl or .csv, and give that file"


class _NoRows(DataError):
    """A file holds something else than rows."""


def read_rows(path: Path, *, skip_bad: bool) -> DataRows:
    """Return the rows of a file, or of all data files of a folder.

    Raises DataError, with file and line, for what cannot be read.
    """
    rows = DataRows(path, skip_bad)
    if path.is_dir():
        _read_folder(rows)
    elif not path.exists():
        _refuse_broken_link(path)
        raise DataError(f"{path}: no such file; give a file named {NAMES}, or a folder of them")
    elif find_reader(path) is None:
        raise DataError(f"{path}: {_name_unknown(path)}")
    else:
        _read_file(path, rows)
    if not rows.rows:
        raise DataError(f"{path}: no usable row in it{rows.describe_skipped()}; give another file")
    return rows


def _refuse_broken_link(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise DataError(
            f"{path}: a link to {path.readlink()}, which is not there; restore it, or remove the "
            "link"
        )


def is_data_file(name: str) -> bool:
    """Return whether a file of a folder or repository, named by its path there, is one to read."""
    path = Path(name)
    is_about = _ABOUT_DATA.fullmatch(path.name) is not None
    return not (_is_hidden(path) or is_about) and find_reader(path) is not None


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part in _HIDDEN for part in path.parts)


Reader = Callable[[Path, DataRows], PlacedRows]


def find_reader(path: Path) -> Reader | None:
    """Return what reads a file of this name, None for a name that tells no format."""
    readers: dict[str, Reader] = {
        ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines,
        ".json": _read_json,
        ".csv": read_table,
        ".tsv": read_table,
    }
    suffix = path.suffix.casefold()
    if suffix == ".parquet":
        return _read_parquet
    return readers.get(Path(path.stem).suffix.casefold() if suffix == ".gz" else suffix)


def _name_unknown(path: Path) -> str:
    """What to do with a file whose name tells no format."""
    _check_access(path)
    if found := name_foreign(path):
        return found
    if path.suffix.casefold() == ".arrow":
        return f"an Arrow file; {TO_PARQUET}"
    if path.suffix.casefold() == ".ipynb":
        return _NOTEBOOK
    if found := name_format(path):
        return found
    if path.suffix.casefold() in (".txt", ".md"):
        return _name_plain_text(path)
    return f"its name does not tell its format; call it {NAMES}"


def _name_plain_text(path: Path) -> str:
    if found := name_text(path):
        return found
    with open_text(path) as file:
        suffix = name_table(file.readline(MAX_LINE))
    if suffix:
        return f"a table, by its first line; call it {suffix}"
    return (
        "plain text has no fields; make it a table (.csv) with the name prompt in its first line, "
        "each prompt in quotes"
    )


def _check_access(path: Path) -> None:
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: may not be read; change its permissions")


def _read_file(path: Path, rows: DataRows) -> int:
    """Add the rows of a file; returns how many."""
    _check_access(path)
    if mistake := name_mistake(path):
        raise _NoRows(f"{path}: {mistake}")
    before, read = len(rows.rows), find_reader(path)
    assert read is not None
    for place, row in read(path, rows):
        if isinstance(row, dict):
            rows.rows.append((place, row))
        else:
            rows.refuse(
                place, "not an object with named fields", ', as {"prompt": "Why is the sky blue?"}'
            )
    rows.files.append((path, len(rows.rows) - before))
    return rows.files[-1][1]


# -- folders -------------------------------------------------------------------------------------


def _read_folder(rows: DataRows) -> None:
    """Every data file of a folder: all its configurations and splits."""
    counts, left_out = {}, []
    for path in sorted(one for one in rows.path.rglob("*") if one.is_symlink() or one.is_file()):
        inside = path.relative_to(rows.path)
        name = inside.as_posix()
        if path.is_dir():  # a link, which may lead anywhere, and back
            left_out += [] if _is_hidden(inside) else [f"{name}/ (a link to a folder)"]
        elif is_data_file(name):
            _refuse_broken_link(path)
            try:
                counts[name] = _read_file(path, rows)
            except _NoRows as error:
                raise DataError(
                    f"{error}. If it holds no data, remove it from that folder, or give the path "
                    "of the data file alone"
                ) from None
        elif find_reader(path) is not None or not _is_hidden(inside):
            left_out.append(name)
    beside = f"; left out: {list_names(left_out)}" if left_out else ""
    if not counts:
        advice = f"give a folder with {NAMES}"
        if any(name.endswith(".arrow") for name in left_out):
            advice = TO_PARQUET
        raise DataError(f"{rows.path}: no data file in it{beside}; {advice}")
    read = list_names([f"{name} (rows: {count:,})" for name, count in counts.items()])
    one = "; to take one of them, give its path" if len(counts) > 1 else ""
    rows.notes.append(f"{rows.path}: read {read}{beside}{one}")


# -- JSON ----------------------------------------------------------------------------------------


def _read_json_lines(path: Path, rows: DataRows) -> PlacedRows:
    begun = False
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            place = f"{path}:{number}"
            if len(line) > MAX_LINE:
                rows.refuse(place, f"longer than {MAX_LINE:,} characters")
                continue
            text = line.strip().removeprefix("\ufeff")  # files that were joined have marks inside
            if not begun and text.startswith("["):
                raise DataError(
                    f"{place}: a list, where a .jsonl file has an object in each line; call the "
                    "file .json"
                )
            begun = begun or bool(text)
            try:
                if text:
                    yield place, parse_json(text)
            except JsonFault as fault:
                at = "" if fault.place is None else f" (character {fault.place + 1})"
                whole = "; each line holds a whole object" if fault.unclosed else ""
                rows.refuse(place, "not JSON", f": {fault}{at}{whole}")


def _read_json(path: Path, rows: DataRows) -> PlacedRows:
    with open_text(path) as file:
        text = file.read()
    try:
        found = parse_json(text)
    except JsonFault as fault:
        line = "" if fault.place is None else f":{text.count(chr(10), 0, fault.place) + 1}"
        if fault.more and text.lstrip().startswith("{"):
            raise _NoRows(
                f"{path}{line}: a second object, not one list; a file with an object in each line "
                "is called .jsonl"
            ) from None
        raise _NoRows(f"{path}{line}: not JSON: {fault}") from None
    if isinstance(found, dict):
        found = _find_list(found, path, rows)
    if not isinstance(found, list):
        raise _NoRows(f"{path}: holds one value, not a list of objects; write the rows as a list")
    for number, row in enumerate(found, 1):
        yield f"{path}, row {number}", row


def _find_list(held: dict[str, Any], path: Path, rows: DataRows) -> list[Any]:
    """The list of rows in an object that has one such list and is no row itself."""
    if {"cells", "nbformat"} <= held.keys():
        raise _NoRows(f"{path}: {_NOTEBOOK}")
    lists = [name for name, one in held.items() if _is_list_of_objects(one)]
    own = [name for name in held if normalise_name(name) in (*CHATS, *PROMPTS)]
    if len(lists) != 1 or own:
        raise _NoRows(
            f"{path}: holds one object with the fields {list_names([*held])}, not a list of "
            f"objects{_name_obstacle(lists, own)}; write the rows as a list, each with all of its "
            "task (pandas: orient='records'); a file with an object in each line is called .jsonl"
        )
    others = [name for name in held if name != lists[0]]
    if lost := next((name for name in others if _belongs_to_rows(name, held[name])), None):
        raise DataError(
            f"{path}: field {lost!r} beside the list {lists[0]!r} belongs to the task; write it "
            "into each of its rows, or remove it"
        )
    beside = f"; left out: {list_unused_names(others)}" if others else ""
    rows.notes.append(f"{path}: read the list {lists[0]!r} in it{beside}")
    found: list[Any] = held[lists[0]]
    return found


def _name_obstacle(lists: list[str], own: list[str]) -> str:
    """Which fields of an object are in the way of reading one list in it as the rows."""
    if own:
        of = "conversation" if normalise_name(own[0]) in CHATS else "prompt"
        return f" (its {own[0]!r} is one {of}, by its name)"
    return f" (the lists {list_names(lists)} may all be the rows)" if lists else ""


def _belongs_to_rows(name: str, value: Any) -> bool:
    """Whether a field beside a list of rows is a part of all their tasks, by name or by value."""
    plain = normalise_name(name)
    if plain in _ABOUT_LIST:
        return False
    if changes_task(name, value) or find_inside(name, value):
        return True
    if name_kind(name) != "unknown":
        return False
    if isinstance(value, Mapping):
        return plain in _FOR_ALL_ROWS or any(_belongs_to_rows(*one) for one in value.items())
    return is_text(value) or is_sentence(value)


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


# -- Parquet -------------------------------------------------------------------------------------


def _read_parquet(path: Path, rows: DataRows) -> PlacedRows:
    """Only columns that are read: faults in any other do no harm."""
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
        if twice := next((one for one in schema.names if schema.names.count(one) > 1), None):
            raise DataError(
                f"{path}: the column {twice!r} is there twice; rename or remove one of them"
            )
        columns = [one.name for one in schema if _may_matter(one)]
        table = pyarrow.parquet.read_table(path, columns=columns or schema.names[:1])
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a complete Parquet file ({str(error).splitlines()[0]}); download or "
            "export it again"
        ) from None
    rows.unread[path] = sorted({*schema.names} - {*columns})
    decode = _find_decoder(table.schema)
    batches = table.to_batches(max_chunksize=1000)
    for number, row in enumerate(chain.from_iterable(map(_convert_batch, batches)), 1):
        place = f"{path}, row {number}"
        try:
            if row is None:
                raise ValueError("not UTF-8, a date out of range, or a key twice")
            yield place, row | decode(row)
        except ValueError as error:
            rows.refuse(place, "a value that cannot be read", f" ({error})")


def _may_matter(field: Any) -> bool:
    """Whether a column is read: by its name, or if it may hold a part of a task, or a role."""
    if is_read(field.name) or may_be_choice(field.name):
        return True
    is_open = name_kind(field.name) == "unknown" or is_about(field.name)
    is_role = normalise_name(field.name) in ROW_SPEAKERS
    return (is_open or is_role) and _may_hold_text(field.type)


def _may_hold_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_map(kind):
        return _may_hold_text(kind.key_type) or _may_hold_text(kind.item_type)
    if types.is_struct(kind):
        return any(_may_hold_text(kind.field(place).type) for place in range(kind.num_fields))
    if hasattr(kind, "value_type"):  # of lists of all kinds, and of dictionaries
        return _may_hold_text(kind.value_type)
    return re.fullmatch(r"(large_)?(string|binary)(_view)?|.*json.*", str(kind)) is not None


def _find_decoder(schema: Any) -> Callable[[DataRow], DataRow]:
    """What gives the values that `datasets` wrote as JSON, since they differ in shape."""
    mixed = [one.name for one in schema if "arrow.json" in str(one.type)]
    if not mixed:
        return lambda row: {}
    import datasets

    known = datasets.Features.from_arrow_schema(schema)
    wanted = datasets.Features({name: known[name] for name in mixed})
    return lambda row: dict(wanted.decode_example({name: row[name] for name in mixed}))


def _convert_batch(batch: Any) -> list[Any]:
    """The rows of a Parquet batch, None for one that is not UTF-8, or has an odd date or map."""
    try:
        found: list[Any] = batch.to_pylist(maps_as_pydicts="strict")
    except (ValueError, OverflowError, KeyError):
        if batch.num_rows == 1:
            return [None]
        rows = (batch.slice(place, 1) for place in range(batch.num_rows))  # to find the bad one
        return [*chain.from_iterable(map(_convert_batch, rows))]
    return found
