"""The bytes of every token of a GGUF, as llama.cpp writes them, without loading a model."""

from pathlib import Path

from gguf import GGUFReader, TokenType

from selfreward_lite.models.vocabulary import SPACE
from selfreward_lite.system.errors import EngineError

HIDDEN = (TokenType.UNKNOWN, TokenType.CONTROL)
RAW = (TokenType.USER_DEFINED, TokenType.UNUSED)


def read_pieces(gguf: Path) -> list[bytes]:
    """The bytes of every token by its id; none for control tokens. EngineError for no GGUF."""
    try:
        fields = GGUFReader(gguf).fields
        model = fields["tokenizer.ggml.model"].contents()
        tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
        types: list[int] = fields["tokenizer.ggml.token_type"].contents()
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise EngineError(
            f"{gguf} holds no vocabulary ({type(error).__name__}: {error}); export it again"
        ) from None
    letters = _byte_letters()
    return [
        _to_bytes(token, TokenType(kind), letters if model == "gpt2" else None)
        for token, kind in zip(tokens, types, strict=True)
    ]


def _to_bytes(token: str, kind: TokenType, letters: dict[str, int] | None) -> bytes:
    """The bytes of a token; `letters` are those of byte-level BPE, None for SentencePiece."""
    if kind in HIDDEN:
        return b""
    if kind == TokenType.BYTE:
        return bytes([int(token[1:-1], 16)])  # <0x0A>
    if kind in RAW:
        return token.encode()
    if letters is None:
        return token.replace(SPACE, " ").encode()
    return bytes(letters[letter] for letter in token)


def _byte_letters() -> dict[str, int]:
    """The byte that each letter of GPT-2's alphabet stands for.

    Printable bytes are themselves; others are the letters from 256 on, in order.
    """
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in plain]
    found = {chr(byte): byte for byte in plain}
    return found | {chr(256 + place): byte for place, byte in enumerate(others)}
