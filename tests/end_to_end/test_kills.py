"""Runs killed by SIGKILL before and after every write, rename, export, training and promotion."""

import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import scripted_run
from run_contents import read_contents

from selfreward_lite.data.store import Store

MAX_KILLS = 600  # more than enough; a run that makes no progress ends here
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


class Killer:
    """Kills this process at the `call`-th moment before or after a write, and notes it in `ledger`.

    Given `only`, just the moments count whose name begins with it.
    """

    def __init__(self, ledger: Path, call: int, only: str = "") -> None:
        self._ledger, self._left, self._only = ledger, call, only

    def reach(self, name: str) -> None:
        self._left -= name.startswith(self._only)
        if self._left == 0 and name.startswith(self._only):
            with self._ledger.open("a") as file:
                file.write(f"{name}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, function, name: str):
        def wrapped(*arguments, **named):
            stage = f" {arguments[2]}" if name in ("commit", "begin_stage", "end_stage") else ""
            self.reach(f"before {name}{stage}")
            result = function(*arguments, **named)
            self.reach(f"after {name}{stage}")
            return result

        return wrapped

    def watch_files(self, function, name: str, out: int):
        """Like `watch`, and also with half of the file written; argument `out` is its path."""

        def wrapped(*arguments):
            self.reach(f"before {name}")
            arguments[out].parent.mkdir(parents=True, exist_ok=True)
            arguments[out].write_text("hal")
            self.reach(f"half {name}")
            result = function(*arguments)
            self.reach(f"after {name}")
            return result

        return wrapped

    def patch_all(self) -> None:
        """Watch everything that writes."""
        for name in WRITES:
            setattr(Store, name, self.watch(getattr(Store, name), name))
        Path.rename = self.watch(Path.rename, "rename")
        os.replace = self.watch(os.replace, "rename")
        make = scripted_run.scripted_runtime

        def watched_runtime(*arguments, **named):
            runtime = make(*arguments, **named)
            return replace(
                runtime,
                train=self.watch(runtime.train, "train"),
                export_base=self.watch_files(runtime.export_base, "export_base", 1),
                export_adapter=self.watch_files(runtime.export_adapter, "export_adapter", 3),
            )

        scripted_run.scripted_runtime = watched_runtime


def run_until_killed(folder: Path, ledger: Path, call: int, only: str = "") -> int:
    """Resume the run in a child process killed at its `call`-th moment; return its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Killer(ledger, call, only).patch_all()
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


KILLS: Counter[str] = Counter()  # of all tests in this file


# Between two kills there must be time for the longest indivisible step: recording the gates.
@pytest.mark.slow
@pytest.mark.parametrize("moments", [45, 46, 49, 51, 97])
def test_sigkill_at_every_write_loses_and_doubles_nothing(tmp_path, whole, moments):
    """Each process gets a few writes further; together they pass every write of the run."""
    folder, ledger = tmp_path / "run", tmp_path / "ledger"
    while (code := run_until_killed(folder, ledger, moments)) != 0:
        assert code == -signal.SIGKILL
        assert len(ledger.read_text().splitlines()) < MAX_KILLS
    assert read_contents(folder) == read_contents(whole)
    with Store.read(folder) as store:
        assert store.faults() == []
    KILLS.update(ledger.read_text().splitlines())
    count = len(ledger.read_text().splitlines())
    print(f"\n{count} kills; the records are those of an undisturbed run")


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
    [MOMENTS[0], *(pytest.param(point, marks=pytest.mark.slow) for point in MOMENTS[1:])],
)
def test_sigkill_twice_at_every_kind_of_moment(tmp_path, whole, point):
    """Killed at the first such moment and, when resumed, at the second; then it may finish."""
    folder, ledger = tmp_path / "run", tmp_path / "ledger"
    for call in (1, 2):
        code = run_until_killed(folder, ledger, call, point)
        assert code == -signal.SIGKILL or call == 2
    scripted_run.run(folder, iterations="1")
    assert read_contents(folder) == read_contents(whole)
    with Store.read(folder) as store:
        assert store.faults() == []
    KILLS.update(ledger.read_text().splitlines())


@pytest.mark.slow
def test_kills_were_many_and_in_every_kind_of_write():
    kinds = Counter(name.split()[1] for name in KILLS.elements())
    stages = {name.split()[2] for name in KILLS if len(name.split()) > 2}
    print(
        f"\n{KILLS.total()} SIGKILLs at {len(KILLS)} different moments: {dict(kinds)}; "
        f"in {len(stages)} stages"
    )
    assert KILLS.total() >= 100
    assert {"commit", *POINTS} <= set(kinds)
    assert len(stages) >= 18
