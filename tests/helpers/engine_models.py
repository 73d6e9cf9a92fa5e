"""Tiny random models in GGUF for the engine's tests: base, quantized copy, LoRA adapters.

The vocabulary is byte-level: 256 bytes, a few merged words, and three control tokens at the end.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

WORDS = ["Score", ":", "the", "an", "is", "of"]
BYTES = 256


@dataclass(frozen=True)
class Shape:
    """Sizes of a random Llama."""

    layers: int = 2
    hidden: int = 64
    heads: int = 4
    feed: int = 128
    vocab: int = 300
    context: int = 2048


def byte_letters() -> list[str]:
    """Return the printable letters of GPT-2's byte-level alphabet, byte 0 to 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(code) if code in plain else chr(next(spare)) for code in range(BYTES)]


def vocabulary(size: int) -> tuple[list[str], list[int], list[str]]:
    """Return tokens, types and merges; the last three tokens are <begin>, <end>, <turn>."""
    tokens, merges = byte_letters(), []
    for left in "abcdefghijklmnopqrstuvwxyz":
        for right in "aeiouns":
            if len(tokens) < size - 3:
                tokens.append(left + right)
                merges.append(f"{left} {right}")
    tokens += [f"<filler{index}>" for index in range(size - 3 - len(tokens))] + [
        "<begin>",
        "<end>",
        "<turn>",
    ]
    types = [gguf.TokenType.NORMAL] * (size - 3) + [gguf.TokenType.CONTROL] * 3
    return tokens, types, merges


def write_model(path: Path, shape: Shape = Shape(), seed: int = 0, spread: float = 1.0) -> Path:
    """Write a random Llama in float32; a large `spread` of logits makes greedy choices robust."""
    writer = gguf.GGUFWriter(path, "llama")
    head = shape.hidden // shape.heads
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    tokens, types, merges = vocabulary(shape.vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(shape.vocab - 3)
    writer.add_eos_token_id(shape.vocab - 2)
    for name, values in random_weights(shape, seed, spread).items():
        writer.add_tensor(name, values)
    _finish(writer)
    return path


def random_weights(shape: Shape, seed: int, spread: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)

    ones = np.ones(shape.hidden, dtype=np.float32)
    weights = {
        "token_embd.weight": matrix(shape.vocab, shape.hidden) * 4,
        "output_norm.weight": ones,
        "output.weight": matrix(shape.vocab, shape.hidden) * np.float32(spread),
    }
    for block in range(shape.layers):
        weights |= {
            f"blk.{block}.attn_norm.weight": ones,
            f"blk.{block}.ffn_norm.weight": ones,
            f"blk.{block}.ffn_gate.weight": matrix(shape.feed, shape.hidden),
            f"blk.{block}.ffn_up.weight": matrix(shape.feed, shape.hidden),
            f"blk.{block}.ffn_down.weight": matrix(shape.hidden, shape.feed),
        }
        for part in ("q", "k", "v", "output"):
            weights[f"blk.{block}.attn_{part}.weight"] = matrix(shape.hidden, shape.hidden)
    return weights


def write_adapter(
    path: Path, seed: int = 1, scale: float = 1.0, hidden: int = 64, rank: int = 4
) -> Path:
    """Write a random LoRA on the queries and values of block 0; `scale` 0 makes B zero."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    rng = np.random.default_rng(seed)
    for part in ("q", "v"):
        writer.add_tensor(
            f"blk.0.attn_{part}.weight.lora_a",
            rng.normal(0, 0.5, (rank, hidden)).astype(np.float32),
        )
        second = rng.normal(0, 0.5, (hidden, rank)) * scale
        writer.add_tensor(f"blk.0.attn_{part}.weight.lora_b", second.astype(np.float32))
    _finish(writer)
    return path


def quantise(source: Path, target: Path) -> Path:
    """Write a Q8_0 copy of `source`."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    assert llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(params)) == 0
    return target


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
