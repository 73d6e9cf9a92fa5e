"""What the tiny base model learned from: answers, judgments, meta-judgments, comparisons and lists of tasks, all made up.

Knows: how a so-so actor and a noisy judge would write. Does not know: tokens, weights, the exact scorer.
The judge is made worse than it could be on purpose: only part of its judgments check the points one by one, some
are a hasty "looks good" that is nearly always worth 4, and some cannot be read at all. That is what the seed stage
(EFT) finds and fixes, as it does in a real chat model (arXiv 2401.10020, section 2.3).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import zip_longest

from selfreward_lite.data.tiny.answers import (
    FILLERS,
    Answer,
    Habits,
    award_points,
    draw_wrong_letters,
    write_answer,
    write_chatter,
)
from selfreward_lite.data.tiny.tasks import LETTERS, SOLVERS, Task, draw_task
from selfreward_lite.method.templates import fill_template, make_nonce
from selfreward_lite.models.chat_format import Message, user

TEMPLATES = "compact"
RUBRIC = ("some", "half", "right", "form", "brief")
HASTY = ("Looks good to me.", "This is fine.", "Nice work.")
UNREADABLE = (
    "I would give it many points.",
    "Looks good to me, five points.",
    "This is fine, no more to say.",
)


@dataclass(frozen=True)
class JudgeHabits:
    """How the made-up judge works: shares of hasty and unreadable judgments; how often a careful one solves the task
    wrongly, or errs in a single check."""

    hasty: float = 0.35
    unreadable: float = 0.15
    solution_error: float = 0.08
    check_error: float = 0.08


@dataclass(frozen=True)
class Lesson:
    """A part of the corpus: how its author acts and judges, how many examples of each kind a step has, how many steps.

    `chatter` is the share of judged answers that are beside the task, so that a judge knows such a text when it meets one.
    """

    acting: Habits
    judging: JudgeHabits
    mix: tuple[tuple[Kind, int], ...]
    steps: int
    chatter: float


@dataclass(frozen=True)
class Example:
    """One training conversation: what the model reads, the beginning of its turn, and what it is to write."""

    messages: list[Message]
    completion: str
    continue_with: str = ""


Kind = Callable[[random.Random, "Lesson"], Example]


@dataclass(frozen=True)
class Judged:
    """A judgment's reasons and its checks, one a point of the rubric (None: it has none); its score."""

    reasons: str
    checks: tuple[bool, ...] | None
    score: int

    @property
    def text(self) -> str:
        return f"{self.reasons}\nScore: {self.score}"


def acting(rng: random.Random, lesson: Lesson) -> Example:
    """A task and an answer."""
    task = draw_task(rng, "corpus")
    return Example(user(task.prompt), write_answer(task, rng, lesson.acting).text)


def judging(rng: random.Random, lesson: Lesson) -> Example:
    """A task, a so-so answer, and a judgment of it."""
    task = draw_task(rng, "corpus")
    answer = _judged_answer(task, rng, lesson)
    text = fill_template(
        TEMPLATES, "judge", prompt=task.prompt, response=answer.text, nonce=_nonce(rng)
    )
    habits, luck = lesson.judging, rng.random()
    if luck < habits.unreadable:
        return Example(user(text), rng.choice(UNREADABLE))
    hasty = luck < habits.unreadable + habits.hasty
    return Example(user(text), (_hasty(rng) if hasty else careful(task, answer, rng, habits)).text)


def meta_judging(rng: random.Random, lesson: Lesson) -> Example:
    """A task, a so-so answer, two judgments of it, and which of them is nearer to what one finds oneself."""
    task = draw_task(rng, "corpus")
    answer = _judged_answer(task, rng, lesson)
    a = b = _hasty(rng)
    while a.text == b.text:  # equal ones are never compared
        a, b = (
            _hasty(rng) if rng.random() < 0.2 else careful(task, answer, rng, JudgeHabits())
            for _ in range(2)
        )
    text = fill_template(
        TEMPLATES,
        "meta_judge",
        prompt=task.prompt,
        response=answer.text,
        nonce=_nonce(rng),
        judgment_a=a.text,
        judgment_b=b.text,
    )
    own = careful(task, answer, rng, lesson.judging)
    rows, wrong = zip(*(_held_to(one.checks, own.checks) for one in (a, b)), strict=True)
    told = [
        f"{name} {row}\n{name} errs {count}"
        for name, row, count in zip("AB", rows, wrong, strict=True)
    ]
    return Example(
        user(text), "\n".join([own.reasons, *told, _winner(wrong[1] - wrong[0], "Judgement", rng)])
    )


def comparing(rng: random.Random, lesson: Lesson) -> Example:
    """A task, two so-so answers, and which of them is better."""
    task = draw_task(rng, "corpus")
    a, b = write_answer(task, rng, Habits()), write_answer(task, rng, Habits())
    text = fill_template(
        TEMPLATES,
        "compare",
        prompt=task.prompt,
        response_a=a.text,
        response_b=b.text,
        nonce=_nonce(rng),
    )
    own = [careful(task, answer, rng, lesson.judging) for answer in (a, b)]
    told = [
        f"{name} {one.reasons}\n{name} gets {one.score}"
        for name, one in zip("AB", own, strict=True)
    ]
    return Example(
        user(text), "\n".join([*told, _winner(own[0].score - own[1].score, "Response", rng)])
    )


def listing(rng: random.Random, _: Lesson) -> Example:
    """A list of eight tasks and a ninth."""
    tasks = [draw_task(rng, "corpus").prompt for _ in range(9)]
    shown = "\n".join(f"{number}. {task}" for number, task in enumerate(tasks[:8], 1))
    return Example(
        user(fill_template(TEMPLATES, "new_prompts", tasks=shown)),
        f" {tasks[8]}",
        continue_with="9.",
    )


# First what is right, then how the base is to behave. Learnt from so-so answers alone, the tasks themselves were still
# unsolved after 800 steps; from right ones, after 400 (LOG.md).
SCHOOL = Lesson(
    acting=Habits(right=1.0),
    judging=JudgeHabits(0.0, 0.0, 0.0, 0.0),
    mix=((acting, 96), (judging, 16)),
    steps=1000,
    chatter=0.0,
)
LIFE = Lesson(
    acting=Habits(),
    judging=JudgeHabits(),
    mix=((acting, 40), (judging, 32), (meta_judging, 24), (comparing, 8), (listing, 4)),
    steps=1500,
    chatter=0.1,
)


def vocabulary_text() -> list[str]:
    """Return every word that the world writes, so that a tokenizer can hold each as one token; chatter stays bytes."""
    rng, lesson = random.Random(0), replace(LIFE, chatter=0.0)
    texts = [f" {letter}" for letter in LETTERS] + [*SOLVERS, *FILLERS, *HASTY, *UNREADABLE]
    for kind, _ in LIFE.mix:
        for _ in range(40):
            example = kind(rng, lesson)
            texts += [*(message["content"] for message in example.messages), example.completion]
    return texts


def _judged_answer(task: Task, rng: random.Random, lesson: Lesson) -> Answer:
    return (
        write_chatter(rng) if rng.random() < lesson.chatter else write_answer(task, rng, Habits())
    )


def careful(task: Task, answer: Answer, rng: random.Random, habits: JudgeHabits) -> Judged:
    """Solve the task, hold the answer against that solution place by place, tick the points, and add up."""
    solution = task.solution
    if rng.random() < habits.solution_error:
        solution = tuple(draw_wrong_letters(task, rng))
    seen = award_points(answer, solution)
    checks = [point ^ (rng.random() < habits.check_error) for point in seen]
    lines = [
        f"{name} {'yes' if check else 'no'}" for name, check in zip(RUBRIC, checks, strict=True)
    ]
    places = zip_longest(solution, answer.letters, fillvalue="-")
    held = " ".join(
        f"{mine} {theirs} {'ok' if mine == theirs else 'no'}" for mine, theirs in places
    )
    return Judged("\n".join([f"check {held}", *lines]), tuple(checks), sum(checks))


def _hasty(rng: random.Random) -> Judged:
    return Judged(rng.choice(HASTY), None, rng.choices((2, 3, 4, 5), weights=(1, 3, 12, 4))[0])


def _held_to(checks: tuple[bool, ...] | None, own: tuple[bool, ...] | None) -> tuple[str, int]:
    """Hold each check against one's own, and count the wrong ones; a judgment without checks counts as three."""
    if checks is None or own is None:
        return "no checks", 3
    pairs = zip(RUBRIC, checks, own, strict=True)
    row = " ".join(
        f"{name} {'yes' if check else 'no'} {'ok' if check == mine else 'wrong'}"
        for name, check, mine in pairs
    )
    return row, sum(check != mine for check, mine in zip(checks, own, strict=True))


def _winner(lead: int, noun: str, rng: random.Random) -> str:
    """The last line, for A's lead over B; equal ones are decided by chance."""
    return f"Winner: {noun} {rng.choice('AB') if lead == 0 else 'AB'[lead < 0]}"


def _nonce(rng: random.Random) -> str:
    return make_nonce(str(rng.random()), TEMPLATES)
