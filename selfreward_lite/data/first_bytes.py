"""What a file is by its first bytes, where that is not what its name says.

For each kind one line: what it is, and what to do. Only what is certain is named; anything else is
for the reader of that format to judge.
"""

import gzip
import re
import zipfile
import zlib
from pathlib import Path

_START = 4096  # bytes
_GZIP = b"\x1f\x8b"
_ZIP = b"PK\x03\x04"
_PARQUET = b"PAR1"
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
_JSON_NAMES = (".json", ".jsonl", ".ndjson")
_TABLES = (".csv", ".tsv")
_AS_CSV = "save what is in it as CSV (UTF-8), and give that file"
TO_PARQUET = "write it as Parquet: datasets.load_from_disk(FOLDER).to_parquet(FILE), of one split"
TO_LINES = "write it as .jsonl (of pandas: to_json(FILE, orient='records', lines=True))"
# Formats that another name does not make one of those that are read.
_UNREAD = {
    **dict.fromkeys((".yaml", ".yml"), "YAML"),
    **dict.fromkeys((".pkl", ".pickle"), "pickled by Python"),
    **dict.fromkeys((".npy", ".npz"), "an array of NumPy"),
    ".xml": "XML",
    ".toml": "TOML",
    ".avro": "Avro",
    ".orc": "ORC",
    ".tfrecord": "TFRecord",
    ".feather": "Feather",
    ".msgpack": "MessagePack",
    ".json5": "JSON5",
    ".rtf": "RTF",
}
# How a file begins, in any of them: what it is.
_FOREIGN = (
    (
        rb"version https://git-lfs",
        "a pointer of Git LFS, not the file; run git lfs pull in that folder, or download it",
    ),
    (rb"\xd0\xcf\x11\xe0", f"a workbook or document of an old Office; {_AS_CSV}"),
    (rb"%PDF-", f"a PDF document; {_AS_CSV}"),
    (rb"SQLite format 3\0", f"an SQLite database; {_AS_CSV}"),
    (rb"BZh\d1AY&SY", "packed with bzip2; unpack it, and give what was in it"),
    (rb"\xfd7zXZ\0", "packed with xz; unpack it, and give what was in it"),
    (rb"\x28\xb5\x2f\xfd", "packed with zstd; unpack it, and give what was in it"),
    (rb"7z\xbc\xaf\x27|Rar!\x1a|.{257}ustar", "an archive; unpack it, and give what was in it"),
    (rb"ARROW1\0\0", f"an Arrow file; {TO_PARQUET}"),
    (
        rb"(?i:\s*<(?:!doctype\s+html|html|head)\b)",
        "a web page, as sites send it where one must sign in or the file is gone; download the "
        "file itself",
    ),
    (rb"\s*<\?xml\b", f"XML; {_AS_CSV}"),
    (rb"\x80[\x02-\x05](?:\x95|[\]}(c])", f"pickled by Python; {TO_LINES}"),
)
_FOREIGN_PATTERNS = [(re.compile(rb"\A(?:%b)" % how, re.DOTALL), what) for how, what in _FOREIGN]
_IN_ZIP = (
    ("xl/", f"an Excel workbook; {_AS_CSV}"),
    ("word/", f"a Word document; {_AS_CSV}"),
    ("content.xml", f"an OpenDocument file; {_AS_CSV}"),
)
_YAML = re.compile(rb"\A\s*(?:---\s|- [\w \"']+:\s|[A-Za-z_]\w*:\s)")
_YAML_LIST = re.compile(rb"\A(?:---[^\S\n]*\r?\n|- [\w \"']+:\s)")  # no line of names begins so
_JSON_LINE = re.compile(rb"^\s*[\[{]", re.MULTILINE)
_OBJECTS = re.compile(rb"""\A\s*(?:(\{)\s*["']|\[\s*\{)""")
_CONTROLS = bytes({*range(32)} - {*b"\0\t\n\v\f\r\x1b"})  # zeros are left by crashes, too


def name_foreign(path: Path) -> str | None:
    """Return what a file of another program is, and what to do with it; None for any other."""
    with path.open("rb") as file:
        start = file.read(_START)
    if start.startswith(_GZIP):
        inside = _read_inside(path)
        return _name_foreign(inside, None) or _name_packed(inside)
    return _name_foreign(start, path)


def name_format(path: Path) -> str | None:
    """Return what a file is by a name that tells a format which is not read, and what to do."""
    found = _UNREAD.get(path.suffix.casefold())
    return f"{found}; {TO_LINES}" if found else None


def name_text(path: Path) -> str | None:
    """Return what a file of text without a known name holds, and what to call it, if it is JSON."""
    with path.open("rb") as file:
        start = file.read(_START)
    return _name_text(".csv", start) if start else None


def _name_packed(inside: bytes) -> str:
    if inside.startswith(_PARQUET):
        return "a Parquet file, packed with gzip; unpack it"
    return "packed with gzip; say in its name what is in it, as in prompts.jsonl.gz"


def name_mistake(path: Path) -> str | None:
    """Return what a file is, and what to do, where its content contradicts its name.

    Its name tells one of the formats that are read, and may end in .gz. None if it may be right.
    """
    with path.open("rb") as file:
        start = file.read(_START)
    name, suffix = Path(path.name), path.suffix.casefold()
    if not start:
        return None
    if start.startswith(_GZIP):
        if suffix != ".gz":
            wanted = "unpack it" if suffix == ".parquet" else "add .gz to its name, or unpack it"
            return f"packed with gzip; {wanted}"
        inside = _read_inside(path)
        if not inside:
            return None
        if inside.startswith(_GZIP):
            return "packed twice with gzip; unpack it once"
        return _name_foreign(inside, None) or _name_text(Path(name.stem).suffix, inside)
    if found := _name_foreign(start, path):
        return found
    if suffix == ".gz":
        return "not packed with gzip; remove .gz from its name"
    return _name_text(suffix, start)


def _read_inside(path: Path) -> bytes:
    """What a packed file begins with; nothing if that cannot be read, which its reader names."""
    try:
        with gzip.open(path) as file:
            return file.read(_START)
    except (OSError, EOFError, zlib.error):
        return b""


def _name_foreign(start: bytes, path: Path | None) -> str | None:
    if start.startswith(_ZIP):
        return _name_zip(path)
    return next((what for how, what in _FOREIGN_PATTERNS if how.match(start)), None)


def _name_zip(path: Path | None) -> str:
    """What a ZIP archive is: programs keep their documents in some."""
    names: list[str] = []
    try:
        if path is not None:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return f"a damaged ZIP archive or Excel workbook; download it again, or {_AS_CSV}"
    for begin, what in _IN_ZIP:
        if any(name.startswith(begin) for name in names):
            return what
    return "a ZIP archive; unpack it, and give what was in it"


def _name_text(suffix: str, start: bytes) -> str | None:
    """What a file is whose name says Parquet, JSON or a table."""
    suffix = suffix.casefold()
    if start.startswith(_PARQUET):
        return None if suffix == ".parquet" else "a Parquet file; call it .parquet"
    objects = _OBJECTS.match(start)
    if objects and suffix in (*_TABLES, ".parquet"):
        return f"JSON, by its first signs; call it {'.jsonl' if objects[1] else '.json'}"
    if suffix == ".parquet" or start.startswith(_MARKS):
        return None
    if fault := _name_no_text(start):
        return fault
    if suffix in _TABLES and _YAML_LIST.match(start):
        return f"YAML, by its first signs; {TO_LINES}"
    if suffix in _JSON_NAMES and not _JSON_LINE.search(start):
        return _name_no_json(start)
    return None


def _name_no_text(start: bytes) -> str | None:
    """What bytes are that no text in UTF-8 or of Windows has."""
    text = start.rstrip(b"\0")  # zeros at the end are the rest of a crash
    if not text:
        return "nothing but zero bytes: it was never written completely; download or make it again"
    odd, even = text[1::2].count(0), text[::2].count(0)
    if len(text) >= 8 and 2 * max(odd, even) > len(text) // 2 > 8 * min(odd, even):
        return "UTF-16 without the mark that says so; save it as UTF-8"
    if len(text) - len(text.translate(None, _CONTROLS)) > 8 + len(text) // 20:
        return "no text; give the data as text, or as .parquet"
    return None


def _name_no_json(start: bytes) -> str | None:
    """What a file may be whose name says JSON and in which nothing begins like it."""
    if _YAML.match(start):
        return "YAML, by its first signs; write it as JSON"
    first = next((line for line in start.splitlines() if line.strip()), b"")
    if first.lstrip().startswith((b"//", b"/*", b"#", b'"', b"'")):
        return None
    if separator := next((one for one in (b"\t", b";", b",") if one in first), None):
        return (
            f"a table, by its first line; call it {'.tsv' if separator == bytes([9]) else '.csv'}"
        )
    return None
