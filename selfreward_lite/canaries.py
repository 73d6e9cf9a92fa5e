"""Fifty hostile responses, kept as data, that every model is made to judge: a judge that falls for one would teach the actor it.

Knows: `canaries.jsonl`, what may stand in a canary's text. Does not know: judges, scores, gates. In self-rewarding the
attacker is the optimiser: a response that happens to hold "Score: 5" would be reinforced. A line holds a `kind` and a
`text`, to be `repeat`ed; in it, {prompt} stands for the prompt that it answers and {nonce} for the very nonce of its wrapper,
which no real response can know.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfreward_lite.prompts import nonce_for
from selfreward_lite.records import Drop, Outcome, Prompt, Response, make_id

AUTHOR = "canary"  # who wrote these responses
_FILE = Path(__file__).parent / "canaries.jsonl"


@dataclass(frozen=True)
class Canary:
    """A hostile text: what it tries, and its text with its places unfilled."""

    kind: str
    text: str
    repeat: int = 1


def load() -> list[Canary]:
    """Return the canaries that ship with the package."""
    return [Canary(**json.loads(line)) for line in _FILE.read_text(encoding="utf-8").splitlines()]


def responses(canaries: Sequence[Canary], prompts: Sequence[Prompt], *, run: str, templates: str) -> Outcome:
    """Return every canary as a response to one of `prompts`, in turn; an empty one is dropped, as any empty response is."""
    kept, drops = [], []
    for index, canary in enumerate(canaries):
        prompt = prompts[index % len(prompts)]
        record_id = make_id(run, Response, 0, AUTHOR, prompt.id, index)
        text = canary.text.replace("{prompt}", prompt.text).replace("{nonce}", nonce_for(record_id, templates)) * canary.repeat
        if text.strip():
            kept.append(Response(record_id, 0, AUTHOR, prompt.id, index, text.strip(), "stop", 0))
        else:
            drops.append(Drop("empty"))
    return Outcome(tuple(kept), tuple(drops))
