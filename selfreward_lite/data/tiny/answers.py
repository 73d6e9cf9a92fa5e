"""Answers of the tiny world, good and bad; their faults are known as they are written.

The points are computed without the exact scorer; a test compares the two.
"""

import random
from dataclasses import dataclass

from selfreward_lite.data.tiny.tasks import LETTERS, Task

FILLERS = (
    "Hope this helps you today.",
    "Please ask me again if you need more help.",
    "Thanks for the nice task, this was fun to do.",
    "Let me know if this is what you wanted.",
)

# Separators in an answer that answers nothing; a space is drawn as often as five of the others.
SIGNS = (
    *(" ",) * 5,
    *(", ", ". ", "! ", "? ", ": ", "\n", " - ", "/", "=", "** ", '" ', "> ", " <", " é", " 好 "),
)


@dataclass(frozen=True)
class Habits:
    """How often an author's answers have each quality, as shares in [0, 1].

    A model trained on answers with the defaults, and sampled at temperature 0.8 and top-p 0.95,
    which favor frequent tokens, is right in about 70 % of its answers.
    """

    right: float = 0.55
    form: float = 0.45
    brief: float = 0.40


@dataclass(frozen=True)
class Answer:
    """A written answer: its text, its letters, whether it has the form and is brief."""

    text: str
    letters: tuple[str, ...]
    form: bool
    brief: bool


def write_answer(task: Task, rng: random.Random, habits: Habits) -> Answer:
    """Return one answer to `task` by an author with these habits."""
    letters = task.solution if rng.random() < habits.right else tuple(draw_wrong_letters(task, rng))
    form, brief = rng.random() < habits.form, rng.random() < habits.brief
    body = f"The answer is {' '.join(letters)}." if form else " ".join(letters)
    if not brief:
        body = (
            f"{body} {rng.choice(FILLERS)}"
            if form or rng.random() < 0.5
            else f"{rng.choice(FILLERS)} {body}"
        )
    return Answer(body, letters, form, brief)


def write_chatter(rng: random.Random) -> Answer:
    """Return an answer of made-up words, numbers and signs, which earns no point.

    It has no single letter, which the scorer would read as an answer.
    """
    words = []
    for _ in range(rng.randint(1, 7)):
        word = (
            "".join(rng.choices(LETTERS, k=rng.randint(2, 7)))
            if rng.random() < 0.85
            else str(rng.randint(0, 999))
        )
        words.append(rng.choice((word, word, word.capitalize(), word.upper())) + rng.choice(SIGNS))
    return Answer("".join(words).strip(), (), False, False)


def award_points(answer: Answer, solution: tuple[str, ...]) -> tuple[bool, ...]:
    """Return the five points of `answer` if `solution` were the right letters."""
    hits = sum(a == b for a, b in zip(answer.letters, solution, strict=False))
    places = max(len(answer.letters), len(solution))
    return (hits > 0, 2 * hits >= places, hits == places, answer.form, answer.brief)


def draw_wrong_letters(task: Task, rng: random.Random) -> list[str]:
    """Return wrong letters: nearly right, for another task, or not from the task at all."""
    while True:
        letters = list(task.solution)
        fault = rng.choice(("two swapped", "one changed", "task copied", "foreign"))
        if fault == "two swapped":
            i, j = rng.sample(range(len(letters)), 2)
            letters[i], letters[j] = letters[j], letters[i]
        elif fault == "one changed":
            letters[rng.randrange(len(letters))] = rng.choice(LETTERS)
        elif fault == "task copied":
            letters = list(task.letters)
        else:
            others = [letter for letter in LETTERS if letter not in task.letters]
            letters = rng.sample(others, len(task.letters))
        if letters != list(task.solution):
            return letters
