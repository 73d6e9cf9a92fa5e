"""The bytes of tokens are llama.cpp's own, for byte-level BPE and for SentencePiece."""

from pathlib import Path

import pytest
from engine_models import write_model

from selfreward_lite.models.pieces import _to_bytes, read_pieces
from selfreward_lite.system.errors import EngineError


def llama_pieces(gguf: Path) -> list[bytes]:
    import llama_cpp

    from selfreward_lite.engine.loading import load_model

    model = load_model(gguf, 0, vocab_only=True)
    vocab = llama_cpp.llama_model_get_vocab(model)
    import ctypes

    buffer, found = ctypes.create_string_buffer(256), []
    for token in range(llama_cpp.llama_vocab_n_tokens(vocab)):
        size = llama_cpp.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, False)
        found.append(buffer.raw[: max(0, size)])
    llama_cpp.llama_model_free(model)
    return found


def test_every_piece_is_the_one_of_llama_cpp(tmp_path):
    model = write_model(tmp_path / "model.gguf")
    found = read_pieces(model)
    assert found == llama_pieces(model)
    assert found[-1] == b""
    assert sorted(found[:256]) == [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize(
    ("token", "kind", "says"),
    [("\u2581the", 1, b" the"), ("<0x0A>", 6, b"\n"), ("<s>", 3, b""), ("[INST]", 4, b"[INST]")],
)
def test_pieces_of_sentencepiece(token, kind, says):
    from gguf import TokenType

    assert _to_bytes(token, TokenType(kind), None) == says


def test_a_file_without_a_vocabulary_is_one_line(tmp_path):
    (tmp_path / "words.gguf").write_text("words")
    with pytest.raises(EngineError, match="holds no vocabulary"):
        read_pieces(tmp_path / "words.gguf")
