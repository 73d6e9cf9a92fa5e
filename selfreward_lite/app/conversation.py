"""A conversation as the page keeps it: turns with their replies and scores, and how they are shown.

Knows: what a turn is, what is said under a reply. Does not know: gradio, engines. What a page shows is made from the turns anew
each time, so that no text that was shown is ever taken for what was said.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfreward_lite.app.escape import escape_markdown, markdown, strip_tags
from selfreward_lite.app.talk import Reply, Score
from selfreward_lite.models.chat_format import Message
from selfreward_lite.report.summary import indent_text

ENDS = {
    "stop": "",
    "length": "cut at the length limit",
    "refused": "does not fit the context: shorten the conversation",
    "failed": "the engine died on it, and was started again: try again",
    "stopped": "stopped",
}


@dataclass(frozen=True)
class Turn:
    """What a user said, what a model replied, and what a judge said of that."""

    said: str
    speaker: str
    reply: Reply | None = None
    judge: str = ""
    score: Score | None = None


def messages(turns: Sequence[Turn], system: str = "") -> list[Message]:
    """Return what the model reads: every turn that was answered, and the last one's question."""
    found: list[Message] = [Message(role="system", content=system)] if system.strip() else []
    for turn in turns[:-1]:
        found.append(Message(role="user", content=turn.said))
        if turn.reply is not None and turn.reply.text:
            found.append(Message(role="assistant", content=turn.reply.text))
    return [*found, *(Message(role="user", content=turn.said) for turn in turns[-1:])]


def shown(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Return the turns as a chatbot shows them: what was said, the reply, and its score to unfold."""
    found: list[dict[str, Any]] = []
    for turn in turns:
        found.append({"role": "user", "content": strip_tags(turn.said)})
        if turn.reply is not None:
            found.append({"role": "assistant", "content": markdown(turn.reply.text) or "…"})
            found.append(_under(turn, turn.reply))
    return found


def turn_of(turns: Sequence[Turn], place: int) -> int:
    """Return which turn the message at a place of `shown` belongs to."""
    for number in range(len(turns)):
        if len(shown(turns[: number + 1])) > place:
            return number
    return len(turns) - 1


def stopped(turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns with whatever was under way in the last one, its reply or its judging, ended as it is."""
    if not turns or turns[-1].reply is None:
        return list(turns)
    last = turns[-1]
    if last.reply is not None and last.reply.finish is None:
        last = replace(last, reply=replace(last.reply, finish="stopped"))
    if last.score is not None and not last.score.over:
        last = replace(last, score=replace(last.score, ended=True))
    return [*turns[:-1], last]


def as_jsonl(turns: Sequence[Turn]) -> str:
    """Return the conversation as JSON lines, a turn each, with everything that is known of it."""
    return "".join(
        json.dumps(
            {
                "user": turn.said,
                "model": turn.speaker,
                "assistant": turn.reply.text if turn.reply else None,
                "finish": turn.reply.finish if turn.reply else None,
                "tokens": turn.reply.tokens if turn.reply else None,
                "judge": turn.judge,
                "score": turn.score.mean if turn.score else None,
                "judgments": [one.text for one in turn.score.judgments] if turn.score else [],
            },
            ensure_ascii=False,
        )
        + "\n"
        for turn in turns
    )


def as_markdown(turns: Sequence[Turn]) -> str:
    """Return the conversation as a page of Markdown. Texts stand in indented blocks, where nothing in them is markup."""
    parts = []
    for turn in turns:
        parts += ["**You**", indent_text(turn.said)]
        if turn.reply is not None:
            parts += [f"**{turn.speaker}**", indent_text(turn.reply.text), f"*{headline(turn)}*"]
    return "\n\n".join(parts) + "\n"


def headline(turn: Turn) -> str:
    """Return the score of a turn's reply in a line."""
    score = turn.score
    if turn.reply is not None and turn.reply.waits:
        return f"{turn.speaker} waits: {turn.reply.waits}"
    if score is None or (score.ended and not score.judgments):
        return f"{turn.speaker} · not judged"
    who = (
        f"{turn.speaker} scores itself"
        if turn.judge == turn.speaker
        else f"{turn.speaker}, scored by {turn.judge}:"
    )
    if not score.over:
        return f"{who} … {len(score.judgments) + score.lost} of {score.wanted} judgments"
    if score.mean is None:
        return f"{turn.speaker}: no score, since none of {score.wanted} judgments by {turn.judge} could be read"
    expected = "" if score.expected is None else f", expected {score.expected:.1f}"
    return f"{who} {score.mean:.1f} of 5 (± {score.spread:.1f}{expected}; {len(score.read)} of {score.wanted} judgments)"


def numbers(reply: Reply) -> str:
    """Return how a reply was drawn: tokens, tokens a second, and why it ended if it did not end by itself."""
    found = [f"{reply.tokens} tokens"]
    if reply.speed is not None:
        found.append(f"{reply.speed:,.0f} a second")
    if reply.finish is not None and ENDS[reply.finish]:
        found.append(ENDS[reply.finish])
    return " · ".join(found)


def _under(turn: Turn, reply: Reply) -> dict[str, Any]:
    """What unfolds under a reply: how it was drawn, and its judgments in full."""
    judged = turn.score.judgments if turn.score else ()
    texts = [
        f"**{'not read' if one.score is None else f'{one.score:g} of 5'}**\n\n{strip_tags(one.text)}"
        for one in judged
    ]
    pending = reply.finish is None or (turn.score is not None and not turn.score.over)
    return {
        "role": "assistant",
        "content": "\n\n---\n\n".join(texts) or "No judgments yet.",
        "metadata": {
            "title": escape_markdown(headline(turn)),
            "log": numbers(reply),
            "status": "pending" if pending else "done",
        },
    }
