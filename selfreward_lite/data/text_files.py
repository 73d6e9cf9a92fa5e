"""Text files as people save them: with or without a byte order mark, UTF-16, gzip."""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO

from selfreward_lite.data.code_pages import find_impossible_words
from selfreward_lite.system.errors import DataError

WINDOWS = "cp1252"  # what Excel saves as CSV in most of Europe and America
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WORD = re.compile(r"[^\W\d_]+")
# What other code pages give as Windows-1252: no plain letter (Cyrillic), signs for letters
# (Polish), capitals inside of a word (an old Mac's).
_ODD = re.compile(r"[^\W\d_a-zA-Z]{3,}|.*[a-zß-ÿ](?:[¹²³][a-zß-ÿ]|[ŒŠŽŸ]).*")
_ODD_SHARE = 5  # one such word of so many with accents; in Western Europe hardly one of 1,000
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


@contextmanager
def open_text(path: Path, encoding: str | None = None) -> Iterator[TextIO]:
    """A text file to read, of which `.gz` may be packed; without an encoding, its mark tells it.

    Bytes that are not UTF-8 become what `is_utf8` finds. Raises DataError for a file that ends
    early, or is not in the encoding that its mark announces.
    """
    with _name_faults(path):
        encoding = encoding or _read_mark(path)
        # UTF-16 and UTF-32 have no bytes that could stand for themselves.
        errors = "strict" if encoding in ("utf-16", "utf-32") else "surrogateescape"
        with (
            _open_bytes(path) as data,
            io.TextIOWrapper(data, encoding=encoding, errors=errors, newline="") as text,
        ):
            yield text


def guess_encoding(path: Path) -> str:
    """Return the encoding of a file: that of its mark, UTF-8, or `WINDOWS`.

    The last is a guess, for a file in which every line with other letters than ASCII's is no UTF-8
    and can be that. One line of UTF-8 among them, and the others are faults of it. Raises DataError
    if it would have words that no language of Western Europe has.
    """
    with _name_faults(path):
        marked = _read_mark(path)
        return _guess_from_lines(path) if marked == "utf-8" else marked


def is_utf8(text: str) -> bool:
    """Return whether a text that `open_text` gave was UTF-8 in its file."""
    return find_no_utf8(text) is None


def find_no_utf8(text: str) -> int | None:
    """Return where a text that `open_text` gave was not UTF-8 in its file, None if it all was."""
    found = _NOT_UTF8.search(text)
    return found.start() if found else None


def _read_mark(path: Path) -> str:
    with _open_bytes(path) as data:
        start = data.read(4)
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")


def _guess_from_lines(path: Path) -> str:
    guessed, words = "utf-8", list[str]()
    with _open_bytes(path) as lines:
        for line in lines:
            if line.isascii():
                continue
            if _can_decode(line, "utf-8") or not _can_decode(line, WINDOWS):
                return "utf-8"
            guessed = WINDOWS
            words += _WORD.findall(line.decode(WINDOWS))
    _refuse_other_scripts(path, words)
    return guessed


def _refuse_other_scripts(path: Path, words: Sequence[str]) -> None:
    """Raise DataError if words that were read as Windows-1252 are none of Western Europe."""
    accented = [word for word in words if not word.isascii()]
    odd = [word for word in accented if _ODD.fullmatch(word)]
    letters = "".join(words)
    plain = len(letters.encode("ascii", "ignore"))
    impossible = find_impossible_words(words)
    if len(odd) * _ODD_SHARE > len(accented) or plain < len(letters) - plain or impossible:
        shown = (odd or impossible or accented)[0][:20]
        raise DataError(
            f"{path}: neither UTF-8 nor Windows-1252 ({WINDOWS}), which would give words such as "
            f"{shown!r}; save it as UTF-8"
        )


def _can_decode(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _open_bytes(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix.casefold() == ".gz" else path.open("rb")  # type: ignore[return-value]


@contextmanager
def _name_faults(path: Path) -> Iterator[None]:
    """Turn what is wrong with the bytes of a file into one line."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: not a complete gzip file ({error}); download or pack it again"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: begins as {error.encoding} and is something else later ({error.reason}); "
            "save it as UTF-8"
        ) from None
