"""Files that are nearly right: other encodings, links, column types, parts beside the rows."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from selfreward_lite.data.data_files import read_rows
from selfreward_lite.data.prompt_rows import extract_prompts
from selfreward_lite.system.errors import DataError

LINE = '{"prompt": "Why?"}\n'


def read(path):
    return extract_prompts(read_rows(path, skip_bad=False))


def write_table(path, columns):
    pa.parquet.write_table(pa.table(columns), path)
    return path


TAR = gzip.compress(b"a" * 257 + b"ustar")
NAMES = [
    ("a.md", b"Why?\nHow, and when?\n", "plain text has no fields; make it a table"),
    ("a.txt", b"", "plain text has no fields; make it a table"),
    ("a.txt", LINE.encode(), r"JSON, by its first signs; call it \.jsonl"),
    ("a.csv.txt", b"id;prompt\n1;Why?\n", r"a table, by its first line; call it \.csv"),
    ("a.txt", "prompt\tx\nWhy?\t1\n".encode("utf-16"), r"a table, .*call it \.tsv"),
    ("a.ipynb", b'{"cells": []}', "a Jupyter notebook; save the data in it as"),
    ("a.json", b'{"cells": [{"source": ["a"]}], "nbformat": 4}', "a Jupyter notebook; save"),
    ("a.yaml", b"- prompt: Why?\n", r"YAML; write it as \.jsonl"),
    ("a.csv", b"- prompt: Why?\n- prompt: How?\n", r"YAML, by its first signs; write it as"),
    ("a.toml", b"[a]\nprompt = 'Why?'\n", r"TOML; write it as \.jsonl"),
    ("a.xml", b"<rows><row prompt='Why?'/></rows>", r"XML; write it as \.jsonl"),
    *((name, b"\x80\x04\x95\x10\0", "pickled by Python; write") for name in ("a.pkl", "a.csv")),
    ("a.jsonl", b"\x80\x04\x95\x10\0", "pickled by Python; write"),
    *((name, TAR, "an archive; unpack it") for name in ("a.tar.gz", "a.tgz", "a.jsonl.gz")),
    ("a.parquet.gz", gzip.compress(b"PAR1rest"), "a Parquet file, packed with gzip; unpack it"),
    ("a.gz", gzip.compress(LINE.encode()), "packed with gzip; say in its name what is in it"),
]


@pytest.mark.parametrize(("name", "content", "says"), NAMES)
def test_what_a_file_is_and_should_be_called_is_said(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: {says}"):
        read(tmp_path / name)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_a_table_whose_names_are_not_known_is_refused_with_them(tmp_path, separator, quote):
    names = separator.join(f"{quote}{name}{quote}" for name in ("User Prompt", "Model Answer"))
    (tmp_path / "a.csv").write_text(f'{names}\n"Why, then; or | not?"{separator}"So."\n')
    with pytest.raises(DataError, match="no field with a prompt .*are User Prompt, Model Answer"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("encoding", ["cp850", "mac_roman", "shift_jis"])
def test_a_table_in_no_known_encoding_says_what_to_do(tmp_path, encoding):
    text = "何を書く" if encoding == "shift_jis" else "Où ça? Für à"
    (tmp_path / "a.csv").write_bytes(f"prompt\n{text}\n".encode(encoding))
    with pytest.raises(DataError, match="UTF-8.*; save (?:it|the file) as UTF-8"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "Почему небо голубое?"),
        ("cp1253", "Γιατί είναι ο ουρανός γαλάζιος"),
        ("cp1255", "למה השמיים כחולים"),
        ("gbk", "天空为什么是蓝色的"),
        ("euc_kr", "하늘은 왜 파란가요"),
        ("cp1250", "Dlaczego niebo jest błękitne?"),
        ("mac_roman", "Warum ist der Himmel für uns blau?"),
    ],
)
def test_a_table_in_the_code_page_of_another_script_is_refused(tmp_path, encoding, text):
    path = tmp_path / "a.csv"
    path.write_bytes(f"prompt,answer\r\nIn English,x\r\n{text},y\r\n".encode(encoding))
    with pytest.raises(
        DataError, match=r"a\.csv: neither UTF-8 nor Windows-1252 .*; save it as UTF-8"
    ):
        read(path)


@pytest.mark.parametrize(
    "text", ["Größe für alle?", "Why’s that — “so”?", "Où ça? À l’été, là.", "À 5 m², ÇÀ Œuvre"]
)
def test_a_table_of_western_europe_is_read_as_windows_1252(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_bytes(f'prompt;answer\r\n"{text}";y\r\n'.encode("cp1252"))
    assert read(path) == [text]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_with_the_mark_of_a_wide_encoding_is_read(tmp_path, encoding, name):
    (tmp_path / name).write_bytes((LINE if name == "a.jsonl" else f"[{LINE}]").encode(encoding))
    assert read(tmp_path / name) == ["Why?"]


def test_bars_separate_columns_too(tmp_path):
    (tmp_path / "a.csv").write_text("id|prompt|answer\n1|Why, oh why?|So.\n")
    assert read(tmp_path / "a.csv") == ["Why, oh why?"]


def test_a_table_of_markdown_is_refused_and_the_end_sign_of_dos_is_no_row(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("| prompt | answer |\n|---|---|\n| Why? | So. |\n")
    with pytest.raises(DataError, match=r"a\.csv:1: a table of Markdown; save it as CSV"):
        read(path)
    path.write_bytes(b"prompt,answer\r\nWhy?,So.\r\n\x1a")
    assert read(path) == ["Why?"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("system_prompt", "Be terse."), ("Definition", ["Answer in a word."]), ("context", "Lamps.")],
)
def test_a_part_of_the_task_beside_a_list_of_rows_is_refused(tmp_path, name, value):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, name: value, "data": [{"prompt": "Why?"}]}))
    with pytest.raises(DataError, match=f"field '{name}' beside the list 'data' belongs to the"):
        read(path)
    path.write_text(json.dumps({"schema": {"a": "b"}, name: [], "data": [{"prompt": "Why?"}]}))
    assert read(path) == ["Why?"]


def test_links_to_folders_are_named_and_not_followed(tmp_path):
    folder, beside = tmp_path / "mine", tmp_path / "beside"
    for one in (folder, beside):
        one.mkdir()
        (one / "a.jsonl").write_text(LINE)
    (folder / "more").symlink_to(beside)
    (folder / "self").symlink_to(".")
    (folder / "b.jsonl").symlink_to(beside / "a.jsonl")
    rows = read_rows(folder, skip_bad=False)
    assert extract_prompts(rows) == ["Why?", "Why?"]
    assert "left out: more/ (a link to a folder), self/ (a link to a folder)" in rows.notes[0]


def test_a_link_to_a_file_that_is_gone_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINE)
    (tmp_path / "b.jsonl").symlink_to("gone.jsonl")
    for path in (tmp_path, tmp_path / "b.jsonl"):
        with pytest.raises(DataError, match=r"b\.jsonl: a link to gone\.jsonl, which is not there"):
            read(path)


REMARKS = ["Use three words at most.", "Use four words at most."]
COLUMNS = {
    "views of texts": pa.array(REMARKS, pa.string_view()),
    "bytes": pa.array([one.encode() for one in REMARKS], pa.binary()),
    "lists of one length": pa.array([["tea", "rain"]] * 2, pa.list_(pa.string(), 2)),
    "lists of long texts": pa.array([["tea", "rain"]] * 2, pa.large_list(pa.large_string())),
    "dictionaries": pa.array(REMARKS).dictionary_encode(),
    "maps": pa.array([[("who", "Ann")]] * 2, pa.map_(pa.string(), pa.string())),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_part_of_the_task_is_found_in_every_type_of_column(tmp_path, kind):
    columns = {"prompt": ["Why?", "How?"], "remark": COLUMNS[kind]}
    with pytest.raises(DataError, match=r"a\.parquet, row 1: field 'remark' belongs to the task"):
        read(write_table(tmp_path / "a.parquet", columns))


def test_columns_of_figures_are_not_read(tmp_path):
    columns = {
        "prompt": ["Why?"],
        "vector": pa.array([[0.5, 1.5]], pa.list_(pa.float32(), 2)),
        "digest": pa.array([b"ab"], pa.binary(2)),
    }
    rows = read_rows(write_table(tmp_path / "a.parquet", columns), skip_bad=False)
    assert extract_prompts(rows) == ["Why?"]
    assert [*rows.rows[0][1]] == ["prompt"]


def test_messages_as_maps_are_read(tmp_path):
    kind = pa.list_(pa.map_(pa.string(), pa.string()))
    messages = pa.array([[[("role", "user"), ("content", "Why?")]]], kind)
    assert read(write_table(tmp_path / "a.parquet", {"messages": messages})) == ["Why?"]
    numbered = pa.array([[[(1, "Why?")]]], pa.list_(pa.map_(pa.int32(), pa.string())))
    with pytest.raises(DataError, match="row 1: a message has no role"):
        read(write_table(tmp_path / "a.parquet", {"messages": numbered}))
    twice = pa.array([[[("role", "user"), ("role", "user")]]], kind)
    with pytest.raises(DataError, match=r"row 1: a value that cannot be read .*a key twice"):
        read(write_table(tmp_path / "a.parquet", {"messages": twice}))


def test_a_column_of_parquet_that_is_there_twice_is_named(tmp_path):
    table = pa.Table.from_arrays([pa.array(["Why?"]), pa.array(["How?"])], names=["prompt"] * 2)
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: the column 'prompt' is there twice; rename"):
        read(tmp_path / "a.parquet")
