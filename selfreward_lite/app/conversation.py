"""A conversation: its turns with replies and scores, and how they are shown and downloaded.

What the page shows is rendered from the turns each time, and never read back from the page.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfreward_lite.app.escape import escape_markdown, markdown, strip_tags
from selfreward_lite.app.talk import Score, StreamedReply
from selfreward_lite.data.records import Judgment
from selfreward_lite.models.chat_template import Message, user
from selfreward_lite.report.summary import indent_text
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import Json

FORCED = "forced: the judge wrote no score, so one was drawn from its probabilities"
ENDS = {
    "stop": "",
    "length": "cut at the maximum length",
    "refused": "does not fit the context: shorten the conversation, or lower Maximum tokens",
    "failed": "the engine crashed and was restarted: try again",
    "stopped": "stopped",
}


@dataclass(frozen=True)
class Turn:
    """What a user said, what a model replied, and how a judge scored the reply."""

    said: str
    speaker: str
    reply: StreamedReply | None = None
    judge: str = ""
    score: Score | None = None


def messages(turns: Sequence[Turn], system: str = "") -> list[Message]:
    """Return what the model reads: the system prompt, then all questions and replies."""
    found = [Message(role="system", content=system)] if system.strip() else []
    for turn in turns:
        found += user(turn.said)
        if turn.reply is not None and turn.reply.text:
            found.append(Message(role="assistant", content=turn.reply.text))
    return found


def render(turns: Sequence[Turn]) -> list[Json]:
    """Return the turns as messages of a chatbot; under each reply its score, which unfolds."""
    found: list[Json] = []
    for turn in turns:
        found.append({"role": "user", "content": strip_tags(turn.said)})
        if turn.reply is not None:
            found.append({"role": "assistant", "content": markdown(turn.reply.text) or "…"})
            found.append(_render_score(turn, turn.reply))
    return found


def find_turn(turns: Sequence[Turn], index: int) -> int:
    """Return the number of the turn that message `index` of `render` belongs to.

    Raises UserError where there is no message.
    """
    numbers = [number for number, turn in enumerate(turns) for _ in render([turn])]
    if not numbers or index < 0:
        raise UserError("that message is not there any more; write it again")
    return numbers[min(index, len(numbers) - 1)]


def mark_stopped(turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns with an unfinished reply or score of the last one marked as stopped."""
    if not turns:
        return []
    *earlier, last = turns
    reply, score = last.reply, last.score
    if reply is not None and reply.finish is None:
        reply = replace(reply, finish="stopped")
    if score is not None and not score.is_complete:
        score = replace(score, stopped=True)
    return [*earlier, replace(last, reply=reply, score=score)]


def as_jsonl(turns: Sequence[Turn]) -> str:
    """Return the conversation as JSON lines, one per turn."""
    rows = [
        {
            "user": turn.said,
            "model": turn.speaker,
            "assistant": turn.reply and turn.reply.text,
            "finish": turn.reply and turn.reply.finish,
            "tokens": turn.reply and turn.reply.tokens,
            "judge": turn.judge,
            "score": turn.score and turn.score.mean,
            "judgments": [one.text for one in turn.score.judgments] if turn.score else [],
            "forced": turn.score and turn.score.forced,
        }
        for turn in turns
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_markdown(turns: Sequence[Turn]) -> str:
    """Return the conversation as Markdown, all texts in indented blocks without markup."""
    parts = []
    for turn in turns:
        parts += ["**You**", indent_text(turn.said)]
        if turn.reply is not None:
            parts += [f"**{turn.speaker}**", indent_text(turn.reply.text), f"*{headline(turn)}*"]
    return "\n\n".join(parts) + "\n"


def headline(turn: Turn) -> str:
    """Return the score of a turn's reply in one line."""
    score, speaker = turn.score, turn.speaker
    if turn.reply is not None and turn.reply.waits_for:
        return f"{speaker} is waiting: {turn.reply.waits_for}"
    if score is None or (score.stopped and not score.judgments):
        return f"{speaker} · not judged"
    if score.is_complete and score.mean is None:
        return (
            f"{speaker}: no score, since none of {score.wanted} judgments by {turn.judge} "
            "could be read"
        )
    is_own = turn.judge == speaker
    who = f"{speaker} scores itself" if is_own else f"{speaker}, scored by {turn.judge}:"
    if not score.is_complete:
        return f"{who} … {len(score.judgments) + score.lost} of {score.wanted} judgments"
    expected = "" if score.expected is None else f", expected {score.expected:.1f}"
    read = f"{len(score.read)} of {score.wanted} judgments"
    if score.forced:
        read += f", {score.forced} forced"
    return f"{who} {score.mean:.1f} of 5 (± {score.spread:.1f}{expected}; {read})"


def numbers(reply: StreamedReply) -> str:
    """Return a reply's tokens, its speed, and why it ended if it was not by itself."""
    speed = "" if reply.speed is None else f"{reply.speed:,.0f} tokens/s"
    end = ENDS[reply.finish] if reply.finish else ""
    return " · ".join(filter(None, [f"{reply.tokens} tokens", speed, end]))


def _format_score(judgment: Judgment) -> str:
    if judgment.score is None:
        return "not readable"
    forced = f" ({FORCED})" if judgment.source == "forced" else ""
    return f"{judgment.score:g} of 5{forced}"


def _render_score(turn: Turn, reply: StreamedReply) -> Json:
    """The foldable message under a reply: its score, its numbers, and all judgments."""
    judged = turn.score.judgments if turn.score else ()
    texts = [f"**{_format_score(one)}**\n\n{strip_tags(one.text)}" for one in judged]
    pending = reply.finish is None or (turn.score is not None and not turn.score.is_complete)
    return {
        "role": "assistant",
        "content": "\n\n---\n\n".join(texts) or "No judgments yet.",
        "metadata": {
            "title": escape_markdown(headline(turn)),
            "log": numbers(reply),
            "status": "pending" if pending else "done",
        },
    }
