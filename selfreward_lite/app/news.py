"""When a run has something new to show."""

from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.report import status, tasks
from selfreward_lite.system.errors import SelfRewardError

# Stages after which there is something new to show; smaller ones end many times a second.
LANDMARKS = (
    "ranked",
    "prompts",
    "judgments",
    "response_pairs",
    "judgment_pairs",
    "training",
    "evaluation",
    "task_answers",
    "judge_set",
    "gates",
)


def describe_news(library: RunLibrary, run: str) -> str:
    """Return a text that changes when a run starts, stops, ends a stage, or has a new model."""
    if run == TINY:
        return run
    try:
        view = status.read_status(library.folder(run))
    except SelfRewardError as error:
        return f"{run}: {error}"
    ended = [
        f"{one.model} {one.stage}" for one in view.stages if one.ended and one.stage in LANDMARKS
    ]
    asked = tasks.last_written(library.folder(run))
    return f"{run} {view.birth}: {view.state}, {view.newest}, {', '.join(ended[-1:])}, {asked:.0f}"
