"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from selfreward_lite.data.records import ModelId
from selfreward_lite.data.store import Store
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import MANIFEST

State = Literal["new", "beginning", "running", "finished", "refused", "stopped"]


@dataclass(frozen=True)
class StageStatus:
    """One stage of a run: items done, of how many, what was dropped; seconds it took so far."""

    model: str
    name: str
    done: int
    total: int
    seconds: float
    ended: bool
    drops: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float | None:
        """Items a second; None before the first, and for a stage that is one piece."""
        return (
            self.done / self.seconds if self.done and self.seconds > 0 and self.total > 1 else None
        )

    @property
    def left(self) -> float | None:
        """Seconds until its end at the rate so far; None where there is none yet."""
        return (
            None if self.ended or self.rate is None else max(0, self.total - self.done) / self.rate
        )


@dataclass(frozen=True)
class RunStatus:
    """A run as it stands now. `refused` are the gates that said no to its candidate, with their reasons."""

    name: str
    state: State
    process: int | None = None
    preset: str = ""
    newest: int | None = None
    iterations: int = 0
    stages: tuple[StageStatus, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    may_accept: bool = False
    birth: str = ""  # tells it from another run of its name

    @property
    def candidate(self) -> str:
        """The model that comes next."""
        return ModelId(0 if self.newest is None else self.newest + 1).name

    @property
    def now(self) -> StageStatus | None:
        """The stage that is under way, or was when it was stopped."""
        return next((stage for stage in reversed(self.stages) if not stage.ended), None)


def read_status(folder: Path) -> RunStatus:
    """Return how a run stands. A folder without a run is a new one, not an error."""
    process = Store.writer(folder)
    if not (folder / "run.sqlite").exists():
        return RunStatus(folder.name, "beginning" if process else "new", process)
    try:
        with Store.read(folder) as store:
            return _view(store, process)
    except UserError:
        if process is None:
            raise
        return RunStatus(folder.name, "beginning", process)  # its file is only just being made


def _view(store: Store, process: int | None) -> RunStatus:
    settings = store.fact("settings")
    if settings is None:
        return RunStatus(store.folder.name, "beginning" if process else "new", process)
    newest, iterations = store.newest(), settings["iterations"]
    candidate = 0 if newest is None else newest + 1
    refused = {
        gate: reason for gate, (passed, reason) in store.gates(candidate).items() if not passed
    }
    state: State = (
        "running"
        if process
        else "finished"
        if newest is not None and newest >= iterations
        else "stopped"
    )
    if state == "stopped" and refused and all(ended for *_, ended in store.stages()):
        state = "refused"  # else somebody went past the gates, and it was stopped in a later stage
    whole = (store.model_dir(candidate) / MANIFEST).exists() and store.is_done(
        candidate, "evaluation"
    )
    stages = tuple(
        _training(store, iteration, seconds)
        if name == "training" and not ended
        else StageStatus(
            ModelId(iteration).name, name, done, total, seconds, ended, store.drops(iteration, name)
        )
        for iteration, name, done, total, seconds, ended in store.stages()
    )
    return RunStatus(
        store.folder.name,
        state,
        process,
        settings["preset"],
        newest,
        iterations,
        stages,
        refused,
        state == "refused" and whole,
        store.fact("birth") or "",
    )


def _training(store: Store, iteration: int, seconds: float) -> StageStatus:
    """A training under way, which to the store is one piece: its steps, and one more in which the adapter is checked."""
    ((step,),) = store.select("SELECT max(step) FROM training WHERE iteration = ?", iteration)
    steps = int(store.metrics(iteration).get("training_steps") or 0)
    return StageStatus(
        ModelId(iteration).name, "training", step or 0, steps + 1, seconds, ended=False
    )
