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


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": {"stem": "Why?", "choices": []}}, "field 'question' is not text, but an obj"),
        ({"question": {"stem": "Why?"}}, "an object with the fields stem; write what the task"),
        ({"question": "Why?", "context": {"contexts": ["a"]}}, "the fields contexts; write what"),
        ({"instruction": "Sort.", "input": ["b", "a"]}, "'input' is not text, but a list; write"),
        (
            {"messages": [{"role": "user", "content": {"parts": ["a"]}}]},
            "message is not text, but an",
        ),
    ],
)
def test_what_is_no_text_is_called_by_what_it_is(row, says):
    with pytest.raises(BadRow, match=says):
        extract_prompt(row)


def make_ranked(*ranks):
    rows = []
    for number, held in enumerate(ranks):
        rows.append({"message_id": f"p{number}", "text": f"Why {number}?", "role": "prompter"})
        rows += [
            {"message_id": f"a{number}{n}", "parent_id": f"p{number}", "text": f"So {n}."}
            | {"role": "assistant", "rank": rank}
            for n, rank in enumerate(held)
        ]
    return rows


@pytest.mark.parametrize("ranks", [[[9.7, 8.7, 7.7]], [[4, 5], [3, 5], [1, 2]]])
def test_scores_in_the_place_of_ranks_are_refused(tmp_path, ranks):
    path = write_rows(tmp_path / "a.jsonl", make_ranked(*ranks))
    with pytest.raises(DataError, match=r"seem to be scores; rank 0 is the best answer"):
        read_messages(read_rows(path, skip_bad=False))


@pytest.mark.parametrize(
    "ranks", [[[0, 1, 2]], [[1, 2]], [[1.5, 3, 1]], [[2, 3], [0, 1]], [[0, 5]]]
)
def test_ranks_that_begin_with_0_or_1_are_ranks(tmp_path, ranks):
    path = write_rows(tmp_path / "a.jsonl", make_ranked(*ranks))
    assert len(read_messages(read_rows(path, skip_bad=False))) > 2


def make_turns(name, user="user", assistant="assistant", main="text"):
    asked = {main: "Why is ice so cold?", name: user}
    return [asked, {main: "It is cold since it is ice.", name: assistant}]


@pytest.mark.parametrize(
    ("name", "user", "assistant"),
    [
        *(("From", "human", "gpt"), ("sender", "user", "assistant"), ("speaker", "User", "Bot")),
        *(("author", "human", "AI"), ("type", "human", "ai"), ("name", "user", "ChatGPT")),
    ],
)
def test_answers_in_a_file_with_a_message_in_each_row_are_no_prompts(
    tmp_path, name, user, assistant
):
    rows = make_turns(name, user, assistant)
    path = write_rows(tmp_path / "a.jsonl", rows)
    plain = name.casefold()
    reason = rf":2: a message of '{assistant}', by its field '{plain}', .*prompts\.ignore={plain};"
    with pytest.raises(DataError, match=reason):
        extract_prompts(read_rows(path, skip_bad=False))
    read = read_rows(path, skip_bad=True)
    assert extract_prompts(read) == ["Why is ice so cold?"]
    assert [*read.skipped.values()] == [1]
    assert len(extract_prompts(read_rows(path, skip_bad=False), ignore=[name])) == 2


def test_such_a_file_may_be_a_table_or_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table, parquet = tmp_path / "a.csv", tmp_path / "a.parquet"
    table.write_text("text,type\nWhy?,human\nSo.,ai\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(make_turns("author")), parquet)
    for path in (table, parquet):
        with pytest.raises(DataError, match="a message of 'a"):
            extract_prompts(read_rows(path, skip_bad=False))


@pytest.mark.parametrize(
    "rows",
    [
        make_turns("source", "human", "ai"),  # who wrote the prompt
        make_turns("author", "human", "ai", main="prompt"),
        make_turns("name", "Ann", "Bot"),
        make_turns("type", "human", "human"),
        make_turns("type", "gpt", "gpt"),
        [*make_turns("type"), {"text": "Why is fire hot?"}],
    ],
)
def test_other_labels_make_no_messages_of_rows(tmp_path, rows):
    read_notes(tmp_path / "a.jsonl", rows)


def test_a_sentence_without_spaces_that_all_rows_have_is_no_label(tmp_path):
    rows = [{"prompt": f"Why {n}?", "系统": "你是一个友好的海盗船长。"} for n in range(9)]
    with pytest.raises(DataError, match="field '系统' belongs to the task"):
        extract_prompts(read_rows(write_rows(tmp_path / "a.jsonl", rows), skip_bad=False))


def test_the_way_out_names_the_parts_inside_the_messages_of_all_rows(tmp_path):
    """As printed, it leaves out all of them: no further one appears in the next round."""
    parts = ("context", "persona", "max words")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Why, no. {number}?", name: "Ice is cold today."}
            ]
        }
        for number, name in enumerate(parts)
    ]
    path = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError) as error:
        extract_prompts(read_rows(path, skip_bad=False))
    setting = str(error.value).split("prompts.ignore=")[1].split(";")[0]
    assert setting == "messages.context,messages.persona,messages.max_words"
    found = extract_prompts(read_rows(path, skip_bad=False), setting.split(","))
    assert found == [f"Why, no. {number}?" for number in range(3)]
