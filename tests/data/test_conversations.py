"""Conversations as programs write them: who speaks, in which parts, and with which marks."""

import re

import pytest

from selfreward_lite.data.prompt_rows import extract_prompt
from selfreward_lite.data.rows import BadRow

ASKED = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
SYSTEM = {"role": "system", "content": "Be terse."}
TERSE = "Be terse.\n\nWhy?"


@pytest.mark.parametrize(
    "messages",
    [
        [{"type": "system", "content": "Be terse."}, {"type": "human", "content": "Why?"}],
        [{"sender": "system", "text": "Be terse."}, {"sender": "human", "text": "Why?"}],
        [{"speaker": "System", "text": "Be terse."}, {"speaker": "User", "text": "Why?"}],
        [SYSTEM, {"type": "message", "role": "user", "content": "Why?"}],
        [SYSTEM, ASKED[0], {"role": "AI", "content": "So."}],
    ],
    ids=str,
)
def test_who_speaks_is_read_from_the_fields_of_several_programs(messages):
    assert extract_prompt({"messages": messages}) == TERSE


def test_messages_without_a_speaker_are_refused_unless_there_is_only_one():
    assert extract_prompt({"turns": [{"content": "Why?"}]}) == "Why?"
    with pytest.raises(BadRow, match="a message has no role; give each one"):
        extract_prompt({"messages": [{"content": "Be terse."}, {"content": "Why?"}]})
    with pytest.raises(BadRow, match="unknown role 'Ann'"):
        extract_prompt({"messages": [{"speaker": "Ann", "content": "Why?"}]})


@pytest.mark.parametrize("nothing", ["", " ", None, []])
def test_a_system_turn_without_a_text_is_no_turn(nothing):
    turns = [{"role": "system", "content": nothing}, *ASKED]
    assert extract_prompt({"messages": turns}) == "Why?"
    with pytest.raises(BadRow, match="the first message is empty"):
        extract_prompt({"messages": [SYSTEM, {"role": "user", "content": nothing}]})


@pytest.mark.parametrize("content", [["Why?"], [{"text": "Why?"}]], ids=str)
def test_parts_without_a_type_are_texts_if_they_hold_nothing_else(content):
    assert extract_prompt({"messages": [{"role": "user", "content": content}]}) == "Why?"


def test_a_part_with_other_fields_is_refused_by_their_names():
    content = [{"source": {"bytes": "ab"}, "format": "png"}]
    with pytest.raises(BadRow, match="a part with the fields source, format, which is no text"):
        extract_prompt({"messages": [{"role": "user", "content": content}]})


def test_a_system_prompt_may_be_in_parts_and_is_said_once():
    parts = [{"type": "text", "text": "Be terse.", "cache_control": {"type": "ephemeral"}}]
    assert extract_prompt({"system": parts, "messages": ASKED}) == TERSE
    assert extract_prompt({"system": "Be terse.", "messages": [SYSTEM, *ASKED]}) == TERSE
    both = {"system": "Be terse.", "system_prompt": "Be terse.", "question": "Why?"}
    assert extract_prompt(both) == TERSE
    assert extract_prompt({"system": "Be", "prompt": "Being is what?"}) == "Be\n\nBeing is what?"


@pytest.mark.parametrize("name", ["context", "image_url", "documents", "choices", "system_prompt"])
def test_a_field_of_a_message_that_belongs_to_the_task_is_refused(name):
    asked = ASKED[0] | {name: "There are three lamps."}
    with pytest.raises(BadRow, match=f"a message has a field '{name}', which belongs to the task"):
        extract_prompt({"messages": [asked, ASKED[1]]})
    later = [*ASKED, asked, ASKED[1] | {name: "There are three lamps."}]
    assert extract_prompt({"messages": later}) == "Why?"
    assert extract_prompt({"messages": [ASKED[0] | {name: []}, ASKED[1]]}) == "Why?"


def test_a_chosen_conversation_with_more_than_the_prompt_is_refused():
    for chosen in (
        [SYSTEM, *ASKED],
        [{"role": "user", "content": "How?"}, ASKED[1], *ASKED],
        "\n\nHuman: How?\n\nAssistant: So.\n\nHuman: Why?\n\nAssistant: So.",
    ):
        with pytest.raises(BadRow, match="field 'chosen' says something else than field 'prompt'"):
            extract_prompt({"prompt": "Why?", "chosen": chosen, "rejected": chosen})
    for chosen in (ASKED, ASKED[1:], [SYSTEM, *ASKED][1:], "So it is.", '["So.", "Then."]'):
        assert extract_prompt({"prompt": "Why?", "chosen": chosen}) == "Why?"


def test_a_list_of_something_else_is_refused_by_the_name_of_its_field():
    with pytest.raises(BadRow, match="field 'inputs' is not a list of messages"):
        extract_prompt({"inputs": [3, 9, 1], "targets": [2, 1]})


@pytest.mark.parametrize(
    "text",
    [
        "Human: Why?\nAI: So.\nHuman: And?\nAI:",
        "User: Why?\nBot: So.",
        "<human>: Why?\n<bot>: So.",
        "<｜begin▁of▁sentence｜><｜User｜>Why?<｜Assistant｜>So.<｜end▁of▁sentence｜>",
        "<|User|>Why?<|Assistant|>So.",
        "<|user|>\nWhy?<|end|>\n<|assistant|>\n",
    ],
)
def test_dialogues_in_one_text_are_taken_apart_whatever_marks_their_turns(text):
    assert extract_prompt({"text": text}) == "Why?"


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("Why?\n<extra_id_1>Assistant\nSo.\n<extra_id_1>User\nAnd?", "<extra_id_1>"),
        ("<|start|>user<|message|>Why?<|end|><|start|>assistant", "<|start|>"),
        ("<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Why?", "<|START_OF_TURN_TOKEN|>"),
        ("GPT4 Correct User: Why?<|end_of_turn|>GPT4 Correct Assistant:", "<|end_of_turn|>"),
        ("<|user|>\n<|image_1|>\nWhy?<|end|>\n<|assistant|>\n", "<|image_1|>"),
    ],
)
def test_markup_of_any_template_is_refused_by_its_mark(text, mark):
    with pytest.raises(BadRow, match=rf"holds '{re.escape(mark)}', markup of a chat template"):
        extract_prompt({"prompt": text})


@pytest.mark.parametrize(
    "text",
    [
        "What do (<|>), f <| g |> h and a<|b|c mean?",
        "Write a scene.\nHuman: Hello.\nAI: Go away.",
        "Q: What is 1+1?\nA: 2\nQ: What is 2+2?\nA:",
        "What does <image> do in SVG?",
        "Explain this feed:\n<image>\n<url>a</url>\n</image>",
    ],
)
def test_signs_that_look_like_marks_stay_in_a_prompt(text):
    assert extract_prompt({"prompt": text}) == text


@pytest.mark.parametrize("text", ["<image>\nWhat is it?", "<image>What?", "What is it?\n<video>"])
def test_a_text_about_a_picture_that_is_not_there_is_refused(text):
    with pytest.raises(BadRow, match=r"something beside it \(<\w+>\), and only text is used"):
        extract_prompt({"conversations": [{"from": "human", "value": text}]})


@pytest.mark.parametrize(
    "pair", [("input", "output"), ("human", "assistant"), ("question", "answer")], ids=str
)
def test_of_objects_with_a_text_and_its_answer_the_first_text_is_taken(pair):
    asked, said = pair
    turns = [{asked: "Why?", said: "So."}, {asked: "And then?", said: "Then."}]
    assert extract_prompt({"conversation": turns}) == "Why?"
    assert extract_prompt({"conversation": [{"system": "Be terse.", **turns[0]}]}) == TERSE
    lists = {name: [turn[name] for turn in turns] for name in pair}
    if asked == "input":  # as `datasets` keeps Capybara's
        assert extract_prompt({"conversation": lists}) == "Why?"
    with pytest.raises(BadRow, match="a message has a field 'context'"):
        extract_prompt({"conversation": [{"context": "Three lamps.", **turns[0]}]})


def test_an_object_around_a_conversation_is_none():
    with pytest.raises(BadRow, match="field 'conversation' is not a list of messages"):
        extract_prompt({"conversation": {"id": "a", "messages": ASKED}})


@pytest.mark.parametrize(
    "name", ["scenario", "prompt", "question", "data", "reference_text", "text"]
)
def test_a_field_of_a_message_is_judged_by_its_values_too(name):
    asked = ASKED[0] | {name: "There are three lamps here."}
    with pytest.raises(BadRow, match=f"a message has a field '{name}', which belongs to the task"):
        extract_prompt({"messages": [asked, ASKED[1]]})
    same = {"role": "user", "content": "There are three lamps here.", name: asked[name]}
    assert extract_prompt({"messages": [same, ASKED[1]]}) == asked[name]
    labels = {"name": "Ann", "thinking": "I think it is so.", "created": "Mon, 5 Feb 2023 14:23"}
    assert extract_prompt({"messages": [ASKED[0] | labels | {"data": "train"}]}) == "Why?"
    with pytest.raises(BadRow, match="a message has a field 'scenario'"):
        extract_prompt(
            {"conversation": [{"input": "Why?", "output": "So.", "scenario": ["At sea"]}]}
        )


@pytest.mark.parametrize(
    "beside",
    [
        {"text": "Why?", "attachments": [], "files": [], "created_at": "2024-05-01"},
        {"cache_control": {"type": "ephemeral"}, "weight": 1},
        {"header": {"user-agent": "Mozilla 5.0 of some kind"}, "state": "The Isle of Man, far off"},
        {"metadata": {"finish": "it is done for now"}, "recipient": "all", "end_turn": True},
        {"additional_kwargs": {}, "response_metadata": {"a": "b"}, "example": False},
    ],
    ids=str,
)
def test_what_programs_write_beside_a_message_does_no_harm(beside):
    for content in ("Why?", [{"type": "text", "text": "Why?"}]):
        message = {"role": "user", "content": content, **beside}
        assert extract_prompt({"messages": [message, ASKED[1]]}) == "Why?"
