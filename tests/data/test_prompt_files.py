"""Prompt files: every form of a prompt, and every fault of a line, with file and line number."""

import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_lite.data import prompt_files, ranked
from selfreward_lite.data.records import Prompt
from selfreward_lite.data.tiny import ranked as tiny_ranked
from selfreward_lite.method import new_prompts
from selfreward_lite.system.errors import DataError

GOOD = [
    {"prompt": f"Sort the letters {letters}."} for letters in ("c a b", "d a b", "e a b", "f a b")
]


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        path.write_text("prompt\n" + "".join(f'"{row["prompt"]}"\n' for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_prompts_come_out_of_every_format_alike(tmp_path, suffix):
    rows = prompt_files.read_rows(write(tmp_path / f"mine{suffix}", GOOD), skip_bad=False)
    assert prompt_files.extract_prompts(rows) == [row["prompt"] for row in GOOD]


SHAPES = [
    {"prompt": "Why?"},
    {"prompt": [{"role": "user", "content": "Why?"}]},
    {"instruction": "Why?", "input": ""},
    {"question": "Why?"},
    {"text": "Why?"},
    {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]},
    {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
]


@pytest.mark.parametrize("row", SHAPES, ids=str)
def test_chat_and_sharegpt_shapes_are_converted(row):
    assert prompt_files.extract_prompt(row) == "Why?"


REFUSED = [
    ({"answer": "So."}, "no field with a prompt"),
    ({"text": "So.", "parent_id": "a", "role": "assistant"}, "a reply in a message tree"),
    ({"prompt": None}, "is empty"),
    ({"prompt": "a\ud800b"}, "half a character"),
    ({"prompt": "  "}, "is empty"),
    ({"prompt": "a\x00b"}, "NUL"),
    ({"prompt": {"nested": "Why?"}}, "is not text"),
    ({"messages": []}, "not a list of messages"),
    ({"messages": "Why?"}, "not a list of messages"),
    ({"messages": [{"role": "assistant", "content": "So."}]}, "begins with the assistant"),
    ({"messages": [{"role": "system", "content": "Be kind."}]}, "begins with the system"),
    ({"messages": [{"role": "narrator", "content": "So."}]}, "unknown role 'narrator'"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "is not text"),
    (
        {
            "messages": [
                {"role": "user", "content": "Why?"},
                {"role": "assistant", "tool_calls": [{}]},
            ]
        },
        "calls tools",
    ),
    ({"conversations": [{"from": "gpt", "value": "So."}]}, "begins with the assistant"),
]


@pytest.mark.parametrize(("row", "reason"), REFUSED, ids=str)
def test_a_row_without_a_prompt_is_refused_with_its_reason(tmp_path, row, reason):
    path = write(tmp_path / "mine.jsonl", [GOOD[0], row, GOOD[1]])
    with pytest.raises(DataError, match=rf"mine\.jsonl:2: .*{reason}.*--skip-bad"):
        prompt_files.extract_prompts(prompt_files.read_rows(path, skip_bad=False))
    rows = prompt_files.read_rows(path, skip_bad=True)
    assert len(prompt_files.extract_prompts(rows)) == 2
    assert rows.skipped.total() == 1


BROKEN = {
    "cut last line": b'{"prompt": "Wh',
    "NUL bytes": b'{"prompt": "a\x00b"}\n',
    "invalid UTF-8": b'{"prompt": "\xff\xfe"}\n',
    "10 MB line": b'{"prompt": "' + b"a" * 10_000_000 + b'"}\n',
    "duplicate keys": b'{"prompt": "a", "prompt": "b"}\n',
    "not an object": b"[1, 2]\n",
    "a number": b"7\n",
    "nested without end": b'{"prompt": ' + b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_garbled_line_is_named_by_file_and_line(tmp_path, name):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in GOOD) + BROKEN[name])
    with pytest.raises(DataError, match=r"mine\.jsonl:5: "):
        prompt_files.read_rows(path, skip_bad=False)
    rows = prompt_files.read_rows(path, skip_bad=True)
    assert len(rows.rows) == 4
    assert rows.skipped.total() == 1
    assert list(rows.skipped.values()) == [1]


def test_byte_order_mark_crlf_and_empty_lines_are_no_faults(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(json.dumps(row).encode() for row in GOOD))
    assert len(prompt_files.read_rows(path, skip_bad=False).rows) == 4


def test_a_bad_csv_line_is_named(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(b'prompt,topic\n"Why?",x\nonly one field\n"How?",y\n"\xff",z\n"What?",a,b\n')
    with pytest.raises(DataError, match=r"mine\.csv:3: another number of fields"):
        prompt_files.read_rows(path, skip_bad=False)
    rows = prompt_files.read_rows(path, skip_bad=True)
    assert [row["prompt"] for _, row in rows.rows] == ["Why?", "How?"]
    assert rows.skipped == {"another number of fields than the first line": 2, "not UTF-8": 1}


def test_an_unclosed_quote_loses_no_rows_uncounted(tmp_path):
    path = tmp_path / "mine.csv"
    for skip_bad, rest in (
        (False, '"What?"\nWhen?\n'),
        (True, '"What?"\nWhen?\n'),
        (True, "What?\nWhen?\n"),
    ):
        path.write_text('prompt\n"Why?"\n"How?\n' + rest)
        with pytest.raises(DataError, match=r"mine\.csv:3: a quote that opens here"):
            prompt_files.read_rows(path, skip_bad=skip_bad)


def test_a_bad_parquet_row_is_named_other_columns_are_not_read(
    tmp_path,
):
    broken = pa.array([b"Why?", b"\xff\xfe", b"How?"]).view(pa.string())
    dates = pa.array([2**60] * 3, pa.timestamp("us"))
    pa.parquet.write_table(pa.table({"prompt": broken, "when": dates}), tmp_path / "mine.parquet")
    with pytest.raises(DataError, match=r"mine\.parquet:2: a value that cannot be read"):
        prompt_files.read_rows(tmp_path / "mine.parquet", skip_bad=False)
    rows = prompt_files.read_rows(tmp_path / "mine.parquet", skip_bad=True)
    assert prompt_files.extract_prompts(rows) == ["Why?", "How?"]
    assert rows.skipped.total() == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.parquet", b"PAR1"), ("a.parquet", b""), ("a.json", b"{"), ("a.jsonl", b"")],
)
def test_a_file_that_is_no_data_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        prompt_files.read_rows(tmp_path / name, skip_bad=True)


def test_missing_files_and_unknown_formats(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        prompt_files.read_rows(tmp_path / "nothing.jsonl", skip_bad=False)
    (tmp_path / "a.xlsx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"call it \.jsonl"):
        prompt_files.read_rows(tmp_path / "a.xlsx", skip_bad=False)


texts = st.text(min_size=1, max_size=60).filter(lambda text: text.strip() and "\x00" not in text)


@given(st.lists(texts, min_size=1, max_size=5))
def test_the_converter_round_trips(tmp_path_factory, wanted):
    folder = tmp_path_factory.mktemp("round")
    for shape in (
        lambda text: {"prompt": text},
        lambda text: {"messages": [{"role": "user", "content": text}]},
        lambda text: {
            "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "ok"}]
        },
    ):
        path = write(folder / "mine.jsonl", [shape(text) for text in wanted])
        assert prompt_files.extract_prompts(prompt_files.read_rows(path, skip_bad=False)) == wanted


# -- ranked data in OASST's schema ----------


def ranked_settings(tiny, path: Path, skip_bad: bool = False):
    return tiny.model_copy(
        update={
            "seed_stage": tiny.seed_stage.model_copy(update={"ranked": str(path)}),
            "skip_bad": skip_bad,
        }
    )


def test_ranked_data_is_read_from_every_format_alike(tmp_path, tiny):
    rows = [
        {**row, "deleted": index % 9 == 8}
        for index, row in enumerate(tiny_ranked.generate_ranked_rows(20))
    ]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    read = []
    for name in ("a.jsonl", "a.parquet", "a.csv"):
        path = tmp_path / name if name.endswith("csv") else write(tmp_path / name, rows)
        loaded, skipped = ranked.load_ranked_rows(ranked_settings(tiny, path))
        assert skipped == Counter()
        found, outcome = ranked.build_ranked_prompts(loaded, "r")
        read.append(
            (
                [(one.prompt.text, [answer.text for answer in one.responses]) for one in found],
                outcome.drops,
            )
        )
    assert read[0] == read[1] == read[2]
    assert read[0][1]["deleted, rejected or synthetic"] == len(rows) // 9


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"text": "hello"}, "no field 'message_id'; ranked data must be in OASST's schema"),
        (
            {"messages": [{"role": "user", "content": "Why?"}]},
            "chat messages, which rank no answers",
        ),
        (
            {"conversations": [{"from": "human", "value": "Why?"}]},
            "ShareGPT conversations, which rank no answers",
        ),
        (
            {"message_id": "x", "parent_id": None, "text": "a", "role": "narrator", "rank": None},
            "role 'narrator'",
        ),
        (
            {
                "message_id": "x",
                "parent_id": None,
                "text": "a",
                "role": "assistant",
                "rank": "first",
            },
            "rank 'first'",
        ),
        (
            {"message_id": "x", "parent_id": None, "text": 7, "role": "assistant", "rank": 0},
            "text is not text",
        ),
        (
            {
                "message_id": "x",
                "parent_id": None,
                "text": "a",
                "role": "assistant",
                "rank": float("nan"),
            },
            "rank nan",
        ),
        (
            {
                "message_id": "x",
                "parent_id": None,
                "text": "a",
                "role": "assistant",
                "rank": float("inf"),
            },
            "rank inf",
        ),
        (
            {"message_id": ["x"], "parent_id": None, "text": "a", "role": "assistant", "rank": 0},
            r"message_id \['x'\] is not",
        ),
        (
            {"message_id": "x", "parent_id": {}, "text": "a", "role": "assistant", "rank": 0},
            "parent_id {} is not an id",
        ),
        (
            {
                "message_id": "x",
                "parent_id": None,
                "text": "\ud800",
                "role": "assistant",
                "rank": 0,
            },
            "half a character",
        ),
    ],
)
def test_a_bad_row_of_ranked_data_is_refused_or_skipped(tmp_path, tiny, bad, reason):
    path = write(
        tmp_path / "ranked.jsonl",
        [*tiny_ranked.generate_ranked_rows(2), bad, *tiny_ranked.generate_ranked_rows(1)],
    )
    with pytest.raises(DataError, match=rf"ranked\.jsonl:9: .*{reason}"):
        ranked.load_ranked_rows(ranked_settings(tiny, path))
    rows, skipped = ranked.load_ranked_rows(ranked_settings(tiny, path, skip_bad=True))
    assert len(rows) == 12
    assert skipped.total() == 1


def test_imported_prompts_leave_out_repeats_and_held_out_ones(tiny):
    settings = tiny.prompts.model_copy(update={"count": 2})
    texts = [
        "One two three four.",
        "one  two three FOUR.",
        "Secret words that are held out.",
        " Five six.\n",
        "Seven eight.",
    ]
    outcome = new_prompts.import_prompts(
        texts, settings, id_namespace="r", held_out=["Secret words that are held out."]
    )
    assert [
        (one.iteration, one.index, one.text) for one in outcome.records if isinstance(one, Prompt)
    ] == [
        (1, 0, "One two three four."),
        (1, 1, "Five six."),
        (2, 0, "Seven eight."),
    ]
    assert outcome.drops == {"same prompt again": 1, "like an evaluation prompt": 1}
    # with no limit of likeness at all, a held-out prompt itself stays held out
    unlimited = settings.model_copy(update={"max_similarity": 1.0})
    again = new_prompts.import_prompts(
        texts, unlimited, id_namespace="r", held_out=["Secret words that are HELD out."]
    )
    assert again == outcome


def test_ranked_prompts_that_differ_in_space_or_case_are_one():
    def tree(name: str, text: str) -> list[dict]:
        first = {
            "message_id": name,
            "parent_id": None,
            "text": text,
            "role": "prompter",
            "rank": None,
        }
        return [first] + [
            {
                "message_id": f"{name}{rank}",
                "parent_id": name,
                "text": f"a{rank}",
                "role": "assistant",
                "rank": rank,
            }
            for rank in (0, 1)
        ]

    found, outcome = ranked.build_ranked_prompts(
        [*tree("a", "What is AI?"), *tree("b", "what  is ai? ")], "r"
    )
    assert [one.prompt.text for one in found] == ["What is AI?"]
    assert outcome.drops == {"same prompt again": 1}


def test_input_beside_an_instruction_of_turns_is_kept():
    row = {"instruction": [{"role": "user", "content": "Sort these."}], "input": "b a"}
    assert prompt_files.extract_prompt(row) == "Sort these.\n\nb a"
