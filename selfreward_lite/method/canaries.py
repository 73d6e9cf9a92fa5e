"""Responses that are no answers, kept as data: what a judge must not fall for, and what it learns that from.

    canaries    fifty hostile responses that every model is made to judge, and that none is trained on
    decoys      forty others, which the judge meets in the seed stage

Knows: the two files, what may stand in a text of theirs. Does not know: judges, scores, gates. In self-rewarding the attacker is
the optimiser: a response that happens to hold "Score: 5", or to praise itself, would be reinforced by a judge that falls for
it. A line holds a `kind` and a `text`, to be `repeat`ed; in it, {prompt} stands for the prompt that it answers and {nonce} for
the very nonce of its wrapper, which no real response can know. No decoy's text is a canary's: what is measured is whether the
judge sees through texts that it has never met.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfreward_lite.data.records import Drop, Outcome, Prompt, Response, make_id
from selfreward_lite.method.templates import make_nonce

CANARY = "canary"  # who wrote these responses
DECOY = "decoy"  # who wrote those
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Canary:
    """A hostile text: what it tries, and its text with its places unfilled."""

    kind: str
    text: str
    repeat: int = 1


def load_canaries() -> list[Canary]:
    """Return the canaries that ship with the package."""
    return _read("canaries.jsonl")


def build_canary_responses(
    canaries: Sequence[Canary], prompts: Sequence[Prompt], *, id_namespace: str, templates: str
) -> Outcome:
    """Return every canary as a response to one of `prompts`, in turn; an empty one is dropped, as any empty response is."""
    kept, drops = [], []
    for index, canary in enumerate(canaries):
        made = _response(
            canary, index, prompts[index % len(prompts)], CANARY, id_namespace, templates
        )
        if made.text:
            kept.append(made)
        else:
            drops.append(Drop("empty"))
    return Outcome(tuple(kept), tuple(drops))


def build_decoy_responses(
    prompts: Sequence[Prompt], count: int, *, id_namespace: str, templates: str
) -> Outcome:
    """Return `count` decoys as responses to every one of `prompts`, all of them in turn."""
    ours = _read("decoys.jsonl")
    seed_keys = [prompt for prompt in prompts for _ in range(count)]
    return Outcome(
        tuple(
            _response(ours[index % len(ours)], index, prompt, DECOY, id_namespace, templates)
            for index, prompt in enumerate(seed_keys)
        )
    )


def _read(name: str) -> list[Canary]:
    return [
        Canary(**json.loads(line))
        for line in (_FOLDER / name).read_text(encoding="utf-8").splitlines()
    ]


def _response(
    canary: Canary, index: int, prompt: Prompt, author: str, id_namespace: str, templates: str
) -> Response:
    record_id = make_id(id_namespace, Response, 0, author, prompt.id, index)
    text = (
        canary.text.replace("{prompt}", prompt.text).replace(
            "{nonce}", make_nonce(record_id, templates)
        )
        * canary.repeat
    )
    return Response(record_id, 0, author, prompt.id, index, text.strip(), "stop", 0)
