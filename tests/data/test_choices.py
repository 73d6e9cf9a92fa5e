"""Choices of a question under names of answers: they are refused, and single answers are not."""

import pyarrow as pa
import pyarrow.parquet
import pytest

from selfreward_lite.data.data_files import read_rows
from selfreward_lite.data.prompt_rows import extract_prompt, extract_prompts
from selfreward_lite.data.rows import BadRow
from selfreward_lite.system.errors import DataError

CHOICES = {  # the row beside its question, and the fields that are choices
    "SocialIQA": ({"answerA": "rest", "answerB": "run", "label": "1"}, "answer_a,answer_b"),
    "CosmosQA": ({"answer0": "So.", "answer1": "No.", "label": 1}, "answer0,answer1"),
    "ReClor": ({"answers": ["So.", "No."], "label": 1}, "answers"),
    "QuAIL": ({"answers": ["So.", "No."], "correct_answer_id": 0}, "answers"),
    "a table's list": ({"answers": '["So.", "No."]', "answer": "B"}, "answers"),
    "GPQA": (
        {"Correct Answer": "4", "Incorrect Answer 1": "3", "Incorrect Answer 2": "5"},
        "incorrect_answer_1,incorrect_answer_2",
    ),
    "a quiz": ({"Answer A": "flat", "Answer B": "round", "Right": "B"}, "answer_a,answer_b"),
    "Kahoot": ({"Answer 1": "Mars", "Answer 2": "Venus"}, "answer_1,answer_2"),
    "numbers": ({"1": "Mars", "2": "Venus", "Correct": 2}, "1,2"),
    "letters": ({"A": 3, "B": "fire", "C": "sand", "answer": "A"}, "a,b,c"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_refused_together_and_by_name(name):
    row, lost = CHOICES[name]
    with pytest.raises(BadRow, match=rf"belongs to the task .*prompts\.ignore={lost}$"):
        extract_prompt({"question": "Which?"} | row)


@pytest.mark.parametrize(
    "row",
    [
        {"answer_a": "So."},
        {"answer": "So.", "answer_1": "So."},
        {"response_a": "So.", "response_b": "No."},
        {"answers": ["Paris", "paris"]},
        {"answers": ["Paris", "paris"], "id": "a", "label": "geography"},
        {"answers": ["Paris", "paris"], "label": 7},
        {"answers": ["Paris"], "label": 0},
        {"answers": [{"answer": "So.", "rank": 1}, {"answer": "No.", "rank": 2}], "label": 1},
        {"a": "So."},
        {"1": "So."},
    ],
)
def test_an_answer_or_several_that_are_all_right_do_no_harm(row):
    assert extract_prompt({"question": "Which?"} | row) == "Which?"


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_found_in_parquet_too(tmp_path, name):
    row, lost = CHOICES[name]
    if name == "letters":
        row = row | {"A": "3"}
    columns = {column: [value] for column, value in ({"question": "Which?"} | row).items()}
    pa.parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"prompts\.ignore={lost};"):
        extract_prompts(read_rows(tmp_path / "a.parquet", skip_bad=False))
