"""What a model answers where it was trained, and whether a server answers the same.

At some places in a few conversations, `reference.json` keeps the likeliest tokens with the
log-probabilities that PEFT gives them, with and without the adapter. A server is asked for the
same before it gets work.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from selfreward_lite.config.settings import Gates
from selfreward_lite.engine.answers import Place
from selfreward_lite.engine.api import TokenIds
from selfreward_lite.system.errors import EngineError
from selfreward_lite.system.files import atomic_write

REFERENCE = "reference.json"
# As the gates of an exported model; a server differs from training for the same reasons.
MIN_AGREEMENT: float = Gates().min_agreement
MAX_SHARE_ERROR: float = Gates().max_share_error
NO_CHANGE = 1e-6  # of a log-probability: the adapter does nothing


class Expected(BaseModel):
    """The next token behind `tokens`: log-probabilities of `ids`, and the likeliest (`top`).

    Those of the adapter are None in the reference of a base.
    """

    tokens: TokenIds
    ids: TokenIds
    base: tuple[float, ...]
    base_top: int
    adapter: tuple[float, ...] | None = None
    adapter_top: int | None = None


class Reference(BaseModel):
    places: list[Expected]


@dataclass(frozen=True)
class Comparison:
    """How a server's answers compare with a reference.

    `agreement` is the share of places with the same likeliest token. Of the adapter, `change` is
    the largest that it makes on the server, `share` how much of PEFT's arrives there; None where
    the base alone is off by more.
    """

    places: int
    agreement: float
    is_finite: bool
    change: float | None = None
    share: float | None = None


def load(file: Path) -> Reference:
    """Read a reference; raises EngineError where there is none."""
    try:
        return Reference.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise EngineError(
            f"{file} is missing, so no server can be checked; `run` with engine.kind=server "
            "writes it"
        ) from None
    except ValidationError:
        raise EngineError(
            f"{file} is damaged; remove it, and give the same command again"
        ) from None


def save(reference: Reference, file: Path) -> None:
    """Write a reference, completely or not at all."""
    with atomic_write(file) as part:
        part.write_text(json.dumps(reference.model_dump(mode="json")), encoding="utf-8")


def compare(
    places: Sequence[Expected], base: Sequence[Place], adapter: Sequence[Place] | None = None
) -> Comparison:
    """Compare what a server answers at these places, by its base and by an adapter on it.

    The share of an adapter that arrives is the slope of the server's change on PEFT's, by least
    squares through 0, as in `models/parity.py`.
    """
    asked = base if adapter is None else adapter
    tops = [one.base_top if adapter is None else one.adapter_top for one in places]
    agreement = sum(one.top == top for one, top in zip(asked, tops, strict=True)) / len(places)
    values = [value for place in (*base, *(adapter or ())) for value in place.logprobs]
    is_finite = all(map(math.isfinite, values))
    if adapter is None or not is_finite:
        return Comparison(len(places), agreement, is_finite)
    change = product = square = largest = error = 0.0
    for expected, plain, adapted in zip(places, base, adapter, strict=True):
        for ours, ours_plain, theirs, theirs_plain in zip(
            expected.adapter or (), expected.base, adapted.logprobs, plain.logprobs, strict=True
        ):
            made, arrived = ours - ours_plain, theirs - theirs_plain
            change, largest = max(change, abs(arrived)), max(largest, abs(made))
            error = max(error, abs(ours_plain - theirs_plain))
            product += made * arrived
            square += made * made
    share = product / square if largest > error else None
    return Comparison(len(places), agreement, is_finite, change, share)


def find_fault(found: Comparison) -> str | None:
    """What is wrong with a server that answers so, and what to do; None if nothing is."""
    if not found.is_finite:
        return "gives log-probabilities that are not finite: its model is broken, start it again"
    if found.change is not None and not found.change > NO_CHANGE:
        return (
            "answers with the adapter as without it, so it ignores the adapter; look at its log, "
            "and update it"
        )
    if found.share is not None and not abs(found.share - 1) <= MAX_SHARE_ERROR:
        return (
            f"shows {found.share:.0%} of the adapter's effect in training, not 100 ± "
            f"{100 * MAX_SHARE_ERROR:.0f} %: it has another adapter or base; start it again"
        )
    if not found.agreement >= MIN_AGREEMENT:
        what = "base" if found.change is None else "adapter"
        return (
            f"has the same likeliest token as the {what} in training at {found.agreement:.0%} of "
            f"{found.places} places, not {MIN_AGREEMENT:.0%}: it serves another model; start it as "
            "`doctor --servers RUN` says"
        )
    return None
