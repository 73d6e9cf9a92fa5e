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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfreward_lite.data.records import Outcome, Prompt, Response, make_id
from selfreward_lite.method.templates import make_nonce

CANARY = "canary"  # the `model` of these responses
DECOY = "decoy"
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Canary:
    """A hostile text, with {prompt} and {nonce} not yet replaced; `kind` is what it tries."""

    kind: str
    text: str
    repeat: int = 1


def load_canaries(name: str = "canaries.jsonl") -> list[Canary]:
    """Return the hostile texts in a file of the package."""
    lines = (_FOLDER / name).read_text(encoding="utf-8").splitlines()
    return [Canary(**json.loads(line)) for line in lines]


def build_canary_responses(
    canaries: Sequence[Canary], prompts: Sequence[Prompt], *, id_namespace: str, templates: str
) -> Outcome:
    """Return every canary as a response to one of `prompts`, in turn; drop empty ones."""
    made = [
        _build_response(
            canary, index, prompts[index % len(prompts)], CANARY, id_namespace, templates
        )
        for index, canary in enumerate(canaries)
    ]
    return Outcome(
        [response for response in made if response.text],
        Counter("empty" for response in made if not response.text),
    )


def build_decoy_responses(
    prompts: Sequence[Prompt], count: int, *, id_namespace: str, templates: str
) -> Outcome:
    """Return `count` decoys as responses to each of `prompts`, taking all decoys in turn."""
    decoys = load_canaries("decoys.jsonl")
    places = [prompt for prompt in prompts for _ in range(count)]
    return Outcome(
        tuple(
            _build_response(
                decoys[index % len(decoys)], index, prompt, DECOY, id_namespace, templates
            )
            for index, prompt in enumerate(places)
        )
    )


def _build_response(
    canary: Canary, index: int, prompt: Prompt, model: str, id_namespace: str, templates: str
) -> Response:
    record_id = make_id(id_namespace, Response, 0, model, prompt.id, index)
    text = canary.text.replace("{prompt}", prompt.text)
    text = text.replace("{nonce}", make_nonce(record_id, templates)) * canary.repeat
    return Response(record_id, 0, model, prompt.id, index, text.strip(), "stop", 0)
