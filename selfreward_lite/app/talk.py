"""Talking to the models of a run: who there is, what a conversation becomes, what a judge says of a reply.

    House       the runs of a folder, and the one engine for everybody who talks to their models
    reply       a conversation → text as it is drawn
    score       a conversation and a reply → judgments as they arrive, and the score that they come to

Knows: runs' folders and settings, the judge's question. Does not know: pages. What is said here belongs to no run: nothing is
written to a store. A reply to several turns is judged as a reply to all of them: the conversation, written out, stands where the
judge reads the request. For a single turn that is the very question that judgments are made with in a run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev

from selfreward_lite.data import votes
from selfreward_lite.data.records import Judgment
from selfreward_lite.models.chat_format import Message


@dataclass(frozen=True)
class Reply:
    """A reply as far as it is drawn. `finish` is None until it ends; `seconds` run from the question to its newest piece, `first`
    to its first, as the engine drew them: however slowly they are listened to."""

    text: str
    tokens: int = 0
    finish: str | None = None
    first: float | None = None
    seconds: float = 0.0
    waits: str = ""  # for what, in words, before anything can be drawn

    @property
    def speed(self) -> float | None:
        """Tokens a second from its first piece on; None where there is nothing to divide."""
        spent = self.seconds - (self.first or 0.0)
        return (self.tokens - 1) / spent if self.tokens > 1 and spent > 0 else None


@dataclass(frozen=True)
class Score:
    """What a judge said of a reply so far: its judgments, of `wanted`."""

    wanted: int
    judgments: tuple[Judgment, ...] = field(default_factory=tuple)
    lost: int = 0  # that never came: too long for the context, or the engine died
    ended: bool = False  # before all of them were there

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.ended or len(self.judgments) + self.lost >= self.wanted

    @property
    def read(self) -> list[float]:
        """The scores that could be read."""
        return [one.score for one in self.judgments if one.score is not None]

    @property
    def mean(self) -> float | None:
        return fmean(self.read) if self.read else None

    @property
    def spread(self) -> float | None:
        """The standard deviation of the scores among themselves."""
        return pstdev(self.read) if self.read else None

    @property
    def expected(self) -> float | None:
        """The mean of the expected scores (G-Eval, arXiv 2303.16634)."""
        found = [
            one.expected_score
            for one in self.judgments
            if one.score is not None and one.expected_score is not None
        ]
        return fmean(found) if found else None


@dataclass(frozen=True)
class Verdict:
    """What a judge said of two replies: "a", "b", or "tie", which is also what a verdict is that flips with the order or could
    not be read; None where it could not be asked. With its words in both orders."""

    judge: str
    result: votes.Side | None
    judged_ab: str
    judged_ba: str


def _known(prompt: str, text: str) -> str:
    """What an answer's luck derives from, where it has no key: what it says, and to what."""
    return hashlib.blake2b(f"{prompt}\0{text}".encode(), digest_size=16).hexdigest()


def written_out(messages: Sequence[Message]) -> str:
    """Return a conversation as a judge reads it: a single turn as it is, several with who says what.

    >>> written_out([{"role": "user", "content": "Hi."}])
    'Hi.'
    >>> written_out([{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"},
    ...              {"role": "user", "content": "Bye."}])
    'User: Hi.\\n\\nAssistant: Yes?\\n\\nUser: Bye.'
    """
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(
        f"{message['role'].capitalize()}: {message['content']}" for message in messages
    )
