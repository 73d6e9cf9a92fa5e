"""What a model answers in training, at a few places: what servers are compared with.

The places are in the conversations of `parity.py`. Runs in the training child.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfreward_lite.engine import reference
from selfreward_lite.engine.reference import Expected, Reference
from selfreward_lite.models.gguf_export import Weights
from selfreward_lite.models.parity import compute_logits, load_reference

if TYPE_CHECKING:
    import numpy as np

PLACES = 8  # of a conversation, evenly spread; the last is where the assistant begins
LIKELIEST = 20  # tokens of a place whose log-probabilities are kept


def write_reference(
    model_dir: Path,
    adapter: Path | None,
    out: Path,
    token_lists: Sequence[Sequence[int]],
    weights: Weights,
) -> int:
    """Write the reference of the base, or of an adapter (PEFT's folder); returns its places."""
    model = load_reference(model_dir, adapter, weights)
    places = [
        place
        for tokens in map(list, token_lists)
        for place in _find_places(model, tokens, has_adapter=adapter is not None)
    ]
    reference.save(Reference(places=places), out)
    return len(places)


def _find_places(model: Any, tokens: list[int], *, has_adapter: bool) -> Iterator[Expected]:
    """Yield the places of one conversation."""
    with model.disable_adapter() if has_adapter else nullcontext():
        base = _log_softmax(compute_logits(model, tokens))
    adapted = _log_softmax(compute_logits(model, tokens)) if has_adapter else base
    steps = min(PLACES, len(tokens))
    for length in sorted({round(len(tokens) * step / steps) for step in range(1, steps + 1)}):
        row, plain = adapted[length - 1], base[length - 1]
        ids = tuple(row.argsort()[::-1][:LIKELIEST].tolist())
        yield Expected(
            tokens=tuple(tokens[:length]),
            ids=ids,
            base=tuple(plain[list(ids)].tolist()),
            base_top=int(plain.argmax()),
            adapter=tuple(row[list(ids)].tolist()) if has_adapter else None,
            adapter_top=ids[0] if has_adapter else None,
        )


def _log_softmax(logits: "np.ndarray") -> "np.ndarray":
    """Log-probabilities [tokens, vocab], in float32."""
    import numpy as np

    shifted: np.ndarray = logits - logits.max(axis=1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
