"""Data files as rows: every format, every fault of a line with its place, folders."""

import bz2
import gzip
import io
import json
import lzma
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_lite.data.data_files import read_rows
from selfreward_lite.data.prompt_rows import extract_prompts
from selfreward_lite.system.errors import DataError

GOOD = [
    {"prompt": f"Sort the letters {letters}."} for letters in ("c a b", "d a b", "e a b", "f a b")
]
WANTED = [row["prompt"] for row in GOOD]


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
        return path
    if ".csv" in path.suffixes:
        text = "prompt\n" + "".join(f'"{row["prompt"]}"\n' for row in rows)
    elif ".json" in path.suffixes:
        text = json.dumps(rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path: Path) -> list[str]:
    return extract_prompts(read_rows(path, skip_bad=False))


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.parquet", "A.JSONL"]
    + ["a.jsonl.gz", "a.json.gz", "a.csv.gz"],
)
def test_prompts_come_out_of_every_format_alike(tmp_path, name):
    assert read(write(tmp_path / name, GOOD)) == WANTED


texts = st.text(min_size=1, max_size=60).filter(lambda text: text.strip() and "\x00" not in text)


@given(st.lists(texts, min_size=1, max_size=5))
def test_texts_come_out_as_they_went_in(tmp_path_factory, wanted):
    path = tmp_path_factory.mktemp("round") / "mine.jsonl"
    rows = read_rows(write(path, [{"prompt": text} for text in wanted]), skip_bad=False)
    assert [row for _, row in rows.rows] == [{"prompt": text} for text in wanted]


# -- JSON ----------


BROKEN = {
    "cut last line": b'{"prompt": "Wh',
    "NUL bytes": b'{"prompt": "a\x00b"}\n',
    "invalid UTF-8": b'{"prompt": "\xff\xfe"}\n',
    "10 MB line": b'{"prompt": "' + b"a" * 10_000_000 + b'"}\n',
    "duplicate keys": b'{"prompt": "a", "prompt": "b"}\n',
    "not an object": b"[1, 2]\n",
    "a number": b"7\n",
    "a number without end": b'{"prompt": ' + b"7" * 10_000 + b"}\n",
    "nested without end": b'{"prompt": ' + b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_garbled_line_is_named_by_file_and_line(tmp_path, name):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in GOOD) + BROKEN[name])
    with pytest.raises(DataError, match=r"mine\.jsonl:5: "):
        read_rows(path, skip_bad=False)
    rows = read_rows(path, skip_bad=True)
    assert len(rows.rows) == 4
    assert list(rows.skipped.values()) == [1]


def test_a_field_that_is_there_twice_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "prompt": "b"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: .*the field 'prompt' is there twice"):
        read(tmp_path / "a.jsonl")


COMMA = 2 if sys.version_info >= (3, 13) else 3  # Python 3.13 names the comma, before: the bracket
CAUSES = {
    "[{'prompt': 1}]": ":1: not JSON: single quotes",
    '[\n{"prompt": "a"},\n]': f":{COMMA}: not JSON: a comma before a closing bracket",
    '[{"prompt": "a",}]': ":1: not JSON: a comma before a closing bracket",
    '// mine\n[{"prompt": "a"}]': ":1: not JSON: a comment",
    '[{"prompt": "a"}, # mine\n]': ":1: not JSON: a comment",
    "[{“prompt”: “a”}]": ":1: not JSON: curly quotes",
    '[{"prompt": None}]': ":1: not JSON: JSON has null",
    '[{"prompt": "a"}]\0\0': ":1: not JSON: zero bytes",
    '[{"prompt": "a\tb"}]': ":1: not JSON: a line break, a tab",
    '[{"prompt": "C:\\data"}]': ":1: not JSON: a backslash",
    '[{"prompt": "a "b" c"}]': ":1: not JSON: no comma here, or a quote inside",
    '[\n{"prompt" "a"}]': ":2: not JSON: no colon",
    '[\n{"prompt": "a}]': ":2: not JSON: it ends in the middle .*; close its quote",
    '[{"prompt": ]': ":1: not JSON: no value of JSON here",
}


@pytest.mark.parametrize("text", CAUSES)
def test_faults_of_json_are_named_by_their_cause_and_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=rf"a\.json{CAUSES[text]}") as caught:
        read(tmp_path / "a.json")
    assert "char " not in str(caught.value)


def test_faults_of_a_line_of_json_say_where_in_it(tmp_path):
    path = tmp_path / "a.jsonl"
    for line, says in (
        ('{"prompt": "a"}{"prompt": "b"}', r"more behind its end; .* \(character 16\); correct"),
        (
            "{\n",
            r"it ends in the middle of an object or a text \(character 2\); each line holds a",
        ),
        ("\0\0\0", r"zero bytes, as a crash leaves them at the end of a file; remove them"),
        ('{"prompt": "W\udcf6rter"}', r"letters that are not UTF-8; save .* \(character 14\)"),
    ):
        path.write_bytes(f'{{"prompt": "Why?"}}\n{line}\n'.encode("utf-8", "surrogateescape"))
        with pytest.raises(DataError, match=rf"a\.jsonl:2: not JSON: {says}"):
            read(path)


def test_an_object_with_one_list_of_rows_is_read_and_said(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": "1.0", "data": GOOD, "tags": ["a"]}))
    rows = read_rows(path, skip_bad=False)
    assert extract_prompts(rows) == WANTED
    assert rows.notes == [f"{path}: read the list 'data' in it; left out: version, tags"]
    for held in (
        {"train": GOOD, "test": GOOD},
        {"prompt": {"0": "Why?", "1": "How?"}},
        {"prompt": "Why?", "choices": GOOD},
        {"messages": GOOD},
    ):
        path.write_text(json.dumps(held))
        with pytest.raises(DataError, match=r"holds one object with the fields .*, not a list"):
            read(path)


def test_byte_order_mark_crlf_and_empty_lines_are_no_faults(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(json.dumps(row).encode() for row in GOOD))
    assert read(path) == WANTED
    path.write_bytes(path.read_text("utf-8-sig").encode("utf-16"))  # as PowerShell saves it
    assert read(path) == WANTED


def test_a_list_is_no_json_lines_and_the_other_way_round(tmp_path):
    (tmp_path / "a.jsonl").write_text(f"\n{json.dumps(GOOD, indent=1)}")
    with pytest.raises(DataError, match=r"a\.jsonl:2: a list, .*call the file \.json$"):
        read(tmp_path / "a.jsonl")
    lines = write(tmp_path / "lines.jsonl", GOOD).rename(tmp_path / "lines.json")
    one = write(tmp_path / "one.jsonl", GOOD[:1]).rename(tmp_path / "one.json")
    for path in (lines, one):
        with pytest.raises(DataError, match=r"an object in each line is called \.jsonl"):
            read(path)


def test_a_bad_object_of_a_list_is_named_by_its_number(tmp_path):
    path = write(tmp_path / "a.json", [*GOOD, {"prompt": 7}])
    with pytest.raises(DataError, match=r"a\.json, row 5: field 'prompt' is only a number"):
        read(path)


# -- tables ----------

TABLE = 'prompt{0}topic\nDescribe a café.{0}x\n"One{0}two; three, four."{0}y\n"Say ""hello""."{0}\n'
IN_TABLE = ["Describe a café.", "One{0}two; three, four.", 'Say "hello".']


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_tables_of_every_separator_and_encoding(tmp_path, name, separator, encoding):
    path = tmp_path / name
    path.write_bytes(TABLE.format(separator).replace("\n", "\r\n").encode(encoding))
    rows = read_rows(path, skip_bad=False)
    assert extract_prompts(rows) == [text.format(separator) for text in IN_TABLE]
    assert rows.rows[2][1]["topic"] is None
    guessed = [note for note in rows.notes if "read as Windows-1252 (cp1252)" in note]
    assert len(guessed) == (encoding == "cp1252")


def test_a_table_of_one_column_is_split_nowhere(tmp_path):
    (tmp_path / "a.tsv").write_text("prompt\nOne, two; three.\nFour, five.\n")
    assert read(tmp_path / "a.tsv") == ["One, two; three.", "Four, five."]


def test_bad_rows_of_a_table_are_named_by_the_line_of_the_file(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(
        b'\nprompt,topic\n\n"Why\nso?",x\nonly one field\n"How?",y\n"\xff",z\n,\n"\xc3\xa9?",a\n'
    )
    with pytest.raises(DataError, match=r"mine\.csv:6: another number of fields .*\(1, not 2"):
        read_rows(path, skip_bad=False)
    rows = read_rows(path, skip_bad=True)
    assert [(place.rpartition(":")[2], row["prompt"]) for place, row in rows.rows] == [
        ("4", "Why\nso?"),
        ("7", "How?"),
        ("10", "é?"),
    ]
    assert rows.skipped == {"another number of fields than the first line": 1, "not UTF-8": 1}


def test_the_first_row_of_a_table_is_on_line_two(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,topic\nonly one field\n")
    with pytest.raises(DataError, match=r"a\.csv:2: another number of fields"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("separator", [",", ";", "|", "\t"])
def test_the_separator_that_excel_announces_is_taken_and_lines_keep_their_numbers(
    tmp_path, separator
):
    path = tmp_path / "a.csv"
    lines = (f"sep={separator}", f"prompt{separator}x", f"Why?{separator}1", "How?")
    path.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    with pytest.raises(DataError, match=r"a\.csv:4: another number of fields .*\(1, not 2"):
        read(path)
    assert extract_prompts(read_rows(path, skip_bad=True)) == ["Why?"]


def test_tables_that_were_joined_keep_no_second_header_and_no_marks(tmp_path):
    path = tmp_path / "a.csv"
    part = "prompt,x\nWhy?,1\n".encode("utf-8-sig")
    path.write_bytes(part + part + "\ufeffHow?,2\n".encode())
    rows = read_rows(path, skip_bad=False)
    assert extract_prompts(rows) == ["Why?", "Why?", "How?"]
    assert rows.skipped == {"names of columns again": 1}
    lines = write(tmp_path / "b.jsonl", GOOD[:2])
    lines.write_bytes(lines.read_bytes() + "\ufeff".encode() + lines.read_bytes())
    assert read(lines) == WANTED[:2] * 2


def test_an_unclosed_quote_loses_no_rows_uncounted(tmp_path):
    path = tmp_path / "mine.csv"
    for skip_bad, rest in (
        (False, '"What?"\nWhen?\n'),
        (True, '"What?"\nWhen?\n'),
        (True, "What?\nWhen?\n"),
    ):
        path.write_text('prompt\n"Why?"\n"How?\n' + rest)
        with pytest.raises(DataError, match=r"mine\.csv:3: a quote that opens here"):
            read_rows(path, skip_bad=skip_bad)


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_field_may_have_any_length(tmp_path, quote):
    long = "Summarise: " + "word " * 100_000 + "."
    (tmp_path / "a.csv").write_text(f"prompt\n{quote}{long}{quote}\nWhy?\n")
    assert read(tmp_path / "a.csv") == [long, "Why?"]


def test_the_names_of_columns_must_be_clear(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,topic,prompt\nWhy?,x,How?\n")
    with pytest.raises(DataError, match=r"a\.csv:1: the column 'prompt' is there twice; rename"):
        read(path)
    path.write_text('"prompt"x\nWhy?\n')
    with pytest.raises(DataError, match=r"a\.csv:1: no names of columns"):
        read_rows(path, skip_bad=True)
    path.write_text("Why?;x\nHow?;y\n")
    with pytest.raises(DataError, match=r"a\.csv:2: no field with a prompt .*fields are Why\?, x;"):
        read(path)


def test_a_table_without_a_name_for_its_numbers_is_read(tmp_path):
    (tmp_path / "pandas.csv").write_text(",prompt\n0,Why?\n1,How?\n")
    rows = read_rows(tmp_path / "pandas.csv", skip_bad=False)
    assert extract_prompts(rows) == ["Why?", "How?"]
    assert rows.notes == [f"{tmp_path}/pandas.csv: fields that are not used: column 1"]


# -- Parquet ----------


def test_a_bad_parquet_row_is_named_other_columns_are_not_read(tmp_path):
    broken = pa.array([b"Why?", b"\xff\xfe", b"How?"]).view(pa.string())
    dates = pa.array([2**60] * 3, pa.timestamp("us"))
    pa.parquet.write_table(pa.table({"Prompt": broken, "when": dates}), tmp_path / "mine.parquet")
    with pytest.raises(DataError, match=r"mine\.parquet, row 2: a value that cannot be read"):
        read_rows(tmp_path / "mine.parquet", skip_bad=False)
    rows = read_rows(tmp_path / "mine.parquet", skip_bad=True)
    assert extract_prompts(rows) == ["Why?", "How?"]
    assert rows.skipped.total() == 1
    assert rows.notes == [f"{tmp_path}/mine.parquet: fields that are not used: when"]


def test_conversations_that_datasets_wrote_as_json_are_read(tmp_path):
    from datasets import Dataset, Features, Json, List, Value

    call = [{"name": "weather", "arguments": {"city": "Oslo"}}]
    rows = [
        {"id": "a", "messages": [{"role": "user", "content": "Describe a lamp."}]},
        {
            "id": "b",
            "messages": [{"role": "assistant", "content": None, "tool_calls": call}],
        },
        {"id": "c", "messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]},
    ]
    kinds = Features({"id": Value("string"), "messages": List(Json())})
    Dataset.from_list(rows, features=kinds).to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(DataError, match=r"a\.parquet, row 2: the conversation calls tools"):
        read(tmp_path / "a.parquet")
    assert extract_prompts(read_rows(tmp_path / "a.parquet", skip_bad=True)) == [
        "Describe a lamp.",
        "Why?",
    ]


# -- files that are no data ----------


def zipped(*names: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return made.getvalue()


LINE = b'{"prompt": "Why?"}\n'
OTHERS = [
    (("a.csv", "a.xlsx", "a.jsonl"), zipped("xl/workbook.xml"), "an Excel workbook; .*as CSV"),
    (("a.csv",), zipped("content.xml"), "an OpenDocument file; .*as CSV"),
    (("a.docx",), zipped("word/document.xml"), "a Word document"),
    (("a.zip", "a.jsonl", "a.jsonl.gz"), zipped("a.jsonl"), "a ZIP archive; unpack it"),
    (("a.csv",), b"PK\x03\x04\x14rest", "a damaged ZIP archive or Excel workbook"),
    (
        ("a.xls", "a.csv"),
        b"\xd0\xcf\x11\xe0rest",
        "a workbook or document of an old Office; .*as CSV",
    ),
    (("a.pdf", "a.json"), b"%PDF-1.7", "a PDF document"),
    (("a.db",), b"SQLite format 3\0", "an SQLite database"),
    (("a.jsonl.zst", "a.jsonl"), b"\x28\xb5\x2f\xfdrest", "packed with zstd; unpack it"),
    (("a.jsonl.bz2",), bz2.compress(LINE), "packed with bzip2"),
    (("a.jsonl.xz",), lzma.compress(LINE), "packed with xz"),
    (("a.tar", "a.csv"), b"a" * 257 + b"ustar", "an archive; unpack it"),
    (("a.jsonl", "a.csv"), gzip.compress(LINE), "packed with gzip; add .gz to its name"),
    (("a.parquet",), gzip.compress(LINE), "packed with gzip; unpack it"),
    (("a.jsonl.gz",), gzip.compress(gzip.compress(LINE)), "packed twice with gzip"),
    (("a.jsonl.gz",), LINE, "not packed with gzip; remove .gz"),
    (("a.jsonl.gz",), gzip.compress(zipped("a.jsonl")), "a ZIP archive"),
    (("a.arrow",), b"\xff\xff\xff\xff", r"an Arrow file; .*to_parquet"),
    (("a.jsonl",), b"PAR1rest", "a Parquet file; call it .parquet"),
    (("a.csv", "a.parquet"), LINE, "JSON, by its first signs; call it .jsonl"),
    (("a.tsv",), b'[\n {"prompt": "Why?"}]', "JSON, by its first signs; call it .json$"),
    (("a.jsonl", "a.json"), b"prompt,x\nWhy?,1\n", "a table, by its first line; call it .csv"),
    (("a.json",), b"prompt\tx\nWhy?\t1\n", "a table, by its first line; call it .tsv"),
    (("a.json", "a.jsonl"), b"- prompt: Why?\n", "YAML"),
    (("a.json", "a.csv", "a.html"), b"\n<!DOCTYPE html><html>", "a web page, as sites send it"),
    (("a.csv", "a.jsonl"), "prompt,x\nWhy?,1\n".encode("utf-16-le"), "UTF-16 without the mark"),
    (("a.csv",), "prompt,x\nWhy?,1\n".encode("utf-16-be"), "UTF-16 without the mark"),
    (("a.csv", "a.jsonl"), b"\0" * 50, "nothing but zero bytes"),
    (("a.csv",), bytes(range(1, 32)) * 20, "no text"),
    (("a.txt",), b"Why?\n", "plain text has no fields; make it a table"),
]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [(name, content, says) for names, content, says in OTHERS for name in names],
)
def test_files_of_other_programs_are_called_by_what_they_are(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: {says}") as caught:
        read_rows(tmp_path / name, skip_bad=True)
    assert len(str(caught.value).splitlines()) == 1


def test_odd_text_is_no_other_program_s_file(tmp_path):
    path = tmp_path / "a.csv"
    for text in ("Привет, как дела?", "a\x1b[31m", "\x07", "PK", "- a: b", "<b>Why?</b>"):
        for encoding in ("utf-8", "utf-16"):
            path.write_bytes(f'prompt\n"{text}"\n'.encode(encoding))
            assert read(path) == [text]
    lines = write(tmp_path / "b.jsonl", GOOD)
    lines.write_bytes(b"oops, no JSON\n" + lines.read_bytes() + b"\0" * 3000)
    rows = read_rows(lines, skip_bad=True)
    assert (extract_prompts(rows), rows.skipped) == (WANTED, {"not JSON": 2})


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.parquet", b"PAR1", "not a complete Parquet file"),
        ("a.parquet", b"", "not a complete Parquet file"),
        ("a.json", b"{", "not JSON: it ends in the middle of an object"),
        ("a.json", b"x", "not JSON: no value of JSON here"),
        ("a.jsonl", b"", "no usable row in it"),
        ("a.csv", b"", "no usable row in it"),
        ("a.csv", b"prompt\n", "no usable row in it"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"prompt": "a"}\n', mtime=0)[:-4],
            "not a complete gzip file",
        ),
        ("a.csv.gz", b"prompt\nWhy?\n", "not packed with gzip; remove .gz from its name"),
        ("a.csv", b"\xff\xfep\x00r\x00o", "begins as utf-16.* and is something else later"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
    ],
)
def test_a_file_that_is_no_data_is_one_line(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}:.* {says}") as caught:
        read_rows(tmp_path / name, skip_bad=True)
    assert len(str(caught.value).splitlines()) == 1


def test_missing_files_and_unknown_formats(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "nothing.jsonl")
    for name in ("a.xlsx", "a.gz", "a.parquet.gz", "a"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(DataError, match=r"call it \.jsonl"):
            read(tmp_path / name)


# -- folders ----------


def test_every_data_file_of_a_folder_is_read_and_the_rest_is_named(tmp_path):
    write(tmp_path / "train.parquet", GOOD[:1])
    write(tmp_path / "extra.parquet", GOOD[1:2])
    write(tmp_path / "more" / "a.jsonl.gz", GOOD[2:3])
    write(tmp_path / "more" / "b.csv", GOOD[3:])
    for name in (".ipynb_checkpoints/b-checkpoint.csv", "__MACOSX/more/._b.csv", ".b.csv"):
        write(tmp_path / name, [{"prompt": "stale"}])
    for name in ("README.md", "dataset_infos.json", "data-00000-of-00001.arrow", ".gitattributes"):
        (tmp_path / name).write_text("{}")
    rows = read_rows(tmp_path, skip_bad=False)
    assert sorted(extract_prompts(rows)) == WANTED
    assert rows.notes == [
        f"{tmp_path}: read extra.parquet (rows: 1), more/a.jsonl.gz (rows: 1), more/b.csv (rows: "
        "1), train.parquet (rows: 1); left out: .b.csv, .ipynb_checkpoints/b-checkpoint.csv, "
        "README.md, __MACOSX/more/._b.csv, data-00000-of-00001.arrow, dataset_infos.json; to take "
        "one of them, give its path"
    ]


def test_files_about_the_data_are_left_out_others_are_named(tmp_path):
    write(tmp_path / "a.jsonl", GOOD)
    names = ("config.json", "package.json", "tokenizer_config.json", "model.index.json")
    for name in names:
        (tmp_path / name).write_text('{"a": 1}')
    rows = read_rows(tmp_path, skip_bad=False)
    assert extract_prompts(rows) == WANTED
    assert f"left out: {', '.join(sorted(names))}" in rows.notes[0]
    (tmp_path / "labels.json").write_text('{"good": 1}')
    with pytest.raises(DataError, match=r"labels\.json: .*If it holds no data, remove it from"):
        read(tmp_path)


def test_configurations_and_splits_are_named_by_their_files(tmp_path):
    write(tmp_path / "plain" / "train.parquet", GOOD[:1])
    write(tmp_path / "asked" / "test.parquet", [{"question": "Why?"}])
    rows = read_rows(tmp_path, skip_bad=False)
    assert extract_prompts(rows) == ["Why?", WANTED[0]]
    assert "read asked/test.parquet (rows: 1), plain/train.parquet (rows: 1)" in rows.notes[0]


def test_a_bad_file_of_a_folder_is_named(tmp_path):
    write(tmp_path / "a.jsonl", GOOD)
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"b\.parquet: not a complete Parquet file"):
        read(tmp_path)
    (tmp_path / "b.parquet").unlink()
    (tmp_path / "b.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": }\n')
    with pytest.raises(DataError, match=r"b\.jsonl:2: not JSON"):
        read(tmp_path)
    assert read_rows(tmp_path, skip_bad=True).skipped == {"not JSON": 1}


def test_a_folder_without_data_says_what_is_in_it(tmp_path):
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"no data file in it; left out: data-.*\.arrow; write it as Parquet"
    ):
        read(tmp_path)
