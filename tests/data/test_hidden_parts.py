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


def make_tree(**beside):
    message = {"message_id": "a", "text": "Why?", "role": "prompter", "lang": "en", "replies": []}
    return {"message_tree_id": "a", "prompt": message | beside}


LOST = [
    *(
        ("prompt", make_tree(**{name: value})["prompt"], name)
        for name, value in (
            ("choices", ["a", "b"]),
            ("image", "a.png"),
            ("system", "Be a pirate."),
            ("scenario", "You stand on a ship in a storm."),
            ("meta", {"context": "Ice is cold."}),
        )
    ),
    *(
        ("instances", [{"input": "b a", name: value, "output": "a b"}], name)
        for name, value in (
            ("constraints", "Two lines."),
            ("options", ["a", "b"]),
            ("passage", "Ice is cold."),
            ("system", "Be a pirate."),
            ("image", "a.png"),
            ("remark", "You stand on a ship in a storm."),
        )
    ),
    *(
        (
            "messages",
            [{"role": "user", "content": [{"type": "text", "text": "Sum up.", name: value}]}],
            name,
        )
        for name, value in (
            ("quote", "Ice is cold, as my old teacher said."),
            ("context", "Ice is cold."),
            ("image_url", {"url": "https://a.org/b.png"}),
            ("attachment", "report.pdf"),
            ("title", "Of ice"),
            ("system", "Be a pirate."),
            ("source", {"type": "text", "data": "Ice is cold."}),
        )
    ),
    (
        "messages",
        [{"role": "user", "content": "Why?", "metadata": {"context": "Ice."}}],
        "metadata",
    ),
    ("system", [{"type": "text", "text": "Be brief.", "examples": ["One.", "Two."]}], "examples"),
]


@pytest.mark.parametrize(("name", "value", "part"), LOST)
def test_a_part_of_the_task_inside_a_field_is_refused_and_may_be_left_out(
    tmp_path, name, value, part
):
    others = {"instances": {"instruction": "Sort these."}, "system": {"prompt": "Why?"}}
    row = {**others.get(name, {}), name: value}
    path = write_rows(tmp_path / "a.jsonl", [row])
    reason = rf"^.*a\.jsonl:1: field '{name}': .* has a field '{part}', which belongs to the task"
    with pytest.raises(DataError, match=rf"{reason} .*prompts\.ignore={name}\.{part};"):
        extract_prompts(read_rows(path, skip_bad=False))
    read = read_rows(path, skip_bad=False)
    assert len(extract_prompts(read, ignore=[f"{name}.{part}"])) == 1
    assert f"{name}.{part}" in read.notes[0]
    assert not any("no row has" in note for note in read.notes)


def test_the_way_out_names_all_that_is_inside_and_what_no_row_has_is_said(tmp_path):
    with pytest.raises(BadRow, match=r"prompts\.ignore=prompt\.choices,prompt\.system$"):
        extract_prompt(make_tree(choices=["a", "b"], system="Be a pirate."))
    read = read_rows(write_rows(tmp_path / "a.jsonl", [{"prompt": "Why?"}]), skip_bad=False)
    extract_prompts(read, ignore=["prompt.system"])
    assert read.notes == [f"{tmp_path}/a.jsonl: no row has the fields prompt.system to ignore"]


def test_a_field_in_messages_as_json_is_left_out_too(tmp_path):
    text = json.dumps([{"role": "user", "content": "Why?", "persona": "pirate"}])
    read = read_rows(write_rows(tmp_path / "a.jsonl", [{"messages": text}]), skip_bad=False)
    assert extract_prompts(read, ignore=["messages.persona"]) == ["Why?"]


def test_what_is_no_part_of_a_task_inside_a_field_is_named(tmp_path):
    message = {"role": "user", "content": "Why?"}
    for name, value in (("topic", "fog"), ("answer", "Ice is cold, as it is."), ("tags", ["a"])):
        named = [f"fields that are not used: {part}.{name}" for part in ("messages", "prompt")]
        path = tmp_path / "a.jsonl"
        assert read_notes(path, [{"messages": [message | {name: value}]}]) == named[:1]
        assert read_notes(path, [{"prompt": [message | {name: value}]}]) == named[1:]
        parts = [{"type": "text", "text": "Why?", name: value, "annotations": []}]
        assert read_notes(path, [{"messages": [message | {"content": parts}]}]) == named[:1]
        pair = [{"input": "Why?", "output": "x", name: value}]
        assert read_notes(path, [{"messages": pair}]) == named[:1]
        assert read_notes(path, [{"messages": [{"content": "Why?", name: value}]}]) == named[:1]
        instance = [{"input": "b a", name: value}]
        notes = read_notes(path, [{"instruction": "Sort.", "instances": instance}])
        assert notes == [f"fields that are not used: instances.{name}"]
        tree = {"prompt": make_tree(**{name: value})["prompt"]}
        assert read_notes(path, [tree]) == named[1:]
    answer = {"role": "assistant", "content": "So.", "reasoning": "It is as it is."}
    assert read_notes(tmp_path / "a.jsonl", [{"messages": [message, answer]}]) == []


def test_an_instance_that_repeats_the_prompt_or_has_no_constraints_loads():
    whole = {"instruction_with_input": "Do this.\nSort these.\nWords: b a", "input": "b a"}
    row = {"instruction": "Sort these.", "instances": [whole | {"constraints": "None."}]}
    assert extract_prompt(row) == "Sort these.\n\nb a"


def test_a_chosen_conversation_with_a_part_of_the_task_is_refused_beside_a_prompt():
    chosen = [{"role": "user", "content": "Why?", "context": "Ice is cold."}]
    with pytest.raises(BadRow, match=r"field 'chosen' says something else .*ignore=chosen$"):
        extract_prompt({"prompt": "Why?", "chosen": chosen})


def test_a_note_names_all_fields_and_those_that_may_matter_first(tmp_path):
    labels = ["id", "model", "label", "score", "source_url", "lang", "date", "rating", "split"]
    row = dict.fromkeys(labels, "a") | {"character": "Yoda", "style": "haiku"}
    notes = read_notes(tmp_path / "a.jsonl", [{"prompt": "Why?"} | row])
    assert notes == [f"fields that are not used: {', '.join(['character', 'style', *labels])}"]
    many = {f"remark_{n:03}": "a" for n in range(99)}
    (note,) = read_notes(tmp_path / "a.jsonl", [{"prompt": "Why?"} | many])
    assert "remark_047, remark_048 and 50 more" in note
    messages = [{"message_id": "a", "text": "Why?", "role": "prompter", "rank": 0} | row]
    read = read_rows(write_rows(tmp_path / "a.jsonl", messages), skip_bad=False)
    read_messages(read)
    assert "character, style, " in read.notes[0] and "more" not in read.notes[0]
    (tmp_path / "a.json").write_text(json.dumps(row | {"rows_": [{"prompt": "Why?"}]}))
    assert (
        f"left out: character, style, {', '.join(labels)}"
        in read_rows(tmp_path / "a.json", skip_bad=False).notes[0]
    )


FOR_ALL_ROWS = [
    ("meta", {"author": "bob", "system": "Be a pirate."}),
    ("defaults", {"persona": "pirate", "language": "French"}),
    ("defaults", {"language": "French"}),
    ("prefix", "Answer in French:"),
    ("remark", "all answers are to rhyme"),
    ("setup", {"begin": "Answer in French."}),
]


@pytest.mark.parametrize(("name", "value"), FOR_ALL_ROWS)
def test_a_part_of_the_task_beside_a_list_of_rows_is_refused_by_its_value(tmp_path, name, value):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({name: value, "prompts": [{"prompt": "Why?"}]}))
    reason = f"field '{name}' beside the list 'prompts' belongs to the task"
    with pytest.raises(DataError, match=reason):
        read_rows(path, skip_bad=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("description", "Some questions about ice, made by hand."),
        ("schema", {"fields": [{"name": "prompt", "type": "string"}]}),
        ("info", {"version": "1.0", "license": "CC BY 4.0, see the page of the authors."}),
        ("authors", ["Ann Lee", "Bo Ray"]),
        ("paging", {"next": "https://a.org/2", "total": 30}),
    ],
)
def test_what_is_said_about_a_list_of_rows_is_named(tmp_path, name, value):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({name: value, "prompts": [{"prompt": "Why?"}]}))
    read = read_rows(path, skip_bad=False)
    assert extract_prompts(read) == ["Why?"]
    assert read.notes[0] == f"{path}: read the list 'prompts' in it; left out: {name}"


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({"a": [{"b": 1}], "Instances": [{"input": "x"}]}, "the lists a, Instances may all be"),
        ({"name": "Bob", "messages": [{"text": "x"}]}, "its 'messages' is one conversation, by"),
        ({"prompt": "x", "tests": [{"input": "x"}]}, "its 'prompt' is one prompt, by its name"),
    ],
)
def test_what_is_in_the_way_of_a_list_of_rows_is_said(tmp_path, held, says):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(held))
    with pytest.raises(DataError, match=rf"not a list of objects \({says}"):
        read_rows(path, skip_bad=False)
