"""Optional: a model answers open task sets, whose answers a program scores.

No gate sees the scores, and nothing is trained on the prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfreward_lite.data import task_sets
from selfreward_lite.data.records import BASE, ModelId, Outcome, TaskAnswer
from selfreward_lite.data.store import Store
from selfreward_lite.data.task_sets import Task
from selfreward_lite.engine.api import Sampling
from selfreward_lite.method.task_answers import (
    ask_for_task_answers,
    count_samples,
    pick_tasks,
)
from selfreward_lite.run.context import RunContext
from selfreward_lite.system.files import Json


@dataclass(frozen=True)
class AskedTasks:
    """The tasks of some sets that are asked, how many answers to each, and what is left out.

    `left_out` counts prompts that cannot be scored here, by set and by the instruction.
    """

    tasks: Sequence[Task]
    samples: int
    left_out: dict[str, dict[str, int]]

    def describe(self, draw: Sampling) -> Json:
        """How the answers are asked for, as it is kept beside them."""
        return {
            "temperature": draw.temperature,
            "top_p": draw.top_p,
            "max_tokens": draw.max_tokens,
            "samples": dict.fromkeys(self.left_out, self.samples),
            "left_out": self.left_out,
        }

    def keep(self, store: Store, draw: Sampling) -> None:
        """Keep in a store how these sets are asked; what it says of other sets stays."""
        now, before = self.describe(draw), store.fact(task_sets.FACT) or {}
        by_set = {name: before.get(name, {}) | now[name] for name in ("samples", "left_out")}
        store.state(task_sets.FACT, now | by_set)


def answer_base(run: RunContext, _: int) -> None:
    """The untrained base answers the task sets, if any are set."""
    _ask(run, BASE)


def answer_tasks(run: RunContext, iteration: int) -> None:
    """M(t) answers the task sets, if any are set; for an M0 that is the base, it has already."""
    if iteration or run.settings.seed_stage.trains:
        _ask(run, ModelId(iteration))
    elif run.settings.evaluation.tasks:
        given = run.store.made_by(TaskAnswer, BASE)
        run.once(0, "task_answers", lambda: Outcome(run.copy_as_m0(given)))


def load_asked(
    names: Sequence[task_sets.TaskName],
    limit: int | None,
    samples: int,
    temperature: float,
    folder: Path | None = None,
) -> AskedTasks:
    """The tasks to ask of each set, at most `limit`; raises as `task_sets.read_tasks` does."""
    tasks: list[Task] = []
    left_out: dict[str, dict[str, int]] = {}
    for name in names:
        asked, reasons = pick_tasks(task_sets.read_tasks(name, folder), limit)
        tasks += asked
        left_out[name] = dict(reasons.most_common())
    return AskedTasks(tasks, count_samples(temperature, samples), left_out)


def _ask(run: RunContext, model: ModelId) -> None:
    settings, iteration = run.settings.evaluation, model.iteration
    stage = "base_task_answers" if model.is_base else "task_answers"
    if not settings.tasks or run.store.is_done(iteration, stage):
        return
    asked = load_asked(
        settings.tasks, settings.task_prompts, settings.task_samples, settings.draw.temperature
    )
    asked.keep(run.store, settings.draw)
    role = run.role(model, settings.draw, iteration)
    items = [
        (f"{task.set} {task.key}", ask_for_task_answers(task, role, asked.samples))
        for task in asked.tasks
    ]
    run.ask_round(iteration, stage, items)
