"""Is what llama.cpp runs the model that was trained? Token ids of whole conversations, and logits at every position of them.

Knows: a few conversations on which models and tokenizers disagree if they disagree; what is proved of every file that is
written. Does not know: runs, stages. How logits are compared is in `parity`; this says what must hold, with the numbers. All that
it does are tasks of the workshop.
"""

# The proof that an exported GGUF is the same model: logits and token ids of both sides.
#
#     parity             logits of transformers/PEFT against llama.cpp on the same token ids
#     token_parity       token ids of tokenizer.json against llama.cpp on the same texts
#
# Does not know how the files were made; any base and LoRA GGUF can be compared with the folders they stand for. Both
# sides compute in float32 on the CPU (a 4-bit reference on the card, where there is one), exact before fast: this is a
# check on a few short texts, not an engine. torch, transformers, peft and llama_cpp are imported inside functions.

from __future__ import annotations

import ctypes
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfreward_lite.models import nf4
from selfreward_lite.models.chat_format import DATE, ChatFormat, Message
from selfreward_lite.models.gguf_export import Weights, adapter_to_gguf, base_to_gguf
from selfreward_lite.system.errors import ExportError

if TYPE_CHECKING:
    import numpy as np

BLOCK = 64  # rows of logits that are looked at together

# Texts on which tokenizers disagree if they disagree: special tokens typed as text, digits, accents, other scripts, spaces.
TOKEN_PROBES = (
    "Score: 4.5/5",
    "<|eot_id|><|start_header_id|>assistant",
    "naïve café",
    "١٢٣ 中文 🙂",
    "a  b\n\n\tc ",
    "I'll 12345",
)


@dataclass(frozen=True)
class Parity:
    """How far llama.cpp is from transformers on the same token ids, in logits."""

    max_abs_diff: float
    # Of a GGUF adapter, None without one: the largest change that it makes inside llama.cpp, 0 where it does nothing …
    adapter_change: float | None
    # … and how much of PEFT's change arrives there; None too where that is no larger than what the base alone is off by.
    adapter_share: float | None
    tokens: int
    agreement: float  # share of positions at which both would say the same token next
    divergence: float  # mean over positions of KL(transformers ‖ llama.cpp), in nats
    base: Parity | None = None  # beside a GGUF adapter: the same of the base alone


def parity(
    model_dir: Path,
    adapter_dir: Path | None,
    gguf_base: Path,
    gguf_adapter: Path | None,
    token_lists: Sequence[Sequence[int]],
    *,
    weights: Weights,
) -> Parity:
    """Compare the logits of every position of every list; both sides compute in float32 with a float32 cache.

    `weights="nf4"` loads the reference in 4 bits as training does. An `adapter_dir` without a `gguf_adapter` says that it
    is merged into `gguf_base`. Raises ExportError if a file cannot be loaded.
    """
    if (
        not token_lists
        or not all(token_lists)
        or (adapter_dir is None and gguf_adapter is not None)
    ):
        raise ExportError(
            "parity needs non-empty token lists, and the folder of every GGUF adapter"
        )
    whole, base = _Comparison(), _Comparison()
    with ExitStack() as stack:
        theirs = _Reference(model_dir, adapter_dir, weights)
        ours = _Llama(stack, gguf_base, gguf_adapter, max(map(len, token_lists)))
        for tokens in token_lists:
            expected, found = theirs.logits(tokens), ours.logits(tokens)
            if expected.shape != found.shape:
                raise ExportError(
                    f"{gguf_base} has {found.shape[1]} tokens, {model_dir} {expected.shape[1]}: export it again"
                )
            whole.models(expected, found)
            if gguf_adapter is not None:
                before, found_before = (
                    theirs.logits(tokens, adapted=False),
                    ours.logits(tokens, adapted=False),
                )
                base.models(before, found_before)
                whole.adapters(expected, found, before, found_before)
    return whole.result(base.result() if gguf_adapter is not None else None)


@dataclass
class _Comparison:
    """What has been seen so far; the logits themselves, 0.5 GB for a thousand tokens of Llama-3, are not kept."""

    apart: list[float] = field(default_factory=list)
    same: list[np.ndarray] = field(default_factory=list)
    divergence: list[np.ndarray] = field(default_factory=list)
    changes: list[tuple[float, float]] = field(
        default_factory=list
    )  # by the adapter, of llama.cpp and of PEFT
    shared: float = 0.0
    whole: float = 0.0

    def models(self, expected: np.ndarray, found: np.ndarray) -> None:
        """Compare two arrays of logits (tokens, vocabulary)."""
        import numpy as np

        self.apart.append(float(np.abs(expected - found).max()))
        self.same.append(expected.argmax(axis=1) == found.argmax(axis=1))
        self.divergence.append(_divergence(expected, found))

    def adapters(
        self, expected: np.ndarray, found: np.ndarray, before: np.ndarray, found_before: np.ndarray
    ) -> None:
        """Compare what the adapter adds on either side to the logits `before`."""
        import numpy as np

        for rows in _blocks(len(expected)):
            change, arrived = (
                (expected[rows] - before[rows]).astype(np.float64),
                found[rows] - found_before[rows],
            )
            self.changes.append((float(np.abs(arrived).max()), float(np.abs(change).max())))
            self.shared += float((change * arrived).sum())
            self.whole += float((change * change).sum())

    def result(self, base: Parity | None = None) -> Parity:
        """Return what all of it comes to, beside the `base` alone where there is an adapter.

        The share of an adapter that arrives is the slope of llama.cpp's change on PEFT's, by least squares through 0: what a
        quantised base is off by, with and without the adapter, mostly averages out over so many logits.
        """
        import numpy as np

        same = np.concatenate(self.same)
        change, reference = (
            map(float, np.max(self.changes, axis=0)) if self.changes else (None, 0.0)
        )
        hidden = base is None or reference <= base.max_abs_diff
        return Parity(
            max_abs_diff=float(np.max(self.apart)),
            adapter_change=change,
            adapter_share=None if hidden else self.shared / self.whole,
            tokens=len(same),
            agreement=float(np.mean(same)),
            divergence=float(np.mean(np.concatenate(self.divergence))),
            base=base,
        )


def _divergence(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL(p ‖ q) = Σ p·(log p − log q) of each row of two arrays of logits (rows, vocabulary), in nats."""
    import numpy as np

    def log_softmax(logits: np.ndarray) -> np.ndarray:
        exact = logits.astype(np.float64)
        exact -= exact.max(axis=1, keepdims=True)
        return exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))

    out = np.empty(len(expected))
    for rows in _blocks(len(expected)):
        log_p, log_q = log_softmax(expected[rows]), log_softmax(found[rows])
        out[rows] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return out


def _blocks(rows: int) -> Iterator[slice]:
    """A few rows at a time: in float64, with all that is between, a thousand of Llama-3's would take 5 GB."""
    return (slice(start, start + BLOCK) for start in range(0, rows, BLOCK))


def check_parity(
    measured: Parity, limit: float = 1e-3, *, agreement: float = 0.0, share_error: float = math.inf
) -> None:
    """Raise ExportError with the numbers unless the largest difference is a number within `limit`, at least a share
    `agreement` of the positions has the same likeliest token, and all of the adapter arrives but for `share_error`.
    """
    share = measured.adapter_share
    if not measured.max_abs_diff <= limit:  # written so that NaN fails
        why = f"differs from transformers by {measured.max_abs_diff:.3g} in a logit, more than {limit:g}"
    elif not measured.agreement >= agreement:
        why = f"has the same likeliest token as transformers at {measured.agreement:.1%} of the positions, not {agreement:.0%}"
    elif share is not None and not abs(share - 1) <= share_error:
        why = f"shows {share:.0%} of the adapter's effect in PEFT, not 100 ± {100 * share_error:.0f} %"
    else:
        return
    raise ExportError(
        f"llama.cpp {why}, over {measured.tokens} tokens: do not use this GGUF, export again"
    )


class _Reference:
    """transformers, with PEFT's adapter if one is given."""

    def __init__(self, model_dir: Path, adapter_dir: Path | None, weights: Weights) -> None:
        import torch

        packed = weights == "nf4"
        self._model = nf4.load(
            model_dir,
            "nf4" if packed else "none",
            torch.float32,
            on_card=packed and torch.cuda.is_available(),
        )
        if adapter_dir is not None:
            from peft import PeftModel

            self._model = PeftModel.from_pretrained(self._model, adapter_dir)
        self._model.eval()

    def logits(self, tokens: Sequence[int], *, adapted: bool = True) -> np.ndarray:
        """Return an array (tokens, vocabulary), with the adapter or without."""
        import torch

        ids = torch.tensor([list(tokens)], device=self._model.device)
        with torch.inference_mode(), nullcontext() if adapted else self._model.disable_adapter():
            return self._model(ids).logits[0].float().cpu().numpy()


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


class _Llama:
    """llama.cpp with a GGUF base and LoRA, exact arithmetic before speed; freed when `stack` closes."""

    def __init__(self, stack: ExitStack, gguf: Path, adapter: Path | None, longest: int) -> None:
        import llama_cpp

        model = load_llama(stack, gguf, vocab_only=False)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = longest
        settings.n_threads = settings.n_threads_batch = min(8, os.cpu_count() or 1)
        settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.offload_kqv = settings.op_offload = False
        self._context = llama_cpp.llama_init_from_model(model, settings)
        if not self._context:
            raise ExportError(
                f"llama.cpp has no memory for {longest} tokens of {gguf}: use shorter token lists"
            )
        stack.callback(llama_cpp.llama_free, self._context)
        self._adapter_file, self._adapter = (
            adapter,
            _load_adapter(model, adapter) if adapter is not None else None,
        )
        self._width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._batch = llama_cpp.llama_batch_init(longest, 0, 1)
        stack.callback(llama_cpp.llama_batch_free, self._batch)

    def logits(self, tokens: Sequence[int], *, adapted: bool = True) -> np.ndarray:
        """Return an array (tokens, vocabulary), with the adapter or without: one sequence from an empty cache."""
        import llama_cpp
        import numpy as np

        if self._adapter is not None:
            loras = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self._adapter)
            if llama_cpp.llama_set_adapters_lora(
                self._context, loras, int(adapted), (ctypes.c_float * 1)(1.0)
            ):
                raise ExportError(
                    f"llama.cpp cannot use {self._adapter_file}: export the adapter again"
                )
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        if status := llama_cpp.llama_decode(self._context, batch):
            raise ExportError(
                f"llama.cpp could not decode {len(tokens)} tokens (status {status}): use this model's ids"
            )
        found = np.ctypeslib.as_array(
            llama_cpp.llama_get_logits(self._context), shape=(len(tokens), self._width)
        )
        return found.copy()


def _load_adapter(model: Any, adapter: Path) -> Any:
    """A GGUF LoRA for a model, which frees it."""
    import llama_cpp

    lora = llama_cpp.llama_adapter_lora_init(model, str(adapter).encode())
    if not lora:
        raise ExportError(f"llama.cpp cannot load {adapter} on this base: export the adapter again")
    return lora


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
            written = llama_cpp.llama_tokenize(
                vocab, data, len(data), buffer, len(buffer), False, False
            )
            expected, found = (
                tokenizer.encode(text, add_special_tokens=False).ids,
                list(buffer[: max(written, 0)]),
            )
            if expected != found:
                raise ExportError(
                    f"{gguf}: llama.cpp reads {text!r} as {found}, tokenizer.json as {expected}: "
                    "use the tokenizer.json this GGUF was made from"
                )
            count += len(expected)
    return count


# Turns, digits, spaces, code, accents, other scripts. The user begins, and the number of turns is odd: the assistant is next.
CONVERSATIONS = (
    ("Hello.",),
    ("Sort the letters c a b.", "The answer is a b c.", "And backwards?"),
    ("What is 12345 + 678 901? Round to 2.50 %.",),
    ("  Indented\n\n\tcode:\n    if x == 1:\n        return 'I''ll'\n",),
    ("naïve café, Übermaß, señor", "Ça va?", "œuvre", "déjà vu", "fin"),
    ("中文 ١٢٣ हिन्दी 🙂🙃", "好", "もう一度"),
    ("A rather long request. " * 20,),
    ("Score: 4.5/5\nWinner: Judgement A",),
)


def export_base(model_dir: str, out: str, weights: Weights, dtype: str) -> dict[str, int]:
    """Write the base as GGUF and prove its token ids; returns `tokens`, how many were compared."""
    base_to_gguf(Path(model_dir), Path(out), weights=weights, dtype=dtype)  # type: ignore[arg-type]
    return _same_tokens(Path(model_dir), Path(out))


def adopt_base(model_dir: str, gguf: str, out: str, weights: Weights) -> dict[str, int]:
    """Put a GGUF that somebody else made in the base's place, and prove its token ids; returns `tokens`, how many were compared.

    It is linked where the disk allows, else copied. Raises ExportError, and leaves no file, where it is no GGUF of this model.
    How far its logits are from what is trained (`weights`) is measured with the first adapter, as for every base.
    """
    source, target = Path(gguf), Path(out)
    if not source.is_file():
        raise ExportError(f"{source}: no such file; mend model.gguf_file")
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk
        shutil.copyfile(source, target)
    try:
        return _same_tokens(Path(model_dir), target)
    except ExportError:
        target.unlink()
        raise


def export_adapter(
    model_dir: str,
    adapter: str,
    base: str,
    out: str,
    token_lists: Sequence[Sequence[int]],
    weights: Weights,
) -> dict[str, float | None]:
    """Write an adapter as GGUF and measure it; returns `difference`, `change`, `share`, `agreement`, as `Tools` explains them."""
    adapter_to_gguf(Path(adapter), Path(model_dir), Path(out))
    measured = parity(
        Path(model_dir), Path(adapter), Path(base), Path(out), token_lists, weights=weights
    )
    return {
        "difference": measured.max_abs_diff,
        "change": measured.adapter_change,
        "share": measured.adapter_share,
        "agreement": measured.agreement,
    }


def conversations() -> list[list[Message]]:
    """Return the conversations as messages, the last of them the user's."""
    roles = ("user", "assistant")
    return [
        [Message(role=roles[turn % 2], content=text) for turn, text in enumerate(texts)]
        for texts in CONVERSATIONS  # type: ignore[misc]
    ]


def check(
    model_dir: str,
    base: str,
    adapter_dir: str | None,
    adapter: str | None,
    weights: Weights,
    limits: Mapping[str, float],
) -> dict[str, float | None]:
    """Compare a base GGUF, and an adapter on it, with the folders that they stand for.

    Returns how many conversations and tokens were compared, the largest difference of a logit without and with the adapter,
    the largest change that the adapter makes and the share of it that arrives, and the share of positions with the same
    likeliest token. Raises ExportError, with the numbers, where token ids differ or the models by more than the `limits` of
    `check_parity`.
    """
    ids = conversation_ids(Path(model_dir), Path(base))
    folder, lora = (Path(one) if one is not None else None for one in (adapter_dir, adapter))
    found = parity(Path(model_dir), folder, Path(base), lora, ids, weights=weights)
    plain = found.base or found
    check_parity(plain, **limits)
    check_parity(found, **limits)
    return {
        "conversations": len(ids),
        "tokens": found.tokens,
        "base_difference": plain.max_abs_diff,
        "adapter_difference": None if found.base is None else found.max_abs_diff,
        "adapter_change": found.adapter_change,
        "adapter_share": found.adapter_share,
        "agreement": found.agreement,
    }


def conversation_ids(model_dir: Path, base: Path) -> list[list[int]]:
    """Return the token ids of the conversations, the same to our own chat format, transformers and llama.cpp.

    Raises ExportError naming the first that is not, or has not exactly one beginning of text, or where llama.cpp ends a turn
    with another token than we stop at.
    """
    from transformers import AutoTokenizer

    chat, theirs = (
        ChatFormat.load(model_dir),
        AutoTokenizer.from_pretrained(model_dir, local_files_only=True),
    )
    found = []
    with ExitStack() as stack:
        import llama_cpp

        vocab = llama_cpp.llama_model_get_vocab(load_llama(stack, base, vocab_only=True))
        ends = {llama_cpp.llama_vocab_eot(vocab), llama_cpp.llama_vocab_eos(vocab)} - {-1}
        if not ends & set(chat.stop):
            raise ExportError(
                f"{base} ends a turn with {sorted(ends)}, the chat template with {chat.stop}: export it again"
            )
        for number, messages in enumerate(conversations(), 1):
            ours = list(chat.prompt_ids(messages))
            told: dict[str, Any] = {"add_generation_prompt": True, "date_string": DATE}
            said: Any = list(messages)
            others = {
                "transformers": theirs.apply_chat_template(said, return_dict=True, **told)[
                    "input_ids"
                ],
                "llama.cpp": _tokenised(
                    vocab, theirs.apply_chat_template(said, tokenize=False, **told)
                ),
            }
            for who, ids in others.items():
                if ids != ours:
                    place = next(
                        (
                            i
                            for i, pair in enumerate(zip(ids, ours, strict=False))
                            if pair[0] != pair[1]
                        ),
                        len(ours),
                    )
                    raise ExportError(
                        f"{base}: {who} reads conversation {number} otherwise, from token {place} on: export again"
                    )
            if theirs.bos_token_id is not None and ours.count(theirs.bos_token_id) != 1:
                raise ExportError(
                    f"{model_dir}: conversation {number} has not one beginning of text: mend the chat template"
                )
            found.append(ours)
    return found


def _same_tokens(model_dir: Path, base: Path) -> dict[str, int]:
    """Prove a base's token ids; how many were compared."""
    plain = token_parity(model_dir, base, TOKEN_PROBES)
    return {"tokens": plain + sum(map(len, conversation_ids(model_dir, base)))}


def _tokenised(vocab: Any, text: str) -> list[int]:
    """As llama.cpp reads a rendered template: special tokens are special, and no beginning is added to the template's own."""
    import llama_cpp

    data = text.encode()
    ids = (llama_cpp.llama_token * (len(data) + 1))()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), ids, len(ids), False, True)
    return list(ids[: max(count, 0)])
