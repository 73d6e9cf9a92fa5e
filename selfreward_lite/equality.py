"""Is what llama.cpp runs the model that was trained? Token ids of whole conversations, and logits at every position of them.

Knows: a few conversations on which models and tokenizers disagree if they disagree; what is proved of every file that is
written. Does not know: runs, stages. How logits are compared is in `parity`; this says what must hold, with the numbers. All that
it does are tasks of the workshop.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from selfreward_lite.chat import DATE, ChatFormat, Message
from selfreward_lite.errors import ExportError
from selfreward_lite.export import Weights, adapter_to_gguf, base_to_gguf
from selfreward_lite.parity import TOKEN_PROBES, check_parity, load_llama, parity, token_parity

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
    model_dir: str, adapter: str, base: str, out: str, token_lists: Sequence[Sequence[int]], weights: Weights
) -> dict[str, float | None]:
    """Write an adapter as GGUF and measure it; returns `difference`, `change`, `share`, `agreement`, as `Tools` explains them."""
    adapter_to_gguf(Path(adapter), Path(model_dir), Path(out))
    measured = parity(Path(model_dir), Path(adapter), Path(base), Path(out), token_lists, weights=weights)
    return {
        "difference": measured.max_abs_diff, "change": measured.adapter_change, "share": measured.adapter_share,
        "agreement": measured.agreement,
    }


def conversations() -> list[list[Message]]:
    """Return the conversations as messages, the last of them the user's."""
    roles = ("user", "assistant")
    return [
        [Message(role=roles[turn % 2], content=text) for turn, text in enumerate(texts)] for texts in CONVERSATIONS  # type: ignore[misc]
    ]


def check(
    model_dir: str, base: str, adapter_dir: str | None, adapter: str | None, weights: Weights, limits: Mapping[str, float]
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
        "conversations": len(ids), "tokens": found.tokens, "base_difference": plain.max_abs_diff,
        "adapter_difference": None if found.base is None else found.max_abs_diff, "adapter_change": found.adapter_change,
        "adapter_share": found.adapter_share, "agreement": found.agreement,
    }


def conversation_ids(model_dir: Path, base: Path) -> list[list[int]]:
    """Return the token ids of the conversations, the same to our own chat format, transformers and llama.cpp.

    Raises ExportError naming the first that is not, or has not exactly one beginning of text, or where llama.cpp ends a turn
    with another token than we stop at.
    """
    from transformers import AutoTokenizer

    chat, theirs = ChatFormat.load(model_dir), AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    found = []
    with ExitStack() as stack:
        import llama_cpp

        vocab = llama_cpp.llama_model_get_vocab(load_llama(stack, base, vocab_only=True))
        ends = {llama_cpp.llama_vocab_eot(vocab), llama_cpp.llama_vocab_eos(vocab)} - {-1}
        if not ends & set(chat.stop):
            raise ExportError(f"{base} ends a turn with {sorted(ends)}, the chat template with {chat.stop}: export it again")
        for number, messages in enumerate(conversations(), 1):
            ours = list(chat.prompt_ids(messages))
            told: dict[str, Any] = {"add_generation_prompt": True, "date_string": DATE}
            said: Any = list(messages)
            others = {
                "transformers": theirs.apply_chat_template(said, return_dict=True, **told)["input_ids"],
                "llama.cpp": _tokenised(vocab, theirs.apply_chat_template(said, tokenize=False, **told)),
            }
            for who, ids in others.items():
                if ids != ours:
                    place = next((i for i, pair in enumerate(zip(ids, ours, strict=False)) if pair[0] != pair[1]), len(ours))
                    raise ExportError(f"{base}: {who} reads conversation {number} otherwise, from token {place} on: export again")
            if theirs.bos_token_id is not None and ours.count(theirs.bos_token_id) != 1:
                raise ExportError(f"{model_dir}: conversation {number} has not one beginning of text: mend the chat template")
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
