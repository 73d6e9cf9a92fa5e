"""The GGUF of a real chat model, SmolLM2-135M-Instruct, as a base."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_tokenizers import smollm2_gguf
from repository import ROOT

from selfreward_lite import config
from selfreward_lite.engine.api import LlamaSpec
from selfreward_lite.engine.llama import LlamaEngine
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


def test_the_thousand_likeliest_tokens_hold_nearly_all_that_is_drawn() -> None:
    """What `paper` gives up by drawing from 1,024 tokens, where a small model reads English."""
    settings = config.load("paper").responses.draw
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")[3000:8000]
    with parity.open_tokenizer(smollm2_gguf()) as tokenizer:
        ids = tokenizer.encode(text, special=False)[:512]
    spec = LlamaSpec(model=smollm2_gguf(), parallel=64, context=1024, batch=64, roots=1, threads=1)
    with closing(LlamaEngine(spec)) as engine:
        logits = engine.logits(ids).astype(np.float64) / settings.temperature
    likely = np.exp(logits - logits.max(axis=1, keepdims=True))
    mass = -np.sort(-likely / likely.sum(axis=1, keepdims=True), axis=1).cumsum(axis=1)
    lost = np.maximum(0, 1 - mass[:, settings.top_k - 1] / settings.top_p).mean()
    wide = (mass[:, settings.top_k - 1] < settings.top_p).mean()
    print(f"\nlost of the nucleus: {lost:.2%}; wider than {settings.top_k} at {wide:.1%} of places")
    assert 0 < lost < 0.005
