"""How far a run is, read from its folder, whether it is running or not."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from selfreward_lite.data.database import FILE
from selfreward_lite.data.queries import find_last_step
from selfreward_lite.data.records import ModelId
from selfreward_lite.data.store import TIME_IS_UP, StageRow, Store
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import MANIFEST

State = Literal["new", "beginning", "running", "finished", "refused", "stopped"]


@dataclass(frozen=True)
class RunStatus:
    """A run as it is now. `refused` has the reasons of the gates that refused its candidate."""

    name: str
    state: State
    process: int | None = None
    preset: str = ""
    newest: int | None = None
    iterations: int = 0
    stages: tuple[StageRow, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    may_accept: bool = False
    birth: str = ""  # differs between runs of the same name
    time_is_up: str = ""  # how --hours ended the last command, if it did

    @property
    def candidate(self) -> str:
        """The name of the next model."""
        return ModelId(0 if self.newest is None else self.newest + 1).name

    @property
    def now(self) -> StageRow | None:
        """The unfinished stage, None if all have ended."""
        return next((stage for stage in reversed(self.stages) if not stage.ended), None)


def format_time(seconds: float) -> str:
    """Return a time in the unit that suits it.

    >>> format_time(42), format_time(128), format_time(7200)
    ('42 s', '2.1 min', '2.0 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def read_status(folder: Path) -> RunStatus:
    """Return how far a run is. A folder without a run is a new one, not an error."""
    process = Store.writer(folder)
    no_run = RunStatus(folder.name, "beginning" if process else "new", process)
    if not (folder / FILE).exists():
        return no_run
    try:
        with Store.read(folder) as store:
            return no_run if store.fact("settings") is None else _read_run(store, process)
    except UserError:
        if process is None:
            raise
        return no_run  # its file is only just being made


def _read_run(store: Store, process: int | None) -> RunStatus:
    settings, newest, rows = store.fact("settings"), store.newest(), store.stages()
    candidate = store.next_model()
    refused = store.refusals(candidate)
    state: State = "stopped"
    if process:
        state = "running"
    elif newest is not None and newest >= settings["iterations"]:
        state = "finished"
    elif refused and all(row.ended for row in rows):
        # An unfinished stage means that the gates were passed over, and the run stopped later.
        state = "refused"
    has_manifest = (store.model_dir(candidate) / MANIFEST).exists()
    return RunStatus(
        store.folder.name,
        state,
        process,
        settings["preset"],
        newest,
        settings["iterations"],
        tuple(_count_steps(store, row) for row in rows),
        refused,
        state == "refused" and has_manifest and store.is_done(candidate, "evaluation"),
        store.fact("birth") or "",
        store.fact(TIME_IS_UP) or "",
    )


def _count_steps(store: Store, row: StageRow) -> StageRow:
    """The row of a training under way with its steps as items, and one more for the checks."""
    if row.stage != "training" or row.ended:
        return row
    steps = int(store.metrics(row.iteration).get("training_steps") or 0)
    return row._replace(done=find_last_step(store, row.iteration), total=steps + 1)
