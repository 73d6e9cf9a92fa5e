"""A run killed by SIGKILL before and after every write: commits, stage ends, renames, exports, trainings, promotions."""

import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import scripted_run
from run_contents import read_contents

from selfreward_lite.data.store import Store

LIVES = 600  # more than enough; a run that gets no further would end here
WRITES = (
    "commit",
    "begin_stage",
    "end_stage",
    "promote",
    "measure",
    "state",
    "record_gate",
    "log_training",
    "spend",
)


class Reaper:
    """Kills this process at the `call`-th time that it is about to write, or has just written; says in `ledger` what that was.

    Given `only`, the beginning of a moment's name, no other moment counts.
    """

    def __init__(self, ledger: Path, call: int, only: str = "") -> None:
        self._ledger, self._left, self._only = ledger, call, only

    def pass_by(self, name: str) -> None:
        self._left -= name.startswith(self._only)
        if self._left == 0 and name.startswith(self._only):
            with self._ledger.open("a") as file:
                file.write(f"{name}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, function, name: str):
        def wrapped(*arguments, **named):
            stage = f" {arguments[2]}" if name in ("commit", "begin_stage", "end_stage") else ""
            self.pass_by(f"before {name}{stage}")
            result = function(*arguments, **named)
            self.pass_by(f"after {name}{stage}")
            return result

        return wrapped

    def watch_files(self, function, name: str, out: int):
        """As `watch`, and once more with half of the file written; `out` is the place of its path among the arguments."""

        def wrapped(*arguments):
            self.pass_by(f"before {name}")
            arguments[out].parent.mkdir(parents=True, exist_ok=True)
            arguments[out].write_text("hal")
            self.pass_by(f"half {name}")
            result = function(*arguments)
            self.pass_by(f"after {name}")
            return result

        return wrapped

    def haunt(self) -> None:
        """Stand beside everything that writes."""
        for name in WRITES:
            setattr(Store, name, self.watch(getattr(Store, name), name))
        Path.rename = self.watch(Path.rename, "rename")
        make = scripted_run.scripted_runtime

        def mortal_runtime(*arguments, **named):
            runtime = make(*arguments, **named)
            return replace(
                runtime,
                train=self.watch(runtime.train, "train"),
                export_base=self.watch_files(runtime.export_base, "export_base", 1),
                export_adapter=self.watch_files(runtime.export_adapter, "export_adapter", 3),
            )

        scripted_run.scripted_runtime = mortal_runtime


def live(folder: Path, ledger: Path, call: int, only: str = "") -> int:
    """Go on with the run in a process of its own that is killed at its `call`-th moment; return its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Reaper(ledger, call, only).haunt()
            scripted_run.run(folder, iterations="1")
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    scripted_run.run(folder, iterations="1")
    return folder


KILLS: Counter[str] = Counter()  # over all the tests of this file
SLOW = pytest.mark.slow


# A life must be long enough for the longest step that is one piece: the gates, each of which is recorded.
@pytest.mark.parametrize(
    "moments", [97, *(pytest.param(moments, marks=SLOW) for moments in (45, 46, 49, 51))]
)
def test_fault_01_sigkill_at_every_write_loses_and_doubles_nothing(tmp_path, whole, moments):
    """Each life gets a few writes further than the last; the lives together pass every write of the run."""
    folder, ledger = tmp_path / "run", tmp_path / "ledger"
    while (code := live(folder, ledger, moments)) != 0:
        assert code == -signal.SIGKILL
        assert len(ledger.read_text().splitlines()) < LIVES
    assert read_contents(folder) == read_contents(whole)
    with Store.read(folder) as store:
        assert store.faults() == []
    KILLS.update(ledger.read_text().splitlines())
    print(
        f"\n{len(ledger.read_text().splitlines())} kills; the records are those of an undisturbed run"
    )


POINTS = (
    "rename",
    "export_base",
    "export_adapter",
    "train",
    "promote",
    "end_stage",
    "measure",
    "record_gate",
    "state",
)
MOMENTS = [f"{when} {what}" for what in POINTS for when in ("before", "after")] + [
    "half export_base",
    "half export_adapter",
]


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(point, marks=SLOW) if number % 5 else point
        for number, point in enumerate(MOMENTS)
    ],
)
def test_fault_02_sigkill_at_every_rename_export_training_and_promotion(tmp_path, whole, point):
    """Killed at the first and, going on, at the second time; then left in peace."""
    folder, ledger = tmp_path / "run", tmp_path / "ledger"
    for call in (1, 2):
        code = live(folder, ledger, call, point)
        assert code == -signal.SIGKILL or call == 2
    scripted_run.run(folder, iterations="1")
    assert read_contents(folder) == read_contents(whole)
    with Store.read(folder) as store:
        assert store.faults() == []
    KILLS.update(ledger.read_text().splitlines())


@pytest.mark.slow
def test_fault_01_the_kills_were_many_and_everywhere():
    kinds = Counter(name.split()[1] for name in KILLS.elements())
    stages = {name.split()[2] for name in KILLS if len(name.split()) > 2}
    print(
        f"\n{KILLS.total()} SIGKILLs at {len(KILLS)} different moments: {dict(kinds)}; in {len(stages)} stages"
    )
    assert KILLS.total() >= 100
    assert {"commit", *POINTS} <= set(kinds)
    assert len(stages) >= 18
