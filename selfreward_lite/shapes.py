"""Shapes of models by name: what their config.json says, for planning before a download and for random models of the same size.

Knows: a few Llamas (from the config.json of their repositories). Does not know: weights, files.
"""

from __future__ import annotations

from selfreward_lite.llama_folder import Llama


def _llama(hidden: int, layers: int, ffn: int, heads: tuple[int, int], vocab: int, tied: bool = False) -> Llama:
    return Llama(
        hidden=hidden, layers=layers, ffn=ffn, heads=heads[0], kv_heads=heads[1], head_dim=hidden // heads[0], context=8192,
        eps=1e-5, vocab=vocab, theta=500000.0, rope=None, tied=tied,
    )


SHAPES = {
    "10m": _llama(256, 4, 768, (4, 2), 4096),  # for tests
    "250m": _llama(1024, 16, 2816, (16, 4), 32000),
    "1b": _llama(2048, 16, 8192, (32, 8), 128256, tied=True),  # Llama-3.2-1B
    "3b": _llama(3072, 28, 8192, (24, 8), 128256, tied=True),  # Llama-3.2-3B
    "llama-3-8b": _llama(4096, 32, 14336, (32, 8), 128256),
}
# Repositories that presets and their headers name.
BASES = {
    "unsloth/llama-3-8b-Instruct-bnb-4bit": "llama-3-8b",
    "unsloth/Llama-3.2-3B-Instruct-bnb-4bit": "3b",
    "unsloth/Llama-3.2-1B-Instruct-bnb-4bit": "1b",
}
