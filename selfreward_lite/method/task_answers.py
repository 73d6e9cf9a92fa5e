"""Answers to the prompts of task sets, from a model as actor, each scored as it comes."""

from collections import Counter
from collections.abc import Sequence

from selfreward_lite.data.records import Outcome, TaskAnswer, seed_for
from selfreward_lite.data.task_sets import Task
from selfreward_lite.method.roles import NO_TEXT_REASONS, AskGenerator, Role
from selfreward_lite.method.task_scores import find_left_out, score_answer

# Asked after a problem of GSM8K: its score is the last number of the answer.
LAST_NUMBER = "Reason step by step. End with the answer as one number, without its unit."


def pick_tasks(tasks: Sequence[Task], limit: int | None) -> tuple[list[Task], Counter[str]]:
    """Return the tasks to ask, and how many cannot be scored, by their first such instruction.

    They are in an order that is always the same and has nothing to do with that of the file, so
    that a `limit` keeps a fair sample, and a higher one the same tasks and more.
    """
    reasons = [(task, find_left_out(task)) for task in tasks]
    asked = [task for task, reason in reasons if reason is None]
    asked.sort(key=lambda task: seed_for(0, f"{task.set} {task.key}"))
    return asked[:limit], Counter(reason for _, reason in reasons if reason is not None)


def count_samples(temperature: float, wanted: int) -> int:
    """Return how many answers to a prompt are worth asking for: one where the likeliest is taken.

    >>> count_samples(0.7, 4), count_samples(0.0, 4)
    (4, 1)
    """
    return wanted if temperature > 0 else 1


def write_question(task: Task) -> str:
    """Return what the model is asked."""
    return task.prompt if task.instructions else f"{task.prompt}\n\n{LAST_NUMBER}"


def ask_for_task_answers(task: Task, role: Role, count: int) -> AskGenerator:
    """Sample `count` answers to a task; equal ones are kept, an empty one does nothing asked."""
    name = f"{task.set} {task.key}"
    key = role.make_id(TaskAnswer, task.set, task.key, 0)
    seed_keys = [f"{name}:{index}" for index in range(count)]
    (completions,) = yield [role.make_request(write_question(task), key, seed_keys)]
    answers, drops = [], Counter[str]()
    for index, completion in enumerate(completions):
        if completion.finish in NO_TEXT_REASONS:
            drops[NO_TEXT_REASONS[completion.finish]] += 1
            continue
        text = completion.text.strip()
        score = score_answer(task, text)
        answers.append(
            TaskAnswer(
                role.make_id(TaskAnswer, task.set, task.key, index),
                role.iteration,
                role.model,
                task.set,
                task.key,
                index,
                text,
                completion.finish,
                len(completion.tokens),
                score.parts,
                score.strict,
                score.loose,
                score.faults,
            )
        )
    return Outcome(answers, drops)
