"""Proof that llama.cpp runs the model that was trained: the same token ids and logits.

Both sides compute in float32 on the CPU (a 4-bit reference on the GPU, if there is one). This is a
check on a few short texts, so it is exact before it is fast. Heavy packages are imported inside
functions.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfreward_lite.engine.api import LlamaSpec
from selfreward_lite.models import nf4
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.chat_template import OPTIONS, Message
from selfreward_lite.models.gguf_export import Dtype, Weights, adapter_to_gguf, base_to_gguf
from selfreward_lite.system.errors import ExportError

if TYPE_CHECKING:
    import numpy as np

    from selfreward_lite.engine.llama import LlamaEngine

BLOCK = 64  # rows of logits that are compared at once
STEP_TOKENS = 128  # tokens that llama.cpp computes at once
MAX_THREADS = 8
MIN_CONTEXT = 256

# Texts on which different tokenizers disagree: special tokens as plain text, digits, accents, other
# scripts, spaces.
TOKEN_PROBES = (
    "Score: 4.5/5",
    "<|eot_id|><|start_header_id|>assistant",
    "naïve café",
    "١٢٣ 中文 🙂",
    "a  b\n\n\tc ",
    "I'll 12345",
)

# Turns, digits, spaces, code, accents, other scripts. The user begins, and the number of turns is
# odd: the assistant is next.
CONVERSATIONS: tuple[tuple[str, ...], ...] = (
    ("Hello.",),
    ("Sort the letters c a b.", "The answer is a b c.", "And backwards?"),
    ("What is 12345 + 678 901? Round to 2.50 %.",),
    ("  Indented\n\n\tcode:\n    if x == 1:\n        return 'I''ll'\n",),
    ("naïve café, Übermaß, señor", "Ça va?", "œuvre", "déjà vu", "fin"),
    ("中文 ١٢٣ हिन्दी 🙂🙃", "好", "もう一度"),
    ("A rather long request. " * 20,),
    ("Score: 4.5/5\nWinner: Judgement A",),
)


# -- tasks of the training child ----------


@dataclass(frozen=True)
class AdapterParity:
    """What `export_adapter` measured; see `Parity`. Names are keys in the manifest of a model."""

    difference: float
    change: float | None
    share: float | None
    agreement: float


@dataclass(frozen=True)
class CheckedModel:
    """What `check` compared: counts, largest differences, the adapter's effect; see `Parity`."""

    conversations: int
    tokens: int
    base_difference: float
    adapter_difference: float
    adapter_change: float | None
    adapter_share: float | None
    agreement: float


def export_base(model_dir: Path, out: Path, weights: Weights, dtype: Dtype) -> int:
    """Write the base as GGUF and prove its token ids; returns how many were compared."""
    base_to_gguf(model_dir, out, weights=weights, dtype=dtype)
    return _check_tokens(model_dir, out)


def adopt_base(model_dir: Path, gguf: Path, out: Path) -> int:
    """Use an existing GGUF as the base and prove its token ids; returns how many were compared.

    `out` is a link where the disk allows, else a copy. Raises EngineError, and leaves no file, if
    it is no GGUF of this model. Its logits are compared with the first adapter's export.
    """
    out.unlink(missing_ok=True)
    if not gguf.is_file():
        raise ExportError(f"{gguf}: no such file; fix model.gguf_file")
    count = _check_tokens(model_dir, gguf)  # before it has another name, which no user knows
    try:
        os.link(gguf.resolve(), out)
    except OSError:  # another disk
        shutil.copyfile(gguf, out)
    return count


def export_adapter(
    model_dir: Path,
    adapter: Path,
    base: Path,
    out: Path,
    token_lists: Sequence[Sequence[int]],
    weights: Weights,
) -> AdapterParity:
    """Write an adapter as GGUF and compare its logits with PEFT's."""
    adapter_to_gguf(adapter, model_dir, out)
    found = parity(model_dir, adapter, base, out, token_lists, weights=weights)
    return AdapterParity(
        found.max_abs_diff, found.adapter_change, found.adapter_share, found.agreement
    )


def check(
    model_dir: Path,
    base: Path,
    adapter_dir: Path,
    adapter: Path,
    weights: Weights,
    limits: Mapping[str, float],
) -> CheckedModel:
    """Compare a base GGUF and an adapter on it with the folders that they were made from.

    Raises ExportError, with the numbers, where token ids differ, or logits by more than the
    `limits` of `check_parity`.
    """
    ids = conversation_ids(model_dir, base)
    found = parity(model_dir, adapter_dir, base, adapter, ids, weights=weights)
    plain = found.base
    assert plain is not None  # there is a GGUF adapter
    check_parity(plain, **limits)
    check_parity(found, **limits)
    return CheckedModel(
        conversations=len(ids),
        tokens=found.tokens,
        base_difference=plain.max_abs_diff,
        adapter_difference=found.max_abs_diff,
        adapter_change=found.adapter_change,
        adapter_share=found.adapter_share,
        agreement=found.agreement,
    )


# -- logits ----------


@dataclass(frozen=True)
class Parity:
    """How far llama.cpp is from transformers on the same token ids, in logits.

    `adapter_change` is the largest change that a GGUF adapter makes in llama.cpp, 0 if it does
    nothing; None without one. `adapter_share` is how much of PEFT's change arrives there; None too
    where the base alone is off by more than that change. `agreement` is the share of positions with
    the same likeliest token, `base` the same comparison of the base alone, beside a GGUF adapter.
    """

    max_abs_diff: float
    adapter_change: float | None
    adapter_share: float | None
    tokens: int
    agreement: float
    base: Parity | None = None


def parity(
    model_dir: Path,
    adapter_dir: Path | None,
    gguf_base: Path,
    gguf_adapter: Path | None,
    token_lists: Sequence[Sequence[int]],
    *,
    weights: Weights,
) -> Parity:
    """Compare the logits of every position of every list, both sides in float32.

    `weights="nf4"` loads the reference in 4 bits, as training does. An `adapter_dir` without a
    `gguf_adapter` means that the adapter is merged into `gguf_base`. Raises EngineError
    (ExportError is one) if a file cannot be loaded.
    """
    if not token_lists or not all(token_lists) or (adapter_dir is None and gguf_adapter):
        raise ExportError(
            "parity needs non-empty token lists, and the folder of every GGUF adapter"
        )
    from selfreward_lite.engine.llama import LlamaEngine
    from selfreward_lite.system.cores import count_cores

    adapted, base = _Comparison(), _Comparison()
    lora = None if gguf_adapter is None else str(gguf_adapter)
    spec = LlamaSpec(  # as in a run, but exact and on the CPU
        model=gguf_base,
        parallel=STEP_TOKENS,
        context=max(MIN_CONTEXT, *map(len, token_lists)),
        batch=STEP_TOKENS,
        threads=min(MAX_THREADS, count_cores()),
        roots=1,
        exact=True,
        check_adapters=False,  # what an adapter changes is measured here
    )
    # One model after the other: both of 8B would not fit the 12.7 GB of a free Colab machine, and
    # their pages would be read again for every list.
    with closing(LlamaEngine(spec)) as engine:
        in_llama = [_llama_logits(engine, list(tokens), lora) for tokens in token_lists]
    reference = load_reference(model_dir, adapter_dir, weights)
    for tokens, (found, found_plain) in zip(token_lists, in_llama, strict=True):
        expected = compute_logits(reference, list(tokens))
        if expected.shape != found.shape:
            raise ExportError(
                f"{gguf_base} has {found.shape[1]} tokens, {model_dir} {expected.shape[1]}: "
                "export it again"
            )
        adapted.add_models(expected, found)
        if found_plain is not None:
            with reference.disable_adapter():
                plain = compute_logits(reference, list(tokens))
            base.add_models(plain, found_plain)
            adapted.add_adapters(expected, found, plain, found_plain)
    return adapted.result(None if lora is None else base.result())


def check_parity(
    measured: Parity, limit: float = 1e-3, *, agreement: float = 0.0, share_error: float = math.inf
) -> None:
    """Raise ExportError, with the numbers, if a measured value is outside its limit.

    `limit` is for the largest difference of a logit, `agreement` for the share of positions with
    the same likeliest token, `share_error` for how far `adapter_share` may be from 1.
    """
    share = measured.adapter_share
    if not measured.max_abs_diff <= limit:  # written so that NaN fails
        why = (
            f"differs from transformers by {measured.max_abs_diff:.3g} in a logit, "
            f"more than {limit:g}"
        )
    elif not measured.agreement >= agreement:
        why = (
            f"has the same likeliest token as transformers at {measured.agreement:.1%} of the "
            f"positions, not {agreement:.0%}"
        )
    elif share is not None and not abs(share - 1) <= share_error:
        why = (
            f"shows {share:.0%} of the adapter's effect in PEFT, "
            f"not 100 ± {100 * share_error:.0f} %"
        )
    else:
        return
    raise ExportError(
        f"llama.cpp {why}, over {measured.tokens} tokens: do not use this GGUF, export again"
    )


@dataclass
class _Comparison:
    """Sums over the lists so far, without the logits (0.5 GB for 1,000 tokens of Llama-3)."""

    tokens: int = 0
    same: int = 0  # positions with the same likeliest token
    difference: float = 0.0  # the largest, as both changes
    change: float = 0.0  # of the adapter in llama.cpp
    peft_change: float = 0.0
    product: float = 0.0  # of both changes
    square: float = 0.0  # of PEFT's change

    def add_models(self, expected: np.ndarray, found: np.ndarray) -> None:
        """Compare two arrays of logits (tokens, vocabulary)."""
        self.tokens += len(found)
        self.same += int((expected.argmax(axis=1) == found.argmax(axis=1)).sum())
        self.difference = _largest(self.difference, expected - found)

    def add_adapters(
        self, expected: np.ndarray, found: np.ndarray, plain: np.ndarray, found_plain: np.ndarray
    ) -> None:
        """Compare what the adapter adds to the logits of the plain base, on either side."""
        # In float64, a thousand rows of Llama-3's would take 5 GB, so only a few at a time.
        for start in range(0, len(expected), BLOCK):
            rows = slice(start, start + BLOCK)
            change = (expected[rows] - plain[rows]).astype(float)
            arrived = found[rows] - found_plain[rows]
            self.change = _largest(self.change, arrived)
            self.peft_change = _largest(self.peft_change, change)
            self.product += float((change * arrived).sum())
            self.square += float((change * change).sum())

    def result(self, base: Parity | None = None) -> Parity:
        """The comparison of all lists, with that of the `base` alone beside an adapter.

        The share of an adapter that arrives is the slope of llama.cpp's change on PEFT's, by least
        squares through 0: the error of a quantized base, with and without the adapter, mostly
        averages out over so many logits.
        """
        is_hidden = base is None or self.peft_change <= base.max_abs_diff
        return Parity(
            max_abs_diff=self.difference,
            adapter_change=self.change if base else None,
            adapter_share=None if is_hidden else self.product / self.square,
            tokens=self.tokens,
            agreement=self.same / self.tokens,
            base=base,
        )


def _largest(known: float, values: np.ndarray) -> float:
    """The largest size of a value so far; NaN if there was one."""
    import numpy as np

    return float(np.maximum(known, np.abs(values).max()))


def load_reference(model_dir: Path, adapter_dir: Path | None, weights: Weights) -> Any:
    """The model in transformers, with PEFT's adapter if one is given."""
    import torch

    is_packed = weights == "nf4"
    model = nf4.load_model(
        model_dir,
        "nf4" if is_packed else "none",
        torch.float32,
        on_gpu=is_packed and torch.cuda.is_available(),
    )
    if adapter_dir is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter_dir)
    return model.eval()


def _llama_logits(
    engine: LlamaEngine, tokens: list[int], lora: str | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """llama.cpp's logits with the adapter, and without if there is one."""
    return engine.logits(tokens, lora), None if lora is None else engine.logits(tokens)


def compute_logits(model: Any, tokens: list[int]) -> np.ndarray:
    """A model's logits as an array (tokens, vocabulary)."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([tokens], device=model.device)).logits
    found: np.ndarray = logits[0].float().cpu().numpy()
    return found


# -- token ids ----------


@dataclass(frozen=True)
class GgufTokenizer:
    """The tokenizer in a GGUF, as llama.cpp reads it."""

    vocab: Any

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of a text; `special` parses special tokens in it. Adds no beginning of text."""
        import llama_cpp

        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 1))()  # a token holds at least one byte
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, special)
        return list(ids[: max(count, 0)])

    def ends_of_turn(self) -> set[int]:
        """The ids at which llama.cpp ends a turn."""
        import llama_cpp

        return {llama_cpp.llama_vocab_eot(self.vocab), llama_cpp.llama_vocab_eos(self.vocab)} - {-1}


@contextmanager
def open_tokenizer(gguf: Path) -> Iterator[GgufTokenizer]:
    """Give the tokenizer of a GGUF file without its weights; EngineError if it cannot be loaded."""
    import llama_cpp

    from selfreward_lite.engine.loading import load_model

    model = load_model(gguf, 0, vocab_only=True)
    try:
        yield GgufTokenizer(llama_cpp.llama_model_get_vocab(model))
    finally:
        llama_cpp.llama_model_free(model)


def token_parity(model_dir: Path, gguf: Path, texts: Sequence[str]) -> int:
    """Number of tokens compared. Raises ExportError naming the first text whose ids differ.

    Both sides read plain text: "<|eot_id|>" in a message is letters, not the end of a turn.
    """
    chat, count = ChatFormat.load(model_dir), 0
    with open_tokenizer(gguf) as llama:
        for text in texts:
            expected = chat.text_ids(text)
            if expected != (found := llama.encode(text, special=False)):
                raise ExportError(
                    f"{gguf}: llama.cpp reads {text!r} as {found}, tokenizer.json as {expected}: "
                    "use the tokenizer.json this GGUF was made from"
                )
            count += len(expected)
    return count


def make_conversation(texts: Sequence[str]) -> list[Message]:
    """Texts as turns of user and assistant; the user begins."""
    return [
        Message(role=("user", "assistant")[turn % 2], content=text)
        for turn, text in enumerate(texts)
    ]


def conversation_ids(model_dir: Path, gguf: Path) -> list[list[int]]:
    """The token ids of CONVERSATIONS, equal in ChatFormat, transformers and llama.cpp.

    Raises ExportError naming the first that differs or begins twice, or where llama.cpp ends a turn
    with a token that our chat format does not stop at.
    """
    from transformers import AutoTokenizer

    chat = ChatFormat.load(model_dir)
    theirs: Any = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    options: dict[str, Any] = {"add_generation_prompt": True, **OPTIONS}
    found = []
    with open_tokenizer(gguf) as llama:
        if not (ends := llama.ends_of_turn()) & set(chat.stop):
            raise ExportError(
                f"{gguf} ends a turn with {sorted(ends)}, the chat template with {chat.stop}: "
                "export it again"
            )
        for number, texts in enumerate(CONVERSATIONS, 1):
            messages = make_conversation(texts)
            ours = list(chat.prompt_ids(messages))
            encoded = theirs.apply_chat_template(messages, return_dict=True, **options)
            text = theirs.apply_chat_template(messages, tokenize=False, **options)
            others = {
                "transformers": encoded["input_ids"],
                "llama.cpp": llama.encode(text, special=True),
            }
            for reader, ids in others.items():
                if ids != ours:
                    raise ExportError(
                        f"{gguf}: {reader} reads conversation {number} differently from token "
                        f"{len(os.path.commonprefix([ids, ours]))} on: use another copy of the "
                        "model"
                    )
            if len(ours) > 1 and ours[0] == ours[1] == theirs.bos_token_id:
                raise ExportError(
                    f"{model_dir}: conversation {number} has two beginnings of text: correct the "
                    "chat template"
                )
            found.append(ours)
    return found


def _check_tokens(model_dir: Path, gguf: Path) -> int:
    """Prove the token ids of a GGUF; returns how many were compared."""
    plain = token_parity(model_dir, gguf, TOKEN_PROBES)
    return plain + sum(map(len, conversation_ids(model_dir, gguf)))
