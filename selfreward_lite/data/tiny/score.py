"""The exact scorer of the tiny world: five yes-or-no points, computed from the letters.

Only evaluation and the builder of the ranked answers import it (a test checks this): no stage, gate
or trainer ever sees its values. The points have the form of the judge's additive rubric (arXiv
2401.10020, figure 2).
"""

import re
from dataclasses import astuple, dataclass

from selfreward_lite.data.tiny.tasks import parse_task

_SENTENCE = re.compile(r"The answer is((?: [a-z])+)\.")
_LETTER = re.compile(r"(?<![^\s])[a-z](?=[\s.,!?]|$)")
BEST = 5


@dataclass(frozen=True)
class Points:
    """The points of an answer.

    some: at least one place has the right letter. half: at least half of the places do. right: all
    do, and there are no more. form: it begins with the sentence "The answer is … .". brief: it has
    nothing but the letters, or that sentence.
    """

    some: bool
    half: bool
    right: bool
    form: bool
    brief: bool

    @property
    def score(self) -> int:
        """The exact score, 0 to BEST."""
        return sum(astuple(self))


def score_answer(prompt: str, response: str) -> Points:
    """Return the points of a response. Raises ValueError for a prompt that is not a tiny task."""
    task = parse_task(prompt)
    if task is None:
        raise ValueError(f"not a task of the tiny world: {prompt!r}")
    letters = tuple(_LETTER.findall(response))
    hits = sum(a == b for a, b in zip(letters, task.solution, strict=False))
    places = max(len(letters), len(task.solution))
    sentence = _SENTENCE.match(response)
    plain = " ".join(letters)
    return Points(
        some=hits > 0,
        half=2 * hits >= places,
        right=letters == task.solution,
        form=sentence is not None and tuple(sentence.group(1).split()) == letters,
        brief=bool(letters)
        and response.strip()
        in (plain, f"{plain}.", f"The answer is {plain}", f"The answer is {plain}."),
    )
