"""Parts of a task inside other fields (metadata, trees, instances, messages) are not lost."""

import json

import pytest

from selfreward_lite.data.data_files import read_rows
from selfreward_lite.data.prompt_rows import extract_prompt, extract_prompts
from selfreward_lite.data.ranked_rows import read_messages
from selfreward_lite.data.rows import BadRow
from selfreward_lite.system.errors import DataError


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_notes(path, rows):
    """The notes on a file of these rows, each of which is a prompt; without the file's name."""
    read = read_rows(write_rows(path, rows), skip_bad=False)
    assert len(extract_prompts(read)) == len(rows)
    return [note.removeprefix(f"{path}: ") for note in read.notes]


PARTS = [
    ("meta", {"context": "Ice is cold."}, "context"),
    ("metadata", {"id": 7, "systemPrompt": "Be a pirate."}, "systemPrompt"),
    ("extra_info", {"index": 3, "choices": [3, 4]}, "choices"),
    ("config", {"history": ["Hi", "Ho"]}, "history"),
    ("info", [{"instructions": "In French."}], "instructions"),
    ("meta", {"task": {"persona": "pirate"}}, "persona"),
    ("metadata", '{"context": "Ice is cold."}', "context"),
]
# Such objects of known data sets, and their like.
ABOUT = [
    ("metadata", {"id": 7, "title": "Of ice", "source": "web", "language": "fr", "score": 0.5}),
    ("extra_info", {"split": "train", "index": 0, "answer": "4", "question": "What is 2 + 2?"}),
    ("meta", {"pile_set_name": "Wikipedia (en)", "url": "https://a.org", "topics": ["a", "b"]}),
    ("metadata", {"context": "Why is ice so cold?", "file_path": "a/b.py", "has_image": False}),
    ("header", {"user-agent": "Mozilla/5.0 (X11)", "accept-language": "en"}),
]


@pytest.mark.parametrize(("name", "value", "part"), PARTS)
def test_a_part_of_the_task_in_metadata_is_refused(name, value, part):
    reason = rf"^field '{name}' holds '{part}', which belongs to the task .*prompts\.ignore={name}$"
    with pytest.raises(BadRow, match=reason):
        extract_prompt({"prompt": "Why is ice so cold?", name: value})


@pytest.mark.parametrize(("name", "value"), ABOUT)
def test_metadata_without_one_are_named(tmp_path, name, value):
    rows = [{"prompt": "Why is ice so cold?", name: value}]
    assert read_notes(tmp_path / "a.jsonl", rows) == [f"fields that are not used: {name}"]


def test_metadata_of_parquet_and_of_ranked_messages_are_looked_into(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path, row = tmp_path / "a.parquet", {"prompt": "Why?", "meta": {"system": "Be a pirate."}}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    with pytest.raises(DataError, match="field 'meta' holds 'system', which belongs to the task"):
        extract_prompts(read_rows(path, skip_bad=False))
    message = {"message_id": "a", "text": "Why?", "role": "prompter", "meta": {"context": "Ice."}}
    path = write_rows(tmp_path / "a.jsonl", [message])
    with pytest.raises(DataError, match="field 'meta' holds 'context', which belongs to the task"):
        read_messages(read_rows(path, skip_bad=False))
