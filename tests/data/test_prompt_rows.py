"""Rows as prompts: known shapes give their whole task, and no part of it is dropped in silence."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_lite.data.data_files import read_rows
from selfreward_lite.data.prompt_rows import extract_prompt, extract_prompts
from selfreward_lite.data.records import Prompt
from selfreward_lite.data.rows import BadRow
from selfreward_lite.method import new_prompts
from selfreward_lite.system.errors import DataError

ASKED = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
SYSTEM = {"role": "system", "content": "Be terse."}

# By name, as their authors publish them: what is taken is in docs/data.md.
KNOWN = {
    "Alpaca": (
        {"instruction": "Sort.", "input": "b a", "output": "a b", "text": "Below is an instruct…"},
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


SHAPES = [
    {"Instruction": "Why?"},
    {"PROMPT": "Why?", "System Prompt": " "},
    {"query": "Why?"},
    {"inputs": "Why?", "targets": "So."},
    {"input": "Why?", "output": "So."},
    {"prompt": None, "question": "Why?"},
    {"instruction": "Why?", "input": "", "context": float("nan"), "history": [], "choices": None},
    {"question": "Why?", "choices": {"text": [], "label": []}, "instances": [{"input": ""}]},
    {"prompt": "Why?", "text": "Q: Why? A: So.", "messages": None},
    {"prompt": "Why?", "turns": 2, "data": "2024-01-01"},
    {"messages": [{"Role": "User", "Content": "Why?"}], "tools": []},
    {"messages": [{**one, "tool_calls": None, "name": None} for one in ASKED]},
    {"messages": [{**one, "tool_calls": [], "function_call": {}} for one in ASKED]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]},
    {"messages": json.dumps(ASKED)},
    {"prompt": json.dumps(ASKED)},
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
    lambda text: text.strip() and "\x00" not in text and text.strip()[0] not in "[{"
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


DIALOGUES = [
    "### Human: Why?### Assistant: So.",
    "### User:\nWhy?\n\n### Assistant:\nSo.",
    "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: Oh\n\nAssistant: Yes",
    "USER: Why? ASSISTANT: So.</s>",
    "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nSo.<|eot_id|>",
    "<bos><start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\nSo.<end_of_turn>",
    "<|user|>\nWhy?</s>\n<|assistant|>\nSo.</s>",
    "<|prompter|>Why?<|endoftext|><|assistant|>So.<|endoftext|>",
]


@pytest.mark.parametrize("text", DIALOGUES)
def test_of_a_dialogue_in_one_text_the_first_turn_is_taken(text):
    assert extract_prompt({"text": text}) == "Why?"


def test_a_system_turn_of_a_dialogue_in_one_text_is_kept():
    text = "<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
    assert extract_prompt({"text": text}) == "Be terse.\n\nWhy?"


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
    ({"prompt": 7}, "field 'prompt' is not text"),
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
    with pytest.raises(DataError, match=r"no prompt in it \(skipped: 2 field 'prompt' is empty; 1"):
        extract_prompts(read_rows(path, skip_bad=True))


def test_a_conversation_that_is_not_of_messages_is_refused():
    for turns in ([1, 2], [None, ASKED[0]], {"a": 1}):
        with pytest.raises(BadRow):
            extract_prompt({"conversations": turns})


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
