"""Rows as prompts: known shapes give their whole task, and no part of it is dropped in silence."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_lite.data import fillers
from selfreward_lite.data.data_files import read_rows
from selfreward_lite.data.fields import normalise_name
from selfreward_lite.data.other_fields import is_number
from selfreward_lite.data.prompt_rows import extract_prompt, extract_prompts
from selfreward_lite.data.rows import BadRow
from selfreward_lite.system.errors import DataError

ASKED = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
SYSTEM = {"role": "system", "content": "Be terse."}

# By name, as their authors publish them: what is taken is in docs/data.md.
ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nSort.\n\n### Input:\nb a\n\n### Response:\na b"
)
KNOWN = {
    "Alpaca": (
        {"instruction": "Sort.", "input": "b a", "output": "a b", "text": ALPACA},
        "Sort.\n\nb a",
    ),
    "Dolly": (
        {"instruction": "How many?", "context": "Three lamps.", "response": "3", "category": "qa"},
        "How many?\n\nThree lamps.",
    ),
    "self-instruct": (
        {"instruction": "Ask.", "instances": [{"input": "It is red.", "output": "Is it?"}]},
        "Ask.\n\nIt is red.",
    ),
    "SQuAD": (
        {"question": "How many?", "context": "Three lamps.", "answers": {"text": ["Three"]}},
        "How many?\n\nThree lamps.",
    ),
    "ShareGPT": (
        {"id": "a", "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt"}]},
        "Why?",
    ),
    "SlimOrca": (
        {
            "conversations": [
                {"from": "system", "value": "Be terse.", "weight": None},
                {"from": "human", "value": "Why?", "weight": 0},
                {"from": "gpt", "value": "So.", "weight": 1},
            ]
        },
        "Be terse.\n\nWhy?",
    ),
    "OpenAI messages": ({"messages": [SYSTEM, *ASKED]}, "Be terse.\n\nWhy?"),
    "OpenOrca": (
        {"id": "a", "system_prompt": "Be terse.", "question": "Why?", "response": "So."},
        "Be terse.\n\nWhy?",
    ),
    "OpenOrca without a system prompt": ({"system_prompt": "", "question": "Why?"}, "Why?"),
    "UltraChat": ({"id": "0", "data": ["Why?", "So.", "And then?", "Then."]}, "Why?"),
    "UltraChat 200k": ({"prompt": "Why?", "prompt_id": "0", "messages": ASKED}, "Why?"),
    "No Robots": ({"prompt": "Why?", "messages": [SYSTEM, *ASKED]}, "Be terse.\n\nWhy?"),
    "LIMA": ({"conversations": ["Why?", "So."], "source": "wikihow"}, "Why?"),
    "Capybara": (
        {"source": "x", "conversation": [{"input": "Why?", "output": "So."}, {"input": "And?"}]},
        "Why?",
    ),
    "MT-bench": (
        {"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite it."]},
        "Write.",
    ),
    "Arena-Hard": ({"question_id": "a", "cluster": "b", "turns": [{"content": "Why?"}]}, "Why?"),
    "Arena-Hard v2": ({"uid": "a", "category": "hard", "prompt": "Why?"}, "Why?"),
    "AlpacaEval": ({"dataset": "koala", "instruction": "Why?", "output": "So."}, "Why?"),
    "IFEval": (
        {"key": 1, "prompt": "Why? No commas.", "instruction_id_list": ["a:b"], "kwargs": [{}]},
        "Why? No commas.",
    ),
    "HH-RLHF": (
        {"chosen": "\n\nHuman: Why?\n\nAssistant: So.", "rejected": "\n\nHuman: Why?\n\n…"},
        "Why?",
    ),
    "TRL": ({"prompt": ASKED[:1], "chosen": ASKED[1:], "rejected": ASKED[1:]}, "Why?"),
    "TRL without a prompt": ({"chosen": ASKED, "rejected": ASKED}, "Why?"),
    "openassistant-guanaco": ({"text": "### Human: Why?### Assistant: So.### Human: Oh"}, "Why?"),
    "OASST message": (
        {"message_id": "a", "parent_id": "nan", "role": "prompter", "text": "Why?"},
        "Why?",
    ),
    "OASST tree": (
        {"message_tree_id": "a", "prompt": {"message_id": "a", "text": "Why?", "replies": []}},
        "Why?",
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_shapes_give_their_task(name):
    row, prompt = KNOWN[name]
    assert extract_prompt(row) == prompt


# What else the authors publish beside the prompt; none of it is a task's.
BESIDE = {
    "WildChat": {
        "conversation": ASKED,
        "model": "gpt-4",
        "hashed_ip": "ab",
        "turn": 1,
        "header": {"user-agent": "Mozilla 5.0 of some kind"},
        "country": "The Isle of Man",
        "openai_moderation": [{"categories": {"hate": False}}],
        "language": "English",
    },
    "UltraFeedback": {
        "instruction": "Why?",
        "source": "evol_instruct",
        "models": ["a", "b"],
        "completions": [{"response": "It is so since then."}],
        "correct_answers": ["None"],
    },
    "Nectar": {"prompt": "Why?", "answers": [{"answer": "So it is here.", "rank": 1.0}]},
    "orpo mix": {
        "prompt": "Why?",
        "generation_prompt": ["You are a helpful assistant."],
        "raw_generation_responses": ["So it is here."],
        "source": "x",
    },
    "distilabel": {
        "input": "Why?",
        "order": ["chosen", "rejected"],
        "generations": ["So.", "No."],
        "labelling_prompt": [{"content": "Rate them, please, now."}],
        "rationale": "It is so.",
    },
    "OpenHermes": {
        "conversations": [{"from": "human", "value": "Why?"}],
        "avatarUrl": "https://a",
        "title": "Why is it so here?",
        "custom_instruction": False,
        "topic": "Life",
    },
    "NuminaMath": {"problem": "Why?", "solution": "It is so.\nQED", "source": "synthetic_math"},
    "MetaMathQA": {"query": "Why?", "original_question": "Why is it so?", "type": "GSM_Rephrased"},
    "APPS": {"question": "Why?", "input_output": '{"inputs": ["a b"]}', "url": "https://a"},
    "HumanEval": {"prompt": "Why?", "entry_point": "why", "test": "def check(one):\n    pass"},
    "Aya": {"inputs": "Why?", "targets": "So.", "language": "English", "language_code": "eng"},
    "OASST message": {
        "text": "Why?",
        "role": "prompter",
        "created_date": "Mon, 5 Feb 2023 14:23",
        "emojis": {"name": ["+1"]},
        "labels": {"name": ["spam"], "value": [0.0]},
    },
    "IFEval": {"prompt": "Why?", "instruction_id_list": ["a:b"], "kwargs": [{"keyword": "as a"}]},
    "SQuAD": {"question": "Why?", "title": "Beyoncé", "answers": {"text": ["It is so here."]}},
}


@pytest.mark.parametrize("name", BESIDE)
def test_answers_labels_and_ids_of_known_sets_do_no_harm(name):
    assert extract_prompt(BESIDE[name]) == "Why?"


# Names with which people keep a part of a task, each beside a request.
LOST = (
    *("choice_a", "option_b", "Option 1", "opa", "choice1", "endings", "mc1_targets", "candidates"),
    *("constraints", "requirements", "code", "code_snippet", "essay", "source_text", "email"),
    *("article_text", "review", "schema", "sql_schema", "content", "body", "facts", "examples"),
    *("Context 1", "context_messages", "previous_messages", "image_path", "imageUrl", "test_list"),
    *("input_text", "userInput", "persona", "word_limit", "max_words", "target_language"),
    *("previous_answer", "chat_history", "selftext", "hint", "retrieved_documents", "tableRows"),
)


@pytest.mark.parametrize("name", LOST)
def test_a_part_of_the_task_under_another_name_is_refused_by_its_name(name):
    with pytest.raises(BadRow, match=rf"field '{normalise_name(name)}' belongs .*prompts.ignore="):
        extract_prompt({"instruction": "Do it.", name: 50 if "wo" in name else "x"})


def test_choices_in_columns_of_their_own_are_refused_together():
    row = {"question": "Which is cold?", "A": 3, "B": "fire", "C": "sand", "answer": "A"}
    with pytest.raises(BadRow, match=r"prompts\.ignore=a,b,c$"):
        extract_prompt(row)
    assert extract_prompt({"question": "Why?", "a": "So."}) == "Why?"  # an answer's short name


def write_rows(path, field, values):
    rows = [
        {"prompt": f"Sort the letters of word {number}.", field: value}
        for number, value in enumerate(values)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


OF_A_TASK = {
    "texts that differ": [f"Use {number} words at most." for number in range(9)],
    "a long text in every row": ["Answer as the keeper of a lighthouse would. " * 6] * 9,
    "lists of words": [["tea", "rain"]] * 9,
    "objects with words": [{"who": "a keeper"}] * 9,
    "lists as a table keeps them": ['["tea", "rain"]'] * 9,
    "texts without spaces": [f"请用三句话回答这个问题{number}" for number in range(9)],
    "one text among labels": [*["plain"] * 8, "Answer it as a keeper."],
}
LABELS = {
    "short words": [f"kind {number}" for number in range(9)],
    "the same few words in all rows": ["written by hand in May", *["made by a small model"] * 9],
    "numbers": [*range(9)],
    "lists of numbers": [[0.5, number] for number in range(9)],
    "dates": [f"2024-01-0{number}T10:00:00" for number in range(1, 9)],
    "hardly anything": [None, "", [], "N/A"],
}


@pytest.mark.parametrize("name", OF_A_TASK)
def test_a_field_of_any_name_that_holds_texts_of_its_own_is_refused(tmp_path, name):
    path = write_rows(tmp_path / "mine.jsonl", "Remark", OF_A_TASK[name])
    with pytest.raises(DataError, match=r"mine\.jsonl:\d: field 'remark' belongs to the task"):
        extract_prompts(read_rows(path, skip_bad=False))
    whole = extract_prompts(read_rows(path, skip_bad=False), ignore=["remark"])
    assert len(whole) == len(OF_A_TASK[name])


@pytest.mark.parametrize("name", LABELS)
def test_a_field_of_any_name_that_holds_labels_is_named(tmp_path, name):
    path = write_rows(tmp_path / "mine.jsonl", "Remark", LABELS[name])
    rows = read_rows(path, skip_bad=False)
    assert len(extract_prompts(rows)) == len(LABELS[name])
    assert rows.notes == [f"{path}: fields that are not used: Remark"]


def test_with_bad_rows_skipped_the_rest_is_used(tmp_path):
    path = write_rows(tmp_path / "mine.jsonl", "Remark", OF_A_TASK["one text among labels"])
    rows = read_rows(path, skip_bad=True)
    assert len(extract_prompts(rows)) == 8
    assert rows.skipped.total() == 1


@pytest.mark.parametrize("filler", ["<noinput>", "N/A", "None", "nan", "null", " No input "])
def test_words_for_nothing_are_no_material(filler):
    row = {"instruction": "Why?", "input": filler, "system": filler, "choices": filler}
    assert extract_prompt(row) == "Why?"


def test_what_is_said_twice_is_asked_once():
    long = "Sort the list of words."
    for material, prompt in (
        ("sort the  list of words.", "sort the  list of words."),
        (f"{long} b a", f"{long} b a"),
        (f"Here they are. {long}", f"Here they are. {long}"),
        ("the list of words", long),
        ("Sort the list of words.x", f"{long}\n\nSort the list of words.x"),
        ("words", f"{long}\n\nwords"),
    ):
        assert extract_prompt({"instruction": long, "input": material}) == prompt
    both = {"instruction": long, "input": f"{long} Say.", "context": f"{long} So he asked."}
    assert extract_prompt(both) == f"{long} Say.\n\n{long} So he asked."
    asked = {"instruction": "Why?", "context": "It fell, and he asked: why?"}
    assert extract_prompt(asked) == "Why?\n\nIt fell, and he asked: why?"


def test_a_title_is_a_part_of_a_text_and_the_name_of_a_conversation():
    assert extract_prompt({"title": "Why?", "messages": ASKED}) == "Why?"
    post = {"title": "Eggs", "text": "I boil them too long.", "selftext": "I boil them too long."}
    with pytest.raises(BadRow, match=r"prompts\.ignore=title$"):
        extract_prompt(post)


def test_deleted_rows_are_counted_languages_are_named(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": "Why?", "lang": "de", "deleted": "f"}, {"prompt": "How?", "deleted": True}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_rows(path, skip_bad=False)
    assert extract_prompts(read) == ["Why?"]
    assert read.skipped == {"deleted": 1}
    assert read.notes == [f"{path}: fields that are not used: lang"]


def test_every_file_of_a_folder_has_its_own_fields(tmp_path):
    for name, field in (("a", "id"), ("b", "id"), ("c", "category")):
        write_rows(tmp_path / f"{name}.jsonl", field, ["x"])
    rows = read_rows(tmp_path, skip_bad=False)
    extract_prompts(rows)
    assert rows.notes[1:] == [
        f"{tmp_path}: fields that are not used in a.jsonl, b.jsonl: id",
        f"{tmp_path}/c.jsonl: fields that are not used: category",
    ]


SHAPES = [
    {"Instruction": "Why?"},
    {"PROMPT": "Why?", "System Prompt": " "},
    {"query": "Why?"},
    {"inputs": "Why?", "targets": "So."},
    {"input": "Why?", "output": "So."},
    {"prompt": None, "question": "Why?"},
    {"instruction": "Why?", "input": "", "context": float("nan"), "history": [], "choices": None},
    {"question": "Why?", "choices": {"text": [], "label": []}, "instances": [{"input": ""}]},
    {"prompt": "Why?", "text": "Q: Why? A: So.", "answer": "So.", "messages": None},
    {"prompt": "Why?", "turns": 2, "data": "2024-01-01"},
    {"messages": [{"Role": "User", "Content": "Why?"}], "tools": []},
    {"messages": [{**one, "tool_calls": None, "name": None} for one in ASKED]},
    {"messages": [{**one, "tool_calls": [], "function_call": {}} for one in ASKED]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]},
    {"messages": json.dumps(ASKED)},
    {"prompt": json.dumps(ASKED)},
    {"prompt": '["Why?", "And then?"]', "response_a": '["So.", "Then."]'},
    {"turns": '["Why?", "And then?"]'},
    {"data": json.dumps(ASKED)},
    {"messages": [json.dumps(one) for one in ASKED]},
    {"messages": [{"role": "user", "content": "Why?", "from": None, "value": None}]},
    {"prompt": ASKED[0]},
    {"prompt": "Why?", "tools": "[]", "choices": " {} "},
    {"conversations": {"from": ["human", "gpt"], "value": ["Why?", "So."]}},
    {"conversation": "User: Why?\nAssistant: So."},
]


@pytest.mark.parametrize("row", SHAPES, ids=str)
def test_a_task_comes_out_of_other_names_and_empty_fields(row):
    assert extract_prompt(row) == "Why?"


def test_what_stands_before_the_first_answer_is_one_prompt():
    turns = [SYSTEM, {"role": "user", "content": "Here is a text."}, *ASKED, ASKED[0]]
    assert extract_prompt({"messages": turns}) == "Be terse.\n\nHere is a text.\n\nWhy?"
    parts = [{"type": "text", "text": "One."}, {"type": "input_text", "text": "Two."}]
    assert extract_prompt({"messages": [{"role": "user", "content": parts}]}) == "One.\n\nTwo."
    row = {"instruction": ASKED[:1], "input": "b a", "system": "Be terse."}
    assert extract_prompt(row) == "Be terse.\n\nWhy?\n\nb a"


texts = st.text(min_size=1, max_size=60).filter(
    lambda text: (
        text.strip()
        and "\x00" not in text
        and text.strip()[0] not in "[{#"
        and not is_number(text)
        and text.strip().casefold() not in fillers.NO_TEXT
    )
)


@given(texts)
def test_a_prompt_comes_out_as_it_went_in(text):
    """Spaces at its ends too: AlpacaEval compares answers by the very text of their prompt."""
    for row in (
        {"prompt": text},
        {"messages": [{"role": "user", "content": text}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]},
        {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "ok"}]},
    ):
        assert extract_prompt(row) == text


@pytest.mark.parametrize(
    "text",
    [
        "User: I cannot log in. Write what to answer.",
        "Write a talk of a Human: and an Assistant: about tea.",
        "What does ### mean in Markdown?",
        "System: Linux. How do I list files?",
    ],
)
def test_a_text_about_dialogues_is_a_prompt(text):
    assert extract_prompt({"prompt": text}) == text


REFUSED = [
    ({"answer": "So."}, "no field with a prompt .*its fields are answer;"),
    ({"chosen": "So.", "rejected": "No."}, "no field with a prompt"),
    ({"text": "So.", "parent_id": "a", "role": "assistant"}, "a reply in a message tree"),
    ({"prompt": None}, "field 'prompt' is empty"),
    ({"prompt": "a\ud800b"}, "half a character"),
    ({"prompt": "  "}, "field 'prompt' is empty"),
    ({"prompt": "a\x00b"}, "NUL"),
    ({"prompt": {"nested": "Why?"}}, "field 'prompt' is not text"),
    ({"prompt": "13.5"}, "field 'prompt' is only a number"),
    ({"prompt": " #REF! "}, r"field 'prompt' holds an error of a spreadsheet \(#REF!\)"),
    (
        {"data": {"prompt": "Why?", "answer": "So."}},
        "'data' holds an object with the fields prompt",
    ),
    ({"turns": 2}, "field 'turns' is not a list"),
    ({"prompt": "What does <|eot_id|> mean?"}, "markup of a chat template, which no prompt may"),
    ({"prompt": 7}, "field 'prompt' is only a number"),
    ({"messages": []}, "field 'messages' is empty"),
    ({"messages": "Why?"}, "not a list of messages"),
    ({"messages": ["Why?", {"role": "user"}]}, "not a list of messages"),
    ({"messages": {"role": ["user", "user"], "content": ["Why?"]}}, "not a list of messages"),
    ({"messages": str(ASKED)}, "as Python prints it; write it as JSON"),
    ({"messages": ASKED[1:]}, "begins with the assistant"),
    ({"messages": [SYSTEM]}, "no user's turn"),
    ({"messages": [SYSTEM, ASKED[1], ASKED[0]]}, "no user's turn"),
    ({"messages": [{"role": "narrator", "content": "So."}]}, "unknown role 'narrator'"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a part of type 'image'"),
    ({"messages": [{"role": "user", "content": []}]}, "the first message is empty"),
    ({"messages": [{"role": "user", "content": ""}]}, "the first message is empty"),
    ({"messages": [{**ASKED[0], "images": ["a.png"]}]}, "a field 'images'"),
    ({"messages": [*ASKED, {"role": "assistant", "tool_calls": [{"id": 1}]}]}, "calls tools"),
    ({"messages": [*ASKED, {"role": "tool", "content": "7"}]}, "calls tools"),
    ({"messages": ASKED, "tools": [{"name": "a"}]}, "field 'tools' belongs to the task"),
    ({"conversations": [{"from": "gpt", "value": "So."}]}, "begins with the assistant"),
    ({"question": "Which?", "choices": ["a", "b"]}, "field 'choices' belongs to the task"),
    ({"question": "Which?", "choices": {"text": ["a"]}}, "field 'choices' belongs to the task"),
    ({"question": "Which?", "Options": ["a", "b"]}, "field 'options' belongs to the task"),
    ({"instruction": "And?", "history": [["Why?", "So."]]}, "field 'history' belongs"),
    ({"prompt": "Describe it.", "image": "a.png"}, "field 'image' belongs to the task"),
    ({"prompt": "Shorten it.", "document": "Long ago."}, "field 'document' belongs to the task"),
    ({"question": "How?", "context": {"title": ["a"]}}, "field 'context' is not text"),
    ({"instruction": "Ask.", "instances": ["a"]}, "field 'instances' is not a list of objects"),
    ({"instruction": "Answer.", "question": "Why?"}, "field 'question' says something else"),
    ({"question": "How many?", "text": "Three lamps."}, "field 'text' says something else"),
    ({"messages": ASKED, "context": "Three lamps."}, "field 'context' says something else"),
    ({"messages": ASKED, "prompt": "How?"}, "field 'prompt' says something else"),
    ({"prompt": "Shorten it.", "data": ["Long", "ago"]}, "field 'data' says something else"),
    ({"Prompt": "Why?", "prompt": "How?"}, "two fields are named 'prompt'"),
    ({"text": "<s>[INST] Why? [/INST] So.</s>"}, r"holds '\[INST\]'"),
    ({"text": "Below is a task.\n### Instruction:\nWhy?\n### Response:\nSo."}, "### Response"),
    ({"text": "A chat.\n### Human: Why?\n### Assistant: So."}, "### Assistant"),
    ({"text": "A chat. USER: Why? ASSISTANT: So."}, "ASSISTANT:"),
    ({"prompt": "Why?<|im_end|>"}, r"<\|im_end\|>"),
    ({"text": "### Assistant: So.### Human: Why?"}, "begins with the assistant"),
]


@pytest.mark.parametrize(("row", "reason"), REFUSED, ids=str)
def test_a_row_without_a_prompt_is_refused_with_its_reason(tmp_path, row, reason):
    path = tmp_path / "mine.jsonl"
    lines = [{"prompt": "One."}, row, {"prompt": "Two."}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=rf"mine\.jsonl:2: .*{reason}.*--skip-bad") as caught:
        extract_prompts(read_rows(path, skip_bad=False))
    assert len(str(caught.value).splitlines()) == 1
    rows = read_rows(path, skip_bad=True)
    assert extract_prompts(rows) == ["One.", "Two."]
    assert rows.skipped.total() == 1


def test_fields_that_are_not_used_are_named(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "One.", "Topic": "x"}\n{"prompt": "Two.", "id": 7, "tools": []}\n')
    rows = read_rows(path, skip_bad=False)
    assert extract_prompts(rows) == ["One.", "Two."]
    assert rows.notes == [f"{path}: fields that are not used: Topic, id"]


def test_if_every_row_is_skipped_the_reasons_are_said(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": " "}\n{"prompt": ""}\n{"answer": "So."}\n')
    with pytest.raises(
        DataError, match=r"no prompt in it \(skipped: 2 × field 'prompt' is empty; 1 × no"
    ):
        extract_prompts(read_rows(path, skip_bad=True))


def test_a_conversation_that_is_not_of_messages_is_refused():
    for turns in ([1, 2], [None, ASKED[0]], {"a": 1}):
        with pytest.raises(BadRow):
            extract_prompt({"conversations": turns})
