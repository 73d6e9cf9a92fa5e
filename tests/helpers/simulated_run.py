"""One run on a simulated disk: the same command again and again, and what must hold then."""

import errno
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from run_contents import read_files
from simulated_disk import LOST, POWER, Dead, Disk, Saved
from simulated_tools import Clock, Tools

from selfreward_lite.cli import advice
from selfreward_lite.cli import main as cli
from selfreward_lite.data.store import Store
from selfreward_lite.run import loop, prepare
from selfreward_lite.run.backup import Backup, restore
from selfreward_lite.system.errors import SelfRewardError

SMALL = {
    "prompts.count": "4",
    "responses.count": "2",
    "judge.count": "2",
    "seed_stage.train_examples": "6",
    "seed_stage.eval_prompts": "2",
    "evaluation.prompts": "2",
    "evaluation.judgments": "1",
    "evaluation.canary_judgments": "1",
    "evaluation.second_look": "1",
    "evaluation.outside_prompts": "2",
    "iterations": "1",
    "gates.mode": "report",
    "seed": "2",
}
HOURS = 24.0  # more than a run takes, less than the time of day jumps
MOST_COMMANDS = 20
RUN, MIRROR = "runs/sim", "mirror"
ANY = "any moment"
STAGES_A_START = 4
Contents = dict[str, Any]
VANISHES = 0.3  # share of the deaths, with a mirror, after which the run's folder is gone


@dataclass(frozen=True)
class Fault:
    """What happens at the `nth` moment of a name, counted from the fault before it.

    `choice` in [0, 1) picks among what can happen there, unless `kind` says it.
    """

    point: str
    nth: int
    choice: float
    kind: str = ""


@dataclass(frozen=True)
class Start:
    """A run under way: its disk, the stages that have ended, how often each moment was reached."""

    disk: Saved
    ended: frozenset[tuple[int, str]]
    seen: dict[str, int]


@dataclass
class Plan:
    """The faults still to come, and those that happened."""

    left: list[Fault]
    luck: random.Random
    passed: int = 0
    happened: list[tuple[str, str]] = field(default_factory=list)
    seen: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)

    def reach(self, point: str, kinds: tuple[str, ...]) -> str | None:
        """What happens at a moment, None for nothing."""
        self.seen[point] = self.seen.get(point, (0, ()))[0] + 1, kinds
        if not self.left or self.left[0].point not in (point, ANY):
            return None
        fault = self.left[0]
        kind = fault.kind or kinds[int(fault.choice * len(kinds))]
        if kind not in kinds:
            return None
        self.passed += 1
        if self.passed <= fault.nth:
            return None
        self.passed = 0
        del self.left[0]
        self.happened.append((point, kind))
        if kind == LOST:  # it shows when the power goes
            self.left.insert(0, Fault(ANY, self.luck.randint(0, 80), 0.0, POWER))
        return kind


@dataclass
class Failure(Exception):
    """What went wrong with a seed."""

    what: str


class Simulation:
    """One run on one disk: commands until its plan is over, and what must hold."""

    def __init__(
        self,
        plan: Plan,
        mirrored: bool,
        start: "Start | None" = None,
        clock_luck: random.Random | None = None,
    ) -> None:
        place = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.root = Path(tempfile.mkdtemp(dir=place)).resolve()
        self.plan, self.mirrored = plan, mirrored
        self.disk = Disk(self.root, plan.luck)
        self.disk.load({"runs": None, MIRROR: None})
        self.disk.storage.adopt()
        if start is not None:
            self.disk.restore(start.disk)
        self.disk.reach = plan.reach
        self.clock = Clock(clock_luck)
        self.ended = set(start.ended) if start else set()  # stages that must stay done
        self.starts: list[Start] | None = None  # to collect one at the end of every few stages
        self.said: list[str] = []
        self.commands = 0
        self.refused, self.was_restored = 0, bool(start and not start.ended and mirrored)

    @property
    def folder(self) -> Path:
        return self.root / RUN

    def save(self) -> "Start":
        """Where another simulation may begin."""
        seen = {point: count for point, (count, _) in self.plan.seen.items()}
        return Start(self.disk.save(), frozenset(self.ended), seen)

    def close(self) -> None:
        shutil.rmtree(self.root)

    def finish(self) -> None:
        """Give the same command until it ends well without a fault. Raises Failure."""
        while True:
            before = len(self.plan.happened)
            outcome = self.command()
            news = self.plan.happened[before:]
            if outcome is None and not news:
                if not (self.plan.luck.random() < 0.3 and self.plan.left == []):
                    return
                self.cut_power_at_rest()
                if self.command() is None:
                    return
                raise Failure("refused after a power cut at rest")
            if outcome is not None and not news:
                self.accept_refusal(outcome)
            if self.commands > MOST_COMMANDS:
                raise Failure(f"no end after {self.commands} commands: {outcome}")

    def cut_power_at_rest(self) -> None:
        self.plan.happened.append(("between two commands", POWER))
        self.disk.cut_power()
        self.clock.start_machine()

    def accept_refusal(self, line: str) -> None:
        """A run may refuse what a lost sync damaged; then it resumes from its mirror, or anew."""
        if not self._lost_a_sync() or self.refused > self.mirrored:
            raise Failure(f"refused without a fault: {line}")
        self.said.append(f"refused: {line}")
        self.forget_run()
        if self.refused:  # the copy is damaged too
            self.disk.clear(MIRROR)
        self.refused += 1

    def forget_run(self) -> None:
        self.disk.clear("runs")
        self.was_restored = self.mirrored
        self.ended.clear()

    def command(self) -> str | None:
        """Give the command once; returns None, or in one line how it failed."""
        self.commands += 1
        try:
            with self.disk.attached(), self.clock.attached(), self._watching():
                self._run()
            outcome = None
        except Dead:
            outcome = "the process ended"
        except SelfRewardError as error:
            outcome = f"{error}"
        except OSError as error:
            if errno.errorcode.get(error.errno or 0, "") not in advice.ADVICE:
                raise Failure(f"a traceback for the user:\n{traceback.format_exc()}") from None
            outcome = f"{error.filename}: {error.strerror}"
        except Failure:
            raise
        except Exception:  # noqa: BLE001 - any other error would be a traceback for the user
            raise Failure(f"a traceback for the user:\n{traceback.format_exc()}") from None
        finally:
            died = self.disk.is_dead()
            self.disk.end_command()
        self.said.append(f"command {self.commands}: {outcome or 'done'}")
        if died and self.plan.happened[-1][1] == POWER:
            self.clock.start_machine()
        if died and self.mirrored and self.plan.luck.random() < VANISHES:
            self.said.append("the run's folder is gone")
            self.forget_run()
        return outcome

    def _run(self) -> None:
        """What the command `run` does, between its arguments and its tables."""
        mirror = self.root / MIRROR
        if self.mirrored:
            with patch.object(cli, "say", lambda line: None):
                cli._restore(self.folder, str(mirror), str(mirror))
        with Store.write(self.folder) as store:
            self._check_ended(store)
            settings = prepare.load_or_create_settings(store, SMALL, "tiny")
            copies = Backup(store, mirror, self.said.append) if self.mirrored else None
            watch = copies.watching(lambda at: None) if copies else lambda at: None
            deadline = time.monotonic() + HOURS * 3600
            try:
                loop.run(store, settings, Tools(self.disk, self.clock), watch, deadline)
            finally:
                if copies:
                    copies.copy(last=True)

    def _lost_a_sync(self) -> bool:
        return any(kind == LOST for _, kind in self.plan.happened)

    def _check_ended(self, store: Store) -> None:
        lost = [stage for stage in self.ended if not store.is_done(*stage)]
        if lost and not self._lost_a_sync():
            raise Failure(f"stages that had ended are not done: {sorted(lost)}")

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Note which stages have ended."""
        begin, end = Store.begin_stage, Store.end_stage

        def begin_stage(store, iteration, stage, total):
            self.ended.discard((iteration, stage))  # a stage may grow in rounds
            begin(store, iteration, stage, total)

        def end_stage(store, iteration, stage):
            end(store, iteration, stage)
            self.ended.add((iteration, stage))
            if self.starts is not None and len(self.ended) % STAGES_A_START == 0:
                self.starts.append(self.save())

        with patch.multiple(Store, begin_stage=begin_stage, end_stage=end_stage):
            yield

    def check(self, wanted: Contents, names: list[str]) -> None:
        """Compare with an undisturbed run. Raises Failure."""
        self._compare(self.folder, wanted, "the run")
        found = list_names(self.folder)
        if found != names and not (self.was_restored and {*names} - {*found} == {"base"}):
            raise Failure(f"the run's folder holds {found}, not {names}")
        if self.mirrored:
            again = self.root / "again" / "sim"
            again.parent.mkdir()
            restore(self.root / MIRROR, again)
            self._compare(again, wanted, "its mirror")

    def _compare(self, folder: Path, wanted: Contents, what: str) -> None:
        found = read_all(folder)
        if what == "its mirror" or (self.was_restored and not found["base"]):
            wanted = {**wanted, "base": {}}  # is not copied, but made again if it is needed
        wrong = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
        if wrong and self._lost_a_sync() and _says_so(folder):
            self.refused += 1
        elif wrong:
            raise Failure(f"{what} differs from an undisturbed run in {', '.join(wrong)}")


def _says_so(folder: Path) -> bool:
    """Whether `verify` finds damage, or the gate of files has refused a model."""
    with Store.read(folder) as store:
        return bool(store.faults()) or any("files" in store.refusals(t) for t in store.models())


def read_all(folder: Path) -> Contents:
    """Every row of every table but times and the run's random name, and the files of its models."""
    found: Contents = {name: read_files(folder / name) for name in ("base", "M0", "M1")}
    with Store.read(folder) as store:
        for (table,) in store.select("SELECT name FROM sqlite_master WHERE type = 'table'"):
            columns = [row[1] for row in store.select(f"PRAGMA table_info({table})")]
            kept = ", ".join(f'"{name}"' for name in columns if name != "seconds")
            found[table] = sorted(map(repr, store.select(f"SELECT {kept} FROM {table}")))
        found["facts"] = [row for row in found["facts"] if not row.startswith("('birth'")]
        found["faults"] = [row[0] for row in store.select("PRAGMA integrity_check")]
    return found


def list_names(folder: Path) -> list[str]:
    """The names in a run's folder, without those of SQLite's own files."""
    names = (path.name for path in folder.iterdir())
    left_out = ("-wal", "-shm", "training")  # a restored run may not need the last
    return sorted(name for name in names if not name.endswith(left_out))
