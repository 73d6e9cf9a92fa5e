"""Templates that are not filled in, though the row has what belongs there."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from selfreward_lite.data.data_files import read_rows
from selfreward_lite.data.prompt_rows import extract_prompt, extract_prompts
from selfreward_lite.data.rows import BadRow
from selfreward_lite.system.errors import DataError

PLACES = (
    *("{topic}", "{{topic}}", "{{ topic }}", "{ Topic }", "[TOPIC]", "[topic]", "<topic>"),
    *("%(topic)s", "${topic}", "$topic", "__topic__"),
)


@pytest.mark.parametrize("place", PLACES)
def test_a_place_whose_field_is_there_is_refused_by_its_name(place):
    with pytest.raises(BadRow) as caught:
        extract_prompt({"prompt": f"Write about {place}.", "topic": "fog"})
    assert f"has a place for field 'topic' ({place})" in str(caught.value)
    assert str(caught.value).endswith("prompts.ignore=topic")
    assert extract_prompt({"prompt": f"Write about {place}.", "style": "dry"})


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("Hello {name}, write a poem.", "name"),
        ("Rate this: {response}", "response"),
        ("Is it right? {{ answer }}", "answer"),
        ("Write it in {{output language}}.", "Output Language"),
        ("See ${url} and sum it up.", "url"),
    ],
)
def test_labels_and_answers_may_belong_there_too(prompt, name):
    with pytest.raises(BadRow, match="that is not filled in"):
        extract_prompt({"prompt": prompt, name: "x"})


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("Write your answer in <answer></answer>.", "answer"),
        ("End with [answer], or with $answer.", "answer"),
        (r"Put it in \boxed{topic}.", "topic"),
        ("Write <topic>x</topic> as JSON.", "topic"),
        ("What is a[topic] in C?", "topic"),
        ("See [topic](https://a) for more.", "topic"),
        ('print(f"Hello {name}")\nWhat does it print?', "name"),
        ("if __name__ == 1: pass", "name"),
        ("Is $topic$ a number?", "topic"),
        ("Write about {other}.", "topic"),
        ("Sum up: {input}", "input"),
    ],
)
def test_what_only_looks_like_a_place_stays(prompt, name):
    assert extract_prompt({"prompt": prompt, name: "x"}).startswith(prompt)


def test_a_column_of_parquet_that_is_not_read_belongs_there_too(tmp_path):
    table = pa.table({"prompt": ["Write to {name}."], "name": ["Ann"]})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 1: the prompt has a place for field 'name'"):
        extract_prompts(read_rows(tmp_path / "a.parquet", skip_bad=False))
    rows = read_rows(tmp_path / "a.parquet", skip_bad=False)
    assert extract_prompts(rows, ignore=["name"]) == ["Write to {name}."]


def test_a_field_that_is_left_out_leaves_the_place_as_it_is(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "On {topic}.", "topic": "fog"}))
    rows = read_rows(tmp_path / "a.jsonl", skip_bad=False)
    assert extract_prompts(rows, ignore=["topic"]) == ["On {topic}."]
