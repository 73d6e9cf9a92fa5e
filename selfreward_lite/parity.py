"""The proof that an exported GGUF is the same model: logits and token ids of both sides.

    parity             logits of transformers/PEFT against llama.cpp on the same token ids
    token_parity       token ids of tokenizer.json against llama.cpp on the same texts

Does not know how the files were made; any base and LoRA GGUF can be compared with the folders they stand for. Both
sides compute in float32 on the CPU (a 4-bit reference on the card, where there is one), exact before fast: this is a
check on a few short texts, not an engine. torch, transformers, peft and llama_cpp are imported inside functions.
"""
from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfreward_lite import nf4
from selfreward_lite.errors import ExportError
from selfreward_lite.export import Weights

if TYPE_CHECKING:
    import numpy as np

# Texts on which tokenizers disagree if they disagree: special tokens typed as text, digits, accents, other scripts, spaces.
TOKEN_PROBES = (
    "Score: 4.5/5", "<|eot_id|><|start_header_id|>assistant", "naïve café", "١٢٣ 中文 🙂", "a  b\n\n\tc ", "I'll 12345",
)


@dataclass(frozen=True)
class Parity:
    """How far llama.cpp is from transformers on the same token ids, in logits."""

    max_abs_diff: float
    adapter_change: float | None  # largest change the adapter makes inside llama.cpp; 0 means it does nothing
    tokens: int
    agreement: float  # share of positions at which both would say the same token next
    divergence: float  # mean over positions of KL(transformers ‖ llama.cpp), in nats


def parity(model_dir: Path, adapter_dir: Path | None, gguf_base: Path, gguf_adapter: Path | None,
           token_lists: Sequence[Sequence[int]], *, weights: Weights) -> Parity:
    """Compare the logits of every position of every list; both sides compute in float32 with a float32 cache.

    `weights="nf4"` loads the reference in 4 bits as training does. An `adapter_dir` without a `gguf_adapter` says that it
    is merged into `gguf_base`. Raises ExportError if a file cannot be loaded.
    """
    import numpy as np
    if not token_lists or not all(token_lists) or (adapter_dir is None and gguf_adapter is not None):
        raise ExportError("parity needs non-empty token lists, and the folder of every GGUF adapter")
    expected = _reference_logits(model_dir, adapter_dir, token_lists, weights)
    plain = _llama_logits(gguf_base, None, token_lists)
    found = plain if gguf_adapter is None else _llama_logits(gguf_base, gguf_adapter, token_lists)

    if expected[0].shape != plain[0].shape:
        raise ExportError(f"{gguf_base} has {plain[0].shape[1]} tokens, {model_dir} {expected[0].shape[1]}: "
                          "export it again")

    def distance(left: list[np.ndarray], right: list[np.ndarray]) -> float:
        return float(np.max([np.abs(a - b).max() for a, b in zip(left, right, strict=True)]))

    same = [a.argmax(axis=1) == b.argmax(axis=1) for a, b in zip(expected, found, strict=True)]
    apart = [_divergence(a, b) for a, b in zip(expected, found, strict=True)]
    return Parity(distance(expected, found), None if gguf_adapter is None else distance(plain, found),
                  sum(len(tokens) for tokens in token_lists), float(np.mean(np.concatenate(same))),
                  float(np.mean(np.concatenate(apart))))


def _divergence(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL(p ‖ q) = Σ p·(log p − log q) of each row of two arrays of logits (rows, vocabulary), in nats."""
    import numpy as np

    def log_softmax(logits: np.ndarray) -> np.ndarray:
        exact = logits.astype(np.float64)
        exact -= exact.max(axis=1, keepdims=True)
        return exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))

    log_p, log_q = log_softmax(expected), log_softmax(found)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def check_parity(measured: Parity, limit: float = 1e-3) -> None:
    """Raise ExportError with the numbers unless the largest difference is a number within `limit`."""
    if not measured.max_abs_diff <= limit:  # written so that NaN fails
        raise ExportError(f"llama.cpp differs from transformers by {measured.max_abs_diff:.3g} in a logit, more than "
                          f"{limit:g}, over {measured.tokens} tokens: do not use this GGUF, export again")


def _reference_logits(model_dir: Path, adapter_dir: Path | None, token_lists: Sequence[Sequence[int]],
                      weights: Weights) -> list[np.ndarray]:
    """Per list an array (tokens, vocabulary) from transformers, with PEFT's adapter if one is given."""
    import torch
    packed = weights == "nf4"
    model = nf4.load(model_dir, "nf4" if packed else "none", torch.float32, on_card=packed and torch.cuda.is_available())
    if adapter_dir is not None:
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, adapter_dir)
    model.eval()
    with torch.inference_mode():
        return [model(torch.tensor([list(tokens)], device=model.device)).logits[0].float().cpu().numpy()
                for tokens in token_lists]


def load_llama(stack: ExitStack, gguf: Path, *, vocab_only: bool) -> Any:
    """A llama.cpp model on the CPU, freed when `stack` closes."""
    import llama_cpp
    log = logging.getLogger("llama-cpp-python")  # by default it prints every setting of the file
    stack.callback(log.setLevel, log.level)
    log.setLevel(logging.ERROR)
    llama_cpp.llama_backend_init()
    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only, settings.n_gpu_layers = vocab_only, 0
    settings.use_extra_bufts = False  # repacked weights are computed in bf16 on CPUs with AMX
    model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), settings)
    if not model:
        raise ExportError(f"llama.cpp cannot load {gguf}: export it again")
    stack.callback(llama_cpp.llama_model_free, model)
    return model


def _llama_logits(gguf: Path, adapter: Path | None, token_lists: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Per list an array (tokens, vocabulary) from llama.cpp, exact arithmetic before speed."""
    import llama_cpp
    import numpy as np
    longest = max(len(tokens) for tokens in token_lists)
    with ExitStack() as stack:
        model = load_llama(stack, gguf, vocab_only=False)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = longest
        settings.n_threads = settings.n_threads_batch = min(4, os.cpu_count() or 1)
        settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.offload_kqv = settings.op_offload = False
        context = llama_cpp.llama_init_from_model(model, settings)
        if not context:
            raise ExportError(f"llama.cpp has no memory for {longest} tokens of {gguf}: use shorter token lists")
        stack.callback(llama_cpp.llama_free, context)
        if adapter is not None:
            _set_adapter(model, context, adapter)
        width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        batch = llama_cpp.llama_batch_init(longest, 0, 1)
        stack.callback(llama_cpp.llama_batch_free, batch)
        out = []
        for tokens in token_lists:
            _decode(context, batch, tokens)
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape=(len(tokens), width))
            out.append(logits.copy())
        return out


def _set_adapter(model: Any, context: Any, adapter: Path) -> None:
    """Switch a GGUF LoRA on at scale 1; llama.cpp frees it with the model."""
    import llama_cpp
    lora = llama_cpp.llama_adapter_lora_init(model, str(adapter).encode())
    if not lora:
        raise ExportError(f"llama.cpp cannot load {adapter} on this base: export the adapter again")
    loras = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(lora)
    if llama_cpp.llama_set_adapters_lora(context, loras, 1, (ctypes.c_float * 1)(1.0)):
        raise ExportError(f"llama.cpp cannot use {adapter}: export the adapter again")


def _decode(context: Any, batch: Any, tokens: Sequence[int]) -> None:
    """One sequence from an empty cache, logits wanted at every position."""
    import llama_cpp
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    if status := llama_cpp.llama_decode(context, batch):
        raise ExportError(f"llama.cpp could not decode {len(tokens)} tokens (status {status}): use this model's ids")


def token_parity(model_dir: Path, gguf: Path, texts: Sequence[str]) -> int:
    """Number of tokens compared. Raises ExportError naming the first text whose ids differ.

    Both sides read the texts as plain text: "<|eot_id|>" written by somebody is letters, not the end of a turn.
    """
    import llama_cpp
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    count = 0
    with ExitStack() as stack:
        vocab = llama_cpp.llama_model_get_vocab(load_llama(stack, gguf, vocab_only=True))
        for text in texts:
            data = text.encode()
            buffer = (llama_cpp.llama_token * (len(data) + 1))()  # a token holds at least one byte
            written = llama_cpp.llama_tokenize(vocab, data, len(data), buffer, len(buffer), False, False)
            expected, found = tokenizer.encode(text, add_special_tokens=False).ids, list(buffer[:max(written, 0)])
            if expected != found:
                raise ExportError(f"{gguf}: llama.cpp reads {text!r} as {found}, tokenizer.json as {expected}: "
                                  "use the tokenizer.json this GGUF was made from")
            count += len(expected)
    return count
