"""The chat format: token ids as in transformers, and no content that leaves its turn."""

import pytest
from hostile_text import HOSTILE_PROMPTS
from hypothesis import given
from hypothesis import strategies as st

from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.chat_format import ChatFormat, user
from selfreward_lite.system.errors import ConfigError
from selfreward_lite.training.tiny_base.tokenizer import SPECIAL_TOKENS

CONTENT = st.text(
    alphabet=st.characters(exclude_categories=("Cs",)), max_size=60
) | st.sampled_from(HOSTILE_PROMPTS)


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
