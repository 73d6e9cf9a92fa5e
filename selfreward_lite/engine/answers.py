"""What a server answers, in plain values, and what every answer must be."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from selfreward_lite.engine.api import TokenIds
from selfreward_lite.engine.http_client import ServerUnfit


class Place(NamedTuple):
    """The likeliest next token, and the log-probabilities of those asked for, in their order."""

    top: int
    logprobs: tuple[float, ...]


class Answer(NamedTuple):
    """A sample: its tokens without the end, and how many prompt tokens were computed for it.

    `watched` are log-probabilities of the tokens watched, at every place; None where the server
    must be asked for them.
    """

    tokens: list[int]
    finish: Literal["stop", "length"]
    computed: int
    watched: list[tuple[float, ...]] | None = None


def check_prompt(url: str, counted: int, sent: int) -> None:
    """Raise ServerUnfit where a server read another number of prompt tokens than it was sent."""
    if counted != sent:
        raise ServerUnfit(
            f"{url} counts {counted} prompt tokens where {sent} were sent; it adds or cuts tokens: "
            "start it as `doctor --servers RUN` says"
        )


def check_tokens(url: str, tokens: Sequence[int], vocab: int) -> None:
    """Raise ServerUnfit for a token that the base does not have."""
    if tokens and not (min(tokens) >= 0 and max(tokens) < vocab):
        raise ServerUnfit(
            f"{url} answered with token {max(tokens)}, and the base has {vocab}; it serves another "
            "model"
        )


def check_logprobs(url: str, values: Sequence[float]) -> None:
    """Raise ServerUnfit for what is no log-probability."""
    for value in values:
        if math.isnan(value) or value > 1e-3:
            raise ServerUnfit(f"{url} gave {value:g} as a log-probability; its model is broken")


def cut_at_stop(
    url: str, tokens: list[int], stop: TokenIds, most: int, *, is_stopped: bool
) -> bool:
    """Cut tokens in place before the first that ends a sample; returns whether there was one.

    Raises ServerUnfit where the server ended a sample elsewhere, or made too many tokens.
    """
    if len(tokens) > most:
        raise ServerUnfit(
            f"{url} answered with {len(tokens)} tokens where at most {most} were asked for; check "
            "its version"
        )
    place = next((place for place, token in enumerate(tokens) if token in stop), None)
    if place is not None:
        del tokens[place:]
        return True
    if is_stopped:
        end = f"token {tokens[-1]}" if tokens else "nothing"
        raise ServerUnfit(
            f"{url} ended a sample with {end}, which is not among the ends of the chat template, "
            f"{list(stop)}; serve the run's own base"
        )
    if len(tokens) < most:
        raise ServerUnfit(
            f"{url} cut a sample at {len(tokens)} of {most} tokens; its context is too small: "
            "start it as `doctor --servers RUN` says"
        )
    return False
