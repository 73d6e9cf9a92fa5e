"""Ranked answers of the tiny world in OASST's schema, from which the seed stage starts.

The exact scorer takes the place of the people who ranked. Only ranks leave this file.
"""

import random
from collections.abc import Iterator
from typing import Any

from selfreward_lite.data.message_rows import make_message
from selfreward_lite.data.tiny.answers import Habits, write_answer
from selfreward_lite.data.tiny.score import score_answer
from selfreward_lite.data.tiny.tasks import Task, draw_task

ANSWERS = 3  # ranked answers per prompt; OASST's evaluation prompts have 2.85 on average
_DATA_SEED = 20230412  # every run has the same data set
_MADE: dict[str, Any] = {"author": "tiny", "created": "2023-04-12T00:00:00+00:00", "reviews": 3}


def generate_ranked_rows(prompts: int) -> Iterator[dict[str, Any]]:
    """Yield the messages of `prompts` trees: a task, then its answers with rank 0 for the best."""
    rng = random.Random(_DATA_SEED)
    for number in range(prompts):
        task = draw_task(rng, "ranked")
        tree = f"tree-{number}"
        yield make_message(tree, None, task.prompt, None, **_MADE)
        shown = list(enumerate(_ranked_answers(task, rng)))
        rng.shuffle(shown)
        for rank, text in shown:
            yield make_message(f"{tree}-{rank}", tree, text, rank, **_MADE)


def _ranked_answers(task: Task, rng: random.Random) -> list[str]:
    """Random answers with different exact scores, best first."""
    by_score: dict[int, str] = {}
    while len(by_score) < ANSWERS:
        text = write_answer(task, rng, Habits()).text
        by_score.setdefault(score_answer(task.prompt, text).score, text)
    return [by_score[points] for points in sorted(by_score, reverse=True)]
