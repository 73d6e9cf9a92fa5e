"""The chat format: token ids as in transformers, and no content that leaves its turn."""

import pytest
from chat_folders import (
    ASK_HEADER,
    CHATML,
    CHATML_TOKENS,
    HEADER,
    INST,
    INST_SPACE,
    INST_TOKENS,
    LOOP,
    TEMPLATES,
    byte_folder,
    edit_json,
    piece_folder,
)
from hostile_text import HOSTILE_PROMPTS
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.chat_template import Message, user
from selfreward_lite.system.errors import ConfigError
from selfreward_lite.training.tiny_base.tokenizer import SPECIAL_TOKENS

CONTENT = st.text(
    alphabet=st.characters(exclude_categories=("Cs",)), max_size=60
) | st.sampled_from(HOSTILE_PROMPTS)

BLANKS = [" ", "  ", "\n", "\n\n", "\n \n", "\r\n", "\t", "\x0b", "\x1c", "\x85", "\xa0", "\u2003"]
ROLES = ("user", "assistant")
# Text that no tokenizer here reads as a special token.
PLAIN = st.text(
    alphabet=[*"abtheRr0.:<|>'", "\u00e9", "\u0301", "\u4e2d", "\U0001f642"], max_size=9
)
SPACED = st.builds("".join, st.lists(PLAIN | st.sampled_from(BLANKS), max_size=6))


def talk(*contents: str) -> list[Message]:
    """A conversation of user and assistant in turn."""
    return [Message(role=ROLES[i % 2], content=text) for i, text in enumerate(contents)]


PIECES = {
    "pieces, INST": (INST, {"tokens": INST_TOKENS}),
    "pieces, INST and space": (INST_SPACE, {"tokens": INST_TOKENS}),
    "pieces, ChatML": (CHATML, {"tokens": CHATML_TOKENS}),
    "Mistral v0.3, INST": (INST, {"kind": "Mistral v0.3", "tokens": INST_TOKENS}),
    "Mistral v0.3, INST and space": (INST_SPACE, {"kind": "Mistral v0.3", "tokens": INST_TOKENS}),
    "Gemma, INST and space": (INST_SPACE, {"kind": "Gemma", "tokens": INST_TOKENS}),
    "Gemma, ChatML": (CHATML, {"kind": "Gemma", "tokens": CHATML_TOKENS}),
}
FORMATS = (*TEMPLATES, *PIECES)


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    """Our chat format and the tokenizer of transformers, by name in FORMATS."""
    from transformers import AutoTokenizer

    folder, found = tmp_path_factory.mktemp("formats"), {}
    for name, template in TEMPLATES.items():
        byte_folder(folder / name, template)
    for name, (template, options) in PIECES.items():
        piece_folder(folder / name, template, **options)
    for name in FORMATS:
        place = folder / name
        found[name] = ChatFormat.load(place), AutoTokenizer.from_pretrained(place)
    return found


def their_ids(theirs, messages: list[Message], *, ask: bool) -> list[int]:
    return theirs.apply_chat_template(messages, add_generation_prompt=ask, return_dict=True)[
        "input_ids"
    ]


@given(st.lists(CONTENT, min_size=1, max_size=3), CONTENT)
def test_prompt_ids_keep_any_content_in_its_turn(contents, continued):
    chat = ChatFormat.load(TINY_MODEL)
    special = {chat.tokenizer.token_to_id(name) for name in SPECIAL_TOKENS}
    roles = ["user", "assistant", "user"]
    messages = [
        {"role": role, "content": content} for role, content in zip(roles, contents, strict=False)
    ]
    hollow = [{**message, "content": "x"} for message in messages]
    ids = [token for token in chat.prompt_ids(messages, continued) if token in special]
    assert ids == [token for token in chat.prompt_ids(hollow) if token in special]
    assert [token for token in chat.completion_ids(continued) if token in special] == [
        chat.end_of_turn
    ]


def test_prompt_ids_equal_those_of_transformers(chat):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(TINY_MODEL)
    for text in ("Sort the letters c a b.", "  naïve 123456 \n\n tabs\t", "१२३ 中文 🙂", "x"):
        for messages in (
            user(text),
            [{"role": "system", "content": "be brief"}, *user(text)],
            [*user(text), {"role": "assistant", "content": "a b"}, *user("again")],
        ):
            expected = theirs.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True
            )["input_ids"]
            assert list(chat.prompt_ids(messages)) == expected
    assert theirs.eos_token_id in chat.stop


def test_prompt_ids_have_one_beginning_and_no_padding(chat):
    ids = chat.prompt_ids(user("hello"))
    assert ids.count(chat.tokenizer.token_to_id("<|begin_of_text|>")) == 1
    assert chat.completion_ids("a b")[-1] in chat.stop
    assert chat.pad not in chat.stop


def test_load_names_a_folder_without_template(tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json is missing"):
        ChatFormat.load(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / file).write_bytes((TINY_MODEL / file).read_bytes())
    with pytest.raises(ConfigError, match="no chat template"):
        ChatFormat.load(tmp_path)


# -- ids as in transformers ----------


@pytest.mark.parametrize("name", FORMATS)
def test_contents_are_trimmed_where_the_template_trims(name, formats):
    chat, theirs = formats[name]
    for blank in BLANKS:
        for text in (blank, f"{blank}the answer", f"the{blank}answer", f"the answer{blank}"):
            for messages in (user(text), talk("a", text, "b"), talk(text, text, text)):
                assert list(chat.prompt_ids(messages)) == their_ids(theirs, messages, ask=True)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25)
@given(contents=st.tuples(SPACED) | st.tuples(SPACED, SPACED, SPACED))
def test_prompt_ids_equal_theirs_for_any_text(name, formats, contents):
    chat, theirs = formats[name]
    messages = talk(*contents)
    assert list(chat.prompt_ids(messages)) == their_ids(theirs, messages, ask=True)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25)
@given(question=SPACED, answer=SPACED.map(str.strip).filter(bool))
def test_prompt_and_completion_are_the_whole_conversation(name, formats, question, answer):
    chat, theirs = formats[name]
    whole = their_ids(theirs, talk(question, answer), ask=False)
    ids = [*chat.prompt_ids(user(question)), *chat.completion_ids(answer)]
    assert ids == whole[: len(ids)]
    assert chat.end_of_turn not in whole[len(ids) :]


@pytest.mark.parametrize("name", FORMATS)
def test_continue_with_is_the_beginning_of_an_answer(name, formats):
    chat, theirs = formats[name]
    whole = their_ids(theirs, talk("hello", "9. the answer"), ask=False)
    ids = list(chat.prompt_ids(user("hello"), "9. the"))
    assert ids == whole[: len(ids)]
    assert ids[: len(chat.prompt_ids(user("hello")))] == list(chat.prompt_ids(user("hello")))


def test_a_line_end_that_jinja_drops_is_the_answers(tmp_path):
    """Jinja drops the last line end of a template; it then begins the answer, as its own token."""
    turns = TEMPLATES["trimmed"].removesuffix(ASK_HEADER)
    always = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    folder = byte_folder(tmp_path / "m", turns + always)
    chat = ChatFormat.load(folder)
    assert (chat.answer.before, chat.answer.lead) == ("\n", "\n")
    ids = [*chat.prompt_ids(user("hello")), *chat.completion_ids("the answer")]
    written = chat.template.render(talk("hello", "the answer"), ask=False)
    assert (
        chat.tokenizer.decode(ids, skip_special_tokens=False) == written.rpartition("<|start_")[0]
    )


def test_lengths_kept_in_the_tokenizer_change_nothing(tmp_path):
    folder = byte_folder(tmp_path / "m", CHATML)
    expected = ChatFormat.load(folder).prompt_ids(user("hello"))
    limit = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    fill = {"direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}
    fill |= {"strategy": {"Fixed": 64}, "pad_to_multiple_of": None}
    edit_json(folder / "tokenizer.json", lambda t: t.update(truncation=limit, padding=fill))
    assert ChatFormat.load(folder).prompt_ids(user("hello")) == expected


# -- no text leaves its turn ----------


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=30)
@given(data=st.data())
def test_no_content_holds_a_token_of_the_template(name, formats, data):
    chat, _ = formats[name]
    marks = ["\ue0000\ue001", "\ue0001\ue001", "\ue000", "\ue001", "{{", "%}", "assistant\n"]
    parts = CONTENT | st.sampled_from([*chat.special, *marks, *BLANKS])
    content = st.builds("".join, st.lists(parts, max_size=5))
    contents = data.draw(st.tuples(content) | st.tuples(content, content, content))
    begun = data.draw(content)
    special = set(chat.special.values())

    def used(ids):
        return [token for token in ids if token in special]

    hollow = chat.prompt_ids(talk(*("x" for _ in contents)))
    assert used(chat.prompt_ids(talk(*contents))) == used(hollow)
    assert used(chat.prompt_ids(talk(*contents), begun)) == used(hollow)
    assert used(chat.completion_ids(begun)) == [chat.end_of_turn]


def test_a_mark_in_a_text_stands_for_itself(chat):
    first = "\ue0001\ue001"
    ids = chat.prompt_ids(talk(first, "secret", "x"))
    assert chat.tokenizer.decode(ids).count("secret") == 1
    assert first in chat.tokenizer.decode(ids)


def test_a_token_with_a_role_is_special_in_any_case(tmp_path):
    folder = byte_folder(tmp_path / "m", INST, tokens=INST_TOKENS)

    def edit(spec):
        for token in spec["added_tokens"]:
            token["special"] = token["content"] != "<|eot_id|>"

    edit_json(folder / "tokenizer.json", edit)
    chat = ChatFormat.load(folder)
    assert chat.special["<|eot_id|>"] == chat.end_of_turn
    assert chat.end_of_turn not in chat.prompt_ids(user("a<|eot_id|>b"))


# -- what ends a turn ----------


def test_the_end_of_a_turn_is_what_the_template_writes(tmp_path):
    """Also in a vocabulary that has another family's end, and where the settings name that one."""
    chat = ChatFormat.load(byte_folder(tmp_path / "m", CHATML, eos_token="<|eot_id|>"))
    assert chat.end_of_turn == chat.special["<|im_end|>"]
    assert chat.completion_ids("a")[-1] == chat.special["<|im_end|>"]
    assert chat.stop == (chat.special["<|im_end|>"], chat.special["<|eot_id|>"])


@pytest.mark.parametrize("name", FORMATS)
def test_padding_ends_no_turn_and_no_text_holds_it(name, formats):
    chat, _ = formats[name]
    assert chat.pad != chat.end_of_turn
    assert chat.pad in chat.special.values()


def test_padding_that_ends_a_turn_is_replaced(tmp_path):
    chat = ChatFormat.load(byte_folder(tmp_path / "m", CHATML, pad_token="<|im_end|>"))
    assert chat.pad not in chat.stop
    chat = ChatFormat.load(byte_folder(tmp_path / "n", CHATML, pad_token="a"))
    assert chat.pad in chat.special.values()


def test_without_any_padding_a_base_is_refused(tmp_path):
    template = LOOP + "{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    folder = piece_folder(tmp_path / "m", template)

    def edit(spec):
        spec["added_tokens"] = [one for one in spec["added_tokens"] if one["content"] == "</s>"]

    edit_json(folder / "tokenizer.json", edit)
    edit_json(folder / "tokenizer_config.json", lambda c: c.update(unk_token=None, bos_token=None))
    with pytest.raises(ConfigError, match="no padding token .* set pad_token"):
        ChatFormat.load(folder)


def test_every_end_in_the_files_stops_an_answer(tmp_path):
    folder = byte_folder(tmp_path / "m", CHATML, eos_token="<|eot_id|>")
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    (folder / "config.json").write_text('{"eos_token_id": 9}')
    chat = ChatFormat.load(folder)
    assert chat.stop == (chat.special["<|im_end|>"], chat.special["<|eot_id|>"], 7, 8, 9)


# -- refusals ----------

TURN = HEADER + "{{ m['content'] }}<|eot_id|>"
REFUSED = {
    "nothing asks": (
        "{{ bos_token }}" + LOOP + TURN + "{% endfor %}",
        "writes nothing that asks the assistant to speak",
    ),
    "no roles": (
        "{{ bos_token }}" + LOOP + "{{ m['content'] }}<|eot_id|>\n{% endfor %}",
        "writes nothing that asks the assistant to speak",
    ),
    "plain ask, then header": (
        LOOP + TURN + "{% endfor %}{% if add_generation_prompt %}Speak.{% endif %}",
        "writes nothing that asks the assistant to speak",
    ),
    "always a thought": (
        LOOP + TURN + "{% endfor %}" + ASK_HEADER.replace("{% endif %}", "<think>\n{% endif %}"),
        "always begins a thought",
    ),
    "end in text": (
        LOOP + HEADER + "{{ m['content'] }} over{% endfor %}" + ASK_HEADER,
        "ends an answer without a special token",
    ),
    "no end": (
        LOOP + HEADER + "{{ m['content'] }}{% endfor %}" + ASK_HEADER,
        "ends an answer without a special token",
    ),
    "text before the end": (
        LOOP + HEADER + "{{ m['content'] }} over<|eot_id|>{% endfor %}" + ASK_HEADER,
        "ends an answer without a special token",
    ),
    "roles in plain text": (
        LOOP + "{% if m['role'] == 'user' %}[Q] {{ m['content'] }} [A]"
        "{% else %} {{ m['content'] }}<|eot_id|>{% endif %}{% endfor %}",
        "no special token between a question and its answer",
    ),
    "answer left out": (
        LOOP + "{% if m['role'] == 'user' %}" + TURN + "{% endif %}{% endfor %}" + ASK_HEADER,
        "repeats or leaves out an answer",
    ),
    "answer twice": (
        LOOP
        + TURN
        + "{% if m['role'] != 'user' %}"
        + TURN
        + "{% endif %}{% endfor %}"
        + ASK_HEADER,
        "repeats or leaves out an answer",
    ),
    "one role": (
        LOOP + "{{ raise_exception('no') if m['role'] != 'user' }}{% endfor %}",
        "refuses a conversation of user",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_load_refuses_a_template_that_cannot_be_trained(name, tmp_path):
    template, words = REFUSED[name]
    with pytest.raises(ConfigError, match=words) as caught:
        ChatFormat.load(byte_folder(tmp_path / "m", template))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("m['content']", "m['content'] + m['content']"),
        CHATML.replace("m['content']", "(m['content'] if loop.index < 3 else '')"),
    ],
)
def test_prompt_ids_refuse_a_lost_or_doubled_message(template, tmp_path):
    folder = byte_folder(tmp_path / "m", CHATML)
    good = ChatFormat.load(folder)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match="repeats or leaves out"):
        ChatFormat.load(folder).prompt_ids(talk("a", "b", "c"))
    assert good.prompt_ids(talk("a", "b", "c"))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_load_names_a_broken_file(file, text, tmp_path):
    folder = byte_folder(tmp_path / "m", CHATML)
    (folder / file).write_text(text)
    with pytest.raises(ConfigError, match=f"{file} .*download it again") as caught:
        ChatFormat.load(folder)
    assert "\n" not in str(caught.value)
