"""The tasks of the tiny world: letters in, letters out, each with one right answer."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MIN_LETTERS, MAX_LETTERS = 3, 5
PARTS = 8  # one task in eight, by hash, is kept for evaluation, another for the ranked examples
Part = Literal["corpus", "ranked", "evaluation"]
SOLVERS: dict[str, Callable[[list[str]], list[str]]] = {
    "Reverse the letters": lambda letters: letters[::-1],
    "Sort the letters": lambda letters: sorted(letters),
    "Rotate the letters": lambda letters: letters[1:] + letters[:1],
    "Swap the ends of": lambda letters: [letters[-1], *letters[1:-1], letters[0]],
    "Leave out the first of": lambda letters: letters[1:],
}
_SHAPE = re.compile(rf"({'|'.join(SOLVERS)})((?: [a-z]){{{MIN_LETTERS},{MAX_LETTERS}}})\.")


@dataclass(frozen=True)
class Task:
    """One task: what to do with which letters."""

    verb: str
    letters: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The task as a user words it."""
        return f"{self.verb} {' '.join(self.letters)}."

    @property
    def solution(self) -> tuple[str, ...]:
        """The letters of the right answer."""
        return tuple(SOLVERS[self.verb](list(self.letters)))

    @property
    def part(self) -> Part:
        """What this task is used for; it depends only on the text, so the parts never overlap."""
        share = blake2b(self.prompt.encode(), digest_size=4).digest()[0] % PARTS
        return "evaluation" if share == 0 else "ranked" if share == 1 else "corpus"


def draw_task(rng: random.Random, part: Part) -> Task:
    """Return a random task from one of the three parts."""
    while True:
        letters = rng.sample(LETTERS, rng.randint(MIN_LETTERS, MAX_LETTERS))
        task = Task(rng.choice(list(SOLVERS)), tuple(letters))
        if task.part == part:
            return task


def parse_task(prompt: str) -> Task | None:
    """Return the task in a prompt, None if there is none."""
    shape = _SHAPE.fullmatch(prompt.strip())
    return Task(shape.group(1), tuple(shape.group(2).split())) if shape else None
