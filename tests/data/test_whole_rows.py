"""What a row says twice: kept once if it is the same, refused if one of the two says more."""

import pytest

from selfreward_lite.data.prompt_rows import extract_prompt
from selfreward_lite.data.rows import BadRow

ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)


@pytest.mark.parametrize(
    "text",
    [
        "Write a poem about the sea. Rhyme it. In French only, at most four lines.",
        "You are a drunken pirate. Write a poem about the sea. Blue.",
        "Rhyme it! Write a poem about the sea.",
        "Use blue. Write a poem about the sea. Blue.",
        "System: answer in French.\n\nUser: Write a poem about the sea.\n\nAssistant: Blue.",
        "In Latin.\nQ: Write a poem about the sea.\nA: Blue.",
        "Below is a task. Be short.\n\nWrite a poem about the sea.",
        f"{ALPACA} Rhyme it.\n\n### Instruction:\nWrite a poem about the sea.\n\n### Response:\nB",
        f"{ALPACA}\n\n### Instruction:\nWrite a song about the sea.",
        "Write a poem about the sea. 5 lines",
    ],
)
def test_a_text_that_says_more_than_its_row_is_refused(text):
    row = {"instruction": "Write a poem about the sea.", "output": "Blue.", "text": text}
    with pytest.raises(BadRow, match=r"field 'text' says something else .*prompts\.ignore=text"):
        extract_prompt(row)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({}, "### Instruction:\nSort the words.\n\n### Input:\nb a\n\n### Response:\na b"),
        (
            {},
            f"{ALPACA}\n\n### Instruction:\nSort the words.\n\n### Input:\nb a\n\n### Response:\na",
        ),
        ({}, "Q: Sort the words.\nb a\nA: a b"),
        ({}, "Sort the words.\n\nb a"),
        ({}, "<s>[INST] Sort the words.\nb a [/INST] a b </s>"),
        (
            {},
            "<|im_start|>user\nSort the words.\nb a<|im_end|>\n<|im_start|>assistant\na b",
        ),
        (
            {"input": "N/A"},
            "### Instruction:\nSort the words.\n### Input:\nN/A\n### Response:\na b",
        ),
        ({"output": 4}, "### Instruction:\nSort the words.\n### Input:\nb a\n### Response: 4"),
    ],
)
def test_a_text_that_is_the_row_in_a_template_is_no_second_prompt(more, text):
    row = {"instruction": "Sort the words.", "input": "b a", "output": "a b", **more, "text": text}
    wanted = "Sort the words." if "input" in more else "Sort the words.\n\nb a"
    assert extract_prompt(row) == wanted


@pytest.mark.parametrize(
    ("asked", "material"),
    [
        ("Translate", "Translate is a verb that I like."),
        ("Summarize", "Summarize: this word means to give the main points."),
        ("Explain the idiom.", "Explain the idiom. (title of a lecture)"),
        ("Is it spam?", "Is it spam? No, it is a real prize!"),
        ("Write a poem about rain", "Write a poem about rain and you will be mocked."),
        ("Write a poem about rain", "He was told: you must write a poem about rain"),
    ],
)
def test_an_input_that_begins_like_its_instruction_loses_neither(asked, material):
    assert extract_prompt({"instruction": asked, "input": material}) == f"{asked}\n\n{material}"
    row = {"system": asked, "prompt": material}
    assert extract_prompt(row) == f"{asked}\n\n{material}"


def test_an_instruction_that_its_input_holds_as_a_sentence_is_asked_once():
    asked = "Sort the list of words."
    for whole in (
        f"{asked} b a",
        f"{asked}\nb a",
        f"b a\n{asked}",
        f"Here: {asked}",
        asked.lower(),
    ):
        assert extract_prompt({"instruction": asked, "input": whole}) == whole
    assert extract_prompt({"system": asked, "prompt": f"{asked}\n\nb a"}) == f"{asked}\n\nb a"
