"""A model of 40 words whose probabilities are a function of the text, for scripted servers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from selfreward_lite.data.store import Store
from selfreward_lite.engine.api import Completion, Request
from selfreward_lite.engine.reference import REFERENCE, Expected, Reference, save

PIECES = [
    *(f"w{i}".encode() for i in range(28)),
    b" Score:",
    b"\n",
    *(b" %d" % i for i in range(6)),
]
PIECES += [b" end", b" go", b"", b""]
VOCAB, SCORE, END, OTHER_END = len(PIECES), 28, 38, 39
DIGITS = tuple(range(30, 36))
STOP = (END,)


def is_whole(token: int) -> bool:
    """Whether llama-server gives probabilities where this token is drawn."""
    return token % 2 == 0


@lru_cache(maxsize=100_000)
def logprobs(tokens: tuple[int, ...], model: str | None, base: str = "base") -> tuple[float, ...]:
    """Log-probabilities of the next token; an adapter adds to the logits of a base."""
    draw = random.Random(f"{base} {tokens[-3:]}")
    logits = [draw.gauss(0, 2) for _ in range(VOCAB)]
    if model is not None:
        change = random.Random(f"{model} {tokens[-3:]}")
        logits = [logit + change.gauss(0, 1) for logit in logits]
    logits[OTHER_END] = -20.0
    if tokens[-1] == SCORE:
        logits = [logit + 4 * (token in DIGITS) for token, logit in enumerate(logits)]
    total = math.log(math.fsum(map(math.exp, logits)))
    return tuple(logit - total for logit in logits)


def draw(
    tokens: Sequence[int],
    model: str | None,
    seed: int,
    most: int,
    greedy: bool,
    stop: Sequence[int],
    base: str = "base",
) -> list[int]:
    """A sample with the token that ends it, if one came."""
    text, drawn, rng = tuple(tokens), [], random.Random(seed)
    while len(drawn) < most and not (drawn and drawn[-1] in stop):
        values = logprobs(text, model, base)
        weights = [math.exp(value) for value in values]
        best = max(range(VOCAB), key=values.__getitem__)
        drawn.append(best if greedy else rng.choices(range(VOCAB), weights)[0])
        text = (*text, drawn[-1])
    return drawn


def answer(request: Request, sample: int) -> Completion:
    """What any engine with this model says."""
    model = None if request.adapter is None else Path(request.adapter).parent.name
    sampling, seed = request.sampling, request.seeds[sample]
    greedy = sampling.temperature == 0
    tokens = draw(request.tokens, model, seed, sampling.max_tokens, greedy, request.stop)
    is_stopped = tokens[-1] in request.stop
    tokens = tokens[: len(tokens) - is_stopped]
    probe = closing = None
    closing_text = ""
    if request.probe:
        for place, token in enumerate(tokens):
            if token in request.probe.tokens and text_of(tokens[:place]).endswith(" Score:"):
                values = logprobs((*request.tokens, *tokens[:place]), model)
                probe = tuple(math.exp(values[one]) for one in request.probe.tokens)
    if request.closing:
        behind = request.closing.tokens_behind(text_of(tokens))
        values = logprobs((*request.tokens, *tokens, *behind), model)
        closing = tuple(math.exp(values[one]) for one in request.closing.choices)
        closing_text = text_of(behind)
    return Completion(
        request.key,
        sample,
        tuple(tokens),
        text_of(tokens),
        "stop" if is_stopped else "length",
        len(request.tokens),
        probe,
        closing,
        closing_text,
    )


def text_of(tokens: Sequence[int]) -> str:
    return b"".join(PIECES[token] for token in tokens).decode()


def write_run(folder: Path, models: Sequence[str] = ("M0", "M1")) -> Path:
    """Write the files of a run that servers need, with references; returns its base."""
    Store.write(folder).close()
    base = folder / "base" / "base.gguf"
    base.parent.mkdir(parents=True)
    base.write_bytes(b"base")
    save(Reference(places=make_places(None)), base.parent / REFERENCE)
    for name in models:
        (folder / name / "adapter").mkdir(parents=True)
        (folder / name / "adapter" / "adapter_model.safetensors").write_text(f"peft {name}")
        (folder / name / "adapter.gguf").write_text(f"gguf {name}")
        save(Reference(places=make_places(name)), folder / name / REFERENCE)
    return base


def make_places(model: str | None) -> list[Expected]:
    """The reference of the base, or of an adapter, at 20 places."""
    places = []
    for place in range(20):
        tokens = (place, 3, 5 + place)
        base = logprobs(tokens, None)
        adapted = base if model is None else logprobs(tokens, model)
        ids = tuple(sorted(range(VOCAB), key=lambda one: -adapted[one])[:10])
        places.append(
            Expected(
                tokens=tokens,
                ids=ids,
                base=tuple(base[one] for one in ids),
                base_top=max(range(VOCAB), key=base.__getitem__),
                adapter=tuple(adapted[one] for one in ids) if model else None,
                adapter_top=ids[0] if model else None,
            )
        )
    return places
