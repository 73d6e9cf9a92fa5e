"""Tables as text: CSV with commas, semicolons, tabs or bars, as spreadsheets and programs write it.

Python's csv is used because it says in which line of the file a row begins.
"""

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from selfreward_lite.data.fields import is_read, name_kind
from selfreward_lite.data.rows import DataRows, PlacedRows
from selfreward_lite.data.text_files import WINDOWS, guess_encoding, is_utf8, open_text
from selfreward_lite.system.errors import DataError

_ANNOUNCED = re.compile('"?sep=(.)"?', re.IGNORECASE)
_LONGEST_FIELD = 2**31 - 1  # characters; csv's own limit of 131,072 refuses whole documents


def read_table(path: Path, rows: DataRows) -> PlacedRows:
    """Yield the rows of a table by column, None for an empty field; bad rows are refused.

    Raises DataError for a quote that is never closed, and for a column that is there twice.
    """
    encoding = guess_encoding(path)
    if encoding == WINDOWS:
        rows.notes.append(
            f"{path}: not UTF-8, so it is read as Windows-1252 ({WINDOWS}); if its letters come "
            "out wrong, save it as UTF-8"
        )
    columns: list[str] = []
    header: list[str] = []
    for line, record in _read_records(path, rows, encoding):
        place = f"{path}:{line}"
        if not columns:
            columns, header = _name_columns(record, place), [one.strip() for one in record]
        elif len(record) != len(columns):
            rows.refuse(
                place,
                "another number of fields than the first line",
                f" ({len(record)}, not {len(columns)}: a text with the separator or a line break "
                "in it needs quotes around it)",
            )
        elif [one.strip() for one in record] == header:
            rows.skipped["names of columns again"] += 1
        elif not all(map(is_utf8, record)):
            rows.refuse(place, "not UTF-8", "; save the file as UTF-8")
        else:  # an empty field is all that such a table has for None
            yield place, dict(zip(columns, (one or None for one in record), strict=True))


def _read_records(path: Path, rows: DataRows, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """The fields of every row, and the line in which it begins."""
    with open_text(path, encoding) as file, _any_length():
        # Files that were joined have marks inside.
        lines = (line.removeprefix("\ufeff") for line in file)
        begin, announced = _read_begin(lines)
        header = begin[-1] if begin else ""
        delimiter = announced or _find_delimiter(header, ".tsv" in path.suffixes)
        if delimiter == "|" and header.lstrip().startswith("|"):
            raise DataError(f"{path}:{len(begin)}: a table of Markdown; save it as CSV")
        reader = csv.reader(chain(begin, lines), delimiter=delimiter, strict=True)
        while True:
            first = reader.line_num + 1  # a row may take several lines
            try:
                record = next(reader, None)
            except csv.Error as error:
                place = f"{path}:{first}"
                if reader.line_num > first:  # the open quote took an unknown number of rows
                    raise DataError(
                        f"{place}: a quote that opens here is never closed, or too late; "
                        "close it, or write two quotes for one that belongs to the text"
                    ) from None
                if first == len(begin):
                    raise DataError(
                        f"{place}: no names of columns ({error}); correct that line"
                    ) from None
                rows.refuse(place, "not CSV", f" ({error})")
                continue
            if record is None:
                return
            # Rows without a value end the tables of some programs, a sign of its own those of DOS.
            if any(record) and record != ["\x1a"]:
                yield first, record


def _read_begin(lines: Iterator[str]) -> tuple[list[str], str | None]:
    """The lines to that of the names, and the separator that Excel's first line may announce.

    That line becomes an empty one, so that lines keep their numbers.
    """
    begin: list[str] = []
    announced = None
    for line in lines:
        if announced is None and (found := _ANNOUNCED.fullmatch(line.rstrip("\r\n"))):
            announced, line = found[1], "\n"
        begin.append(line)
        if line.strip():
            break
    return begin, announced


def _find_delimiter(header: str, tabs: bool) -> str:
    """What separates the columns: it gives the most names that are read, or is there most often."""

    def count(delimiter: str) -> tuple[int, int]:
        names = next(csv.reader([header], delimiter=delimiter), [])
        if len(names) == 1:  # a name with words of several, if it is not split where it should be
            return int(name_kind(names[0]) == "used"), 0
        return sum(map(is_read, names)), header.count(delimiter)

    return max(("\t", ",", ";", "|") if tabs else (",", ";", "\t", "|"), key=count)


def name_table(line: str) -> str | None:
    """Return the suffix for a table with such a first line; None if no column is a prompt's."""
    for delimiter, suffix in (("\t", ".tsv"), (",", ".csv"), (";", ".csv")):
        names = line.split(delimiter)
        if len(names) > 1 and any(name_kind(name.strip(' "\r\n')) == "used" for name in names):
            return suffix
    return None


def _name_columns(header: list[str], place: str) -> list[str]:
    """The names of the columns; one without a name gets its number."""
    names = [name.strip() or f"column {number}" for number, name in enumerate(header, 1)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(
            f"{place}: the column {twice!r} is there twice; rename or remove one of them"
        )
    return names


@contextmanager
def _any_length() -> Iterator[None]:
    """Fields of any length, which csv knows as a limit for all of Python."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)
