"""The GGUF of a real chat model, SmolLM2-135M-Instruct, as a base."""

from pathlib import Path
from typing import Any

import pytest
from real_tokenizers import smollm2_gguf

from selfreward_lite.models import parity
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.checks import check_folder
from selfreward_lite.models.gguf_export import base_to_gguf
from selfreward_lite.models.gguf_folder import find_shape, unpack_gguf
from selfreward_lite.models.hf_folder import read_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: Any) -> Path:
    return unpack_gguf(smollm2_gguf(), tmp_path_factory.mktemp("smollm2") / "folder")


def test_smollm2_reads_text_as_in_llama_cpp(unpacked: Path) -> None:
    check_folder(unpacked)
    found = parity.conversation_ids(unpacked, smollm2_gguf())
    assert len(found) == len(parity.CONVERSATIONS)
    assert parity.token_parity(unpacked, smollm2_gguf(), parity.TOKEN_PROBES) > 50
    chat = ChatFormat.load(unpacked)
    assert chat.tokenizer.id_to_token(chat.end_of_turn) == "<|im_end|>"
    # A system's turn that the template adds; "1" and "2" are two tokens.
    assert chat.tokenizer.decode(found[0], skip_special_tokens=False).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM"
    )
    assert len(chat.text_ids("12")) == 2


def test_smollm2_computes_the_same_in_llama_cpp(unpacked: Path, tmp_path: Path) -> None:
    assert read_config(unpacked) == find_shape(str(smollm2_gguf()))
    assert read_config(unpacked).tied
    file = base_to_gguf(unpacked, tmp_path / "f32.gguf", weights="original", dtype="f32")
    lists = parity.conversation_ids(unpacked, smollm2_gguf())[:4]
    measured = parity.parity(unpacked, None, file, None, lists, weights="original")
    print(f"\nSmolLM2: {measured.max_abs_diff:.2e} over {measured.tokens} tokens")
    parity.check_parity(measured, 1e-3, agreement=0.99)
    # The file itself, in 4 bits, computes nearly that: its blocks are the same numbers.
    given = parity.parity(unpacked, None, smollm2_gguf(), None, lists, weights="original")
    print(f"its Q4_1: {given.max_abs_diff:.2e}, same likeliest token {given.agreement:.1%}")
    assert given.agreement > 0.9
