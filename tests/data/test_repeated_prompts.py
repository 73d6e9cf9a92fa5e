"""Rows with the prompt of another row: several answers to it, or tasks that differ in a field."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from selfreward_lite.data.data_files import read_rows
from selfreward_lite.data.prompt_rows import extract_prompts
from selfreward_lite.system.errors import DataError


def read(path, rows, **others):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = read_rows(path, skip_bad=False)
    return extract_prompts(held, **others), held.notes


TASKS = {  # name of the field: prompt, values
    "topic": ("Write a poem.", ["rain", "fog", "sea"]),
    "title": ("Write an essay with this title.", ["On rain", "On fog", "On sea"]),
    "response": ("Rate the response from 1 to 5.", ["So.", "No.", "Ice."]),
    "answer": ("Find the mistake in this answer.", ["2+1=4", "2+2=5", "2+3=6"]),
    "solution": ("Is this solution right?", ["x = 1", "x = 2", "x = 3"]),
    "wrong_answer": ("Say why the given answer is wrong.", ["Ice.", "Fire.", "Tea."]),
    "feedback": ("Reply to this feedback.", ["It was cold.", "It was hot.", "It was far."]),
    "url": ("Sum up this page.", ["https://a", "https://b", "https://c"]),
    "apples": ("How many apples are left?", [5, 6, 7]),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_file_whose_prompts_differ_only_in_a_field_is_refused(tmp_path, name):
    prompt, values = TASKS[name]
    rows = [{"prompt": prompt, name: value} for value in values]
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.jsonl", rows)
    assert f"a.jsonl: 3 rows have the prompt of another row and differ in field '{name}'" in str(
        caught.value
    )
    assert str(caught.value).endswith(f"prompts.ignore={name}")
    assert len(read(tmp_path / "a.jsonl", rows, ignore=[name])[0]) == 3


def test_several_prompts_each_with_several_topics_are_refused(tmp_path):
    rows = [
        {"prompt": f"Write a {kind}.", "topic": topic}
        for kind in ("poem", "song")
        for topic in ("rain", "fog")
    ]
    with pytest.raises(DataError, match="4 rows .* differ in field 'topic'"):
        read(tmp_path / "a.jsonl", rows)


@pytest.mark.parametrize("name", ["response", "output", "completion", "answer", "chosen"])
def test_several_answers_to_a_prompt_load_with_a_note(tmp_path, name):
    rows = [
        {"prompt": prompt, name: f"It is {number}.", "model": f"m{number}", "id": number}
        for prompt in ("Why?", "How?", "Is the answer short?")
        for number in range(3)
    ]
    prompts, notes = read(tmp_path / "a.jsonl", rows)
    assert len({*prompts}) == 3
    said = f"{tmp_path}/a.jsonl: 9 rows have the prompt of another row and differ in {name}, taken"
    assert any(note.startswith(said) for note in notes) is (name != "chosen")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("topic", ["rain", "rain", "rain"]),
        ("votes", [1, 2, 3]),
        ("source", ["a", "b", "c"]),
        ("model", ["a", "b", "c"]),
        ("upvoted", [5, 6, 7]),
    ],
)
def test_a_label_that_differs_or_the_same_words_do_no_harm(tmp_path, name, values):
    rows = [{"prompt": "Write a poem.", name: value} for value in values]
    assert len(read(tmp_path / "a.jsonl", rows)[0]) == 3


def test_a_few_repeated_prompts_in_a_file_do_no_harm(tmp_path):
    rows = [{"prompt": f"Write poem {n % 8}.", "topic": f"topic {n}"} for n in range(10)]
    assert len(read(tmp_path / "a.jsonl", rows)[0]) == 10


def test_a_column_of_parquet_that_is_not_read_is_judged_by_its_name(tmp_path):
    def write(prompt):
        table = pa.table({"prompt": [prompt] * 3, "response": ["So.", "No.", "Ice."]})
        pa.parquet.write_table(table, tmp_path / "a.parquet")
        return extract_prompts(read_rows(tmp_path / "a.parquet", skip_bad=False))

    with pytest.raises(DataError, match="differ in field 'response'"):
        write("Rate the response from 1 to 5.")
    assert write("Why?") == ["Why?"] * 3
