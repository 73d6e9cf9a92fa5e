"""A judge's verdict: which of two texts it names, or which its closing names."""

from typing import NamedTuple

from selfreward_lite.data.records import seed_for
from selfreward_lite.engine.api import Completion
from selfreward_lite.method.closing import SIDES, draw_choice, write_choice
from selfreward_lite.method.parsing import Noun, Verdict, parse_verdict
from selfreward_lite.method.roles import Role


class VerdictText(NamedTuple):
    """The winner, None if none is named, and the judge's text with its closing, if that counts."""

    winner: Verdict | None
    text: str
    is_forced: bool


def read_verdict(
    completion: Completion, noun: Noun, judged: str, role: Role, key: str
) -> VerdictText:
    """Return what a completion says of the `judged` texts.

    A text that was cut names no winner. The draw of a forced verdict derives from `key`.
    """
    text = completion.text.strip()
    winner = None if completion.finish != "stop" else parse_verdict(text, noun, judged)
    if winner is None and completion.closing is not None:
        seed = seed_for(role.seed, f"closing {key}")
        drawn = draw_choice(completion.closing, role.sampling, seed, SIDES)
        if drawn is not None:
            forced: Verdict = "A" if drawn == "A" else "B"
            return VerdictText(forced, text + write_choice(completion.closing_text, drawn), True)
    return VerdictText(winner, text, False)
