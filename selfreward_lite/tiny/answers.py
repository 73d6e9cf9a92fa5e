"""Answers of the tiny world, good and bad, made so that their faults are known while they are written.

Knows: how an answer can be wrong. Does not know: the exact scorer (a test compares the two).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from selfreward_lite.tiny.tasks import LETTERS, Task

FILLERS = (
    "Hope this helps you today.",
    "Please ask me again if you need more help.",
    "Thanks for the nice task, this was fun to do.",
    "Let me know if this is what you wanted.",
)


@dataclass(frozen=True)
class Habits:
    """How often an author's answers have each quality, as shares in [0, 1]."""

    right: float = 0.70
    form: float = 0.50
    brief: float = 0.50


@dataclass(frozen=True)
class Answer:
    """A written answer and, in the order of the rubric, which points it earns."""

    text: str
    topic: bool
    half: bool
    right: bool
    form: bool
    brief: bool

    @property
    def points(self) -> tuple[bool, ...]:
        """The five points in rubric order."""
        return (self.topic, self.half, self.right, self.form, self.brief)


def write(task: Task, rng: random.Random, habits: Habits) -> Answer:
    """Return one answer to `task` by an author of these habits."""
    letters = list(task.solution) if rng.random() < habits.right else _wrong_letters(task, rng)
    form, brief = rng.random() < habits.form, rng.random() < habits.brief
    body = f"The answer is {' '.join(letters)}." if form else " ".join(letters)
    if not brief:
        body = f"{body} {rng.choice(FILLERS)}" if form or rng.random() < 0.5 else f"{rng.choice(FILLERS)} {body}"
    solution = list(task.solution)
    places = max(len(letters), len(solution))
    return Answer(
        text=body,
        topic=2 * sum(letter in task.letters for letter in letters) >= len(letters),
        half=2 * sum(a == b for a, b in zip(letters, solution, strict=False)) >= places,
        right=letters == solution,
        form=form,
        brief=brief,
    )


def _wrong_letters(task: Task, rng: random.Random) -> list[str]:
    """Return letters that are not the solution: nearly right, the wrong task, or off the topic."""
    while True:
        letters = rng.choice((_swapped, _changed, _copied, _foreign))(task, rng)
        if letters and letters != list(task.solution):
            return letters


def _swapped(task: Task, rng: random.Random) -> list[str]:
    letters = list(task.solution)
    i, j = rng.sample(range(len(letters)), 2)
    letters[i], letters[j] = letters[j], letters[i]
    return letters


def _changed(task: Task, rng: random.Random) -> list[str]:
    letters = list(task.solution)
    letters[rng.randrange(len(letters))] = rng.choice(LETTERS)
    return letters


def _copied(task: Task, rng: random.Random) -> list[str]:
    return list(task.letters)


def _foreign(task: Task, rng: random.Random) -> list[str]:
    others = [letter for letter in LETTERS if letter not in task.letters]
    return rng.sample(others, len(task.letters))
