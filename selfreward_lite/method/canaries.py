"""Hostile responses: canaries measure whether a judge can be fooled, decoys teach it not to be.

    canaries.jsonl   fifty that every model judges, and that none is trained on
    decoys.jsonl     forty others that the judge meets in the seed stage

In self-rewarding, training itself is the attacker: if the judge falls for a response that happens
to hold "Score: 5" or to praise itself, such responses are reinforced. A line has a `kind` and a
`text` to be `repeat`ed; in the text, {prompt} is replaced by the prompt and {nonce} by the nonce of
its wrapper, which no real response can know. No decoy has the text of a canary, so canaries measure
whether the judge sees through texts it has never met.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from selfreward_lite.data.records import Outcome, Prompt, Response, make_id
from selfreward_lite.method.templates import make_nonce

CANARY = "canary"  # the `model` of these responses
DECOY = "decoy"
_FOLDER = Path(__file__).parent
_FILES = {CANARY: "canaries.jsonl", DECOY: "decoys.jsonl"}


@dataclass(frozen=True)
class HostileText:
    """A text with {prompt} and {nonce} not yet replaced; `kind` is what it tries."""

    kind: str
    text: str
    repeat: int = 1


def load_hostile_texts(model: str) -> list[HostileText]:
    """Return the texts of all canaries, or of all decoys."""
    lines = (_FOLDER / _FILES[model]).read_text(encoding="utf-8").splitlines()
    return [HostileText(**json.loads(line)) for line in lines]


def build_hostile_responses(
    model: str, pairs: Iterable[tuple[HostileText, Prompt]], *, id_namespace: str, templates: str
) -> Outcome:
    """Return canaries or decoys (`model`) as responses, each to a prompt; drop empty ones."""
    made = []
    for index, (hostile, prompt) in enumerate(pairs):
        record_id = make_id(id_namespace, Response, 0, model, prompt.id, index)
        text = hostile.text.replace("{prompt}", prompt.text)
        text = text.replace("{nonce}", make_nonce(record_id, templates)) * hostile.repeat
        made.append(Response(record_id, 0, model, prompt.id, index, text.strip(), "stop", 0))
    return Outcome(
        [response for response in made if response.text],
        Counter("empty" for response in made if not response.text),
    )
