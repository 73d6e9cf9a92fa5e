"""The made-up texts of the tiny base: answers, judgments, meta-judgments, comparisons, lists.

The author of the answers is mediocre, and the judge is worse than it could be, on purpose: only
some of its judgments check the points one by one, some are a hasty "looks good" that is nearly
always worth 4, and some cannot be read. The seed stage (EFT) finds and corrects that, as in a real
chat model (arXiv 2401.10020, section 2.3).
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
from selfreward_lite.method.templates import Name, fill_template, make_nonce
from selfreward_lite.models.chat_template import Message, user

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
    """Shares of hasty and unreadable judgments, and the error rates of careful ones."""

    hasty: float = 0.35
    unreadable: float = 0.15
    solution_error: float = 0.08
    check_error: float = 0.08


@dataclass(frozen=True)
class Lesson:
    """A part of the corpus: how its author acts and judges, its examples, its steps.

    `mix` has the examples of each kind in a step. `chatter` is the share of judged answers that are
    not about the task, so that a judge has seen such texts.
    """

    acting: Habits
    judging: JudgeHabits
    mix: tuple[tuple[Kind, int], ...]
    steps: int
    chatter: float


@dataclass(frozen=True)
class Example:
    """One conversation: messages, the beginning of the model's turn, and its completion."""

    messages: list[Message]
    completion: str
    continue_with: str = ""


Kind = Callable[[random.Random, "Lesson"], Example]


@dataclass(frozen=True)
class WrittenJudgment:
    """A judgment: reasons, a check for each point of the rubric (or none), and the score."""

    reasons: str
    checks: tuple[bool, ...]
    score: int

    @property
    def text(self) -> str:
        return f"{self.reasons}\nScore: {self.score}"


def make_answer(rng: random.Random, lesson: Lesson) -> Example:
    """Make an example of a task and an answer."""
    task = draw_task(rng, "corpus")
    return Example(user(task.prompt), write_answer(task, rng, lesson.acting).text)


def make_judgment(rng: random.Random, lesson: Lesson) -> Example:
    """Make an example of a judgment of a mediocre answer."""
    task = draw_task(rng, "corpus")
    answer = _judged_answer(task, rng, lesson)
    messages = _question("judge", rng, prompt=task.prompt, response=answer.text)
    habits, luck = lesson.judging, rng.random()
    if luck < habits.unreadable:
        return Example(messages, rng.choice(UNREADABLE))
    if luck < habits.unreadable + habits.hasty:
        return Example(messages, _judge_hastily(rng).text)
    return Example(messages, judge_carefully(task, answer, rng, habits).text)


def make_meta_judgment(rng: random.Random, lesson: Lesson) -> Example:
    """Make an example of which of two judgments is nearer to one's own."""
    task = draw_task(rng, "corpus")
    answer = _judged_answer(task, rng, lesson)
    a = b = _judge_hastily(rng)
    while a.text == b.text:  # equal ones are never compared
        a, b = (
            _judge_hastily(rng)
            if rng.random() < 0.2
            else judge_carefully(task, answer, rng, JudgeHabits())
            for _ in range(2)
        )
    texts = {"prompt": task.prompt, "response": answer.text}
    messages = _question("meta_judge", rng, judgment_a=a.text, judgment_b=b.text, **texts)
    own = judge_carefully(task, answer, rng, lesson.judging)
    rows, wrong = zip(*(_compare_checks(one.checks, own.checks) for one in (a, b)), strict=True)
    lines = [
        f"{name} {row}\n{name} errs {count}"
        for name, row, count in zip("AB", rows, wrong, strict=True)
    ]
    winner = _winner_line(wrong[1] - wrong[0], "Judgement", rng)
    return Example(messages, "\n".join([own.reasons, *lines, winner]))


def make_comparison(rng: random.Random, lesson: Lesson) -> Example:
    """Make an example of which of two mediocre answers is better."""
    task = draw_task(rng, "corpus")
    a, b = write_answer(task, rng, Habits()), write_answer(task, rng, Habits())
    messages = _question("compare", rng, prompt=task.prompt, response_a=a.text, response_b=b.text)
    own = [judge_carefully(task, answer, rng, lesson.judging) for answer in (a, b)]
    lines = [
        f"{name} {one.reasons}\n{name} gets {one.score}"
        for name, one in zip("AB", own, strict=True)
    ]
    winner = _winner_line(own[0].score - own[1].score, "Response", rng)
    return Example(messages, "\n".join([*lines, winner]))


def _question(template: Name, rng: random.Random, **values: str) -> list[Message]:
    nonce = make_nonce(str(rng.random()), TEMPLATES)
    return user(fill_template(TEMPLATES, template, nonce=nonce, **values))


def make_task_list(rng: random.Random, _: Lesson) -> Example:
    """Make an example of eight tasks and a ninth."""
    tasks = [draw_task(rng, "corpus").prompt for _ in range(9)]
    shown = "\n".join(f"{number}. {task}" for number, task in enumerate(tasks[:8], 1))
    return Example(
        user(fill_template(TEMPLATES, "new_prompts", tasks=shown)),
        f" {tasks[8]}",
        continue_with="9.",
    )


# First correct answers, then how the base should behave. From mediocre answers alone, tasks were
# still unsolved after 800 steps; from correct ones, they were solved after 400
# (docs/log/judging.md).
CORRECT_LESSON = Lesson(
    acting=Habits(right=1.0),
    judging=JudgeHabits(0.0, 0.0, 0.0, 0.0),
    mix=((make_answer, 96), (make_judgment, 16)),
    steps=1000,
    chatter=0.0,
)
REALISTIC_LESSON = Lesson(
    acting=Habits(),
    judging=JudgeHabits(),
    mix=(
        (make_answer, 40),
        (make_judgment, 32),
        (make_meta_judgment, 24),
        (make_comparison, 8),
        (make_task_list, 4),
    ),
    steps=1500,
    chatter=0.1,
)


def list_vocabulary() -> list[str]:
    """Texts with every word that is to become one token; chatter stays bytes."""
    rng, lesson = random.Random(0), replace(REALISTIC_LESSON, chatter=0.0)
    texts = [f" {letter}" for letter in LETTERS] + [*SOLVERS, *FILLERS, *HASTY, *UNREADABLE]
    for kind, _ in REALISTIC_LESSON.mix:
        for _ in range(40):
            example = kind(rng, lesson)
            texts += [*(message["content"] for message in example.messages), example.completion]
    return texts


def _judged_answer(task: Task, rng: random.Random, lesson: Lesson) -> Answer:
    return (
        write_chatter(rng) if rng.random() < lesson.chatter else write_answer(task, rng, Habits())
    )


def judge_carefully(
    task: Task, answer: Answer, rng: random.Random, habits: JudgeHabits
) -> WrittenJudgment:
    """Solve the task, compare the answer with the solution, check the points, add up."""
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
    return WrittenJudgment("\n".join([f"check {held}", *lines]), tuple(checks), sum(checks))


def _judge_hastily(rng: random.Random) -> WrittenJudgment:
    return WrittenJudgment(
        rng.choice(HASTY), (), rng.choices((2, 3, 4, 5), weights=(1, 3, 12, 4))[0]
    )


def _compare_checks(checks: tuple[bool, ...], own: tuple[bool, ...]) -> tuple[str, int]:
    """Compare each check with one's own, and count the wrong ones; without checks, three."""
    if not checks:
        return "no checks", 3
    parts = [
        f"{name} {'yes' if check else 'no'} {'ok' if check == mine else 'wrong'}"
        for name, check, mine in zip(RUBRIC, checks, own, strict=True)
    ]
    return " ".join(parts), sum(part.endswith("wrong") for part in parts)


def _winner_line(lead: int, noun: str, rng: random.Random) -> str:
    """The last line, for A's lead over B; a tie is decided by chance."""
    return f"Winner: {noun} {rng.choice('AB') if lead == 0 else 'AB'[lead < 0]}"
