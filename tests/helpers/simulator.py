"""Whole runs in one process, on a disk, with children and a clock that fail as a seed decides.

    python tests/helpers/simulator.py --seed 7      that seed, with what happened
    python tests/helpers/simulator.py --seeds 2000  so many seeds, in two processes
    python tests/helpers/simulator.py --soak 2      seeds of its own for two hours

A seed draws up to three faults: moments by name, which of them, and what happens. After each, the
same command is given again, until it ends well without a fault; then the run must hold exactly
what an undisturbed one holds, and so must its mirror, if it has one. Besides, every command must
end in one line for the user, a stage that had ended must stay so, and no time of day counts, which
jumps by days. What the disk does is told in `simulated_disk.py`. llama.cpp, torch and SQLite's own
writing are not in it: their part is played.

Only a sync that the disk loses may end in a refusal by the run, in words, since no program can see
it; with a mirror it must then resume from there.
"""

import argparse
import errno
import gc
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from run_contents import read_files
from scripted_runtime import Script
from simulated_disk import LOST, POWER, Dead, Disk, Saved
from simulated_tools import Clock, Tools

from selfreward_lite.cli import main as cli
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.method import canaries, judgments, metrics, response_pairs
from selfreward_lite.models.chat_format import ChatFormat
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


@dataclass
class Result:
    """How a seed ended; `failure` is empty if all was well."""

    seed: int
    happened: list[tuple[str, str]]
    commands: int
    refused: bool
    failure: str = ""


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
        self.disk.adopt()
        if start is not None:
            self.disk.restore(start.disk)
        self.disk.reach = plan.reach
        self.clock = Clock(clock_luck)
        self.ended = set(start.ended) if start else set()  # stages that must stay done
        self.starts: list[Start] | None = None  # to collect one at the end of every few stages
        self.said: list[str] = []
        self.commands = 0
        self.refused = False

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
        if LOST not in {kind for _, kind in self.plan.happened} or self.refused:
            raise Failure(f"refused without a fault: {line}")
        self.said.append(f"refused: {line}")
        self.refused = True
        self.forget_run()
        if line.startswith(str(self.root / MIRROR)):
            self.disk.remove(MIRROR)

    def forget_run(self) -> None:
        self.disk.remove("runs")
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
            if errno.errorcode.get(error.errno or 0, "") not in cli.ADVICE:
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

    def _check_ended(self, store: Store) -> None:
        lost = [stage for stage in self.ended if not store.is_done(*stage)]
        if lost and not any(kind == LOST for _, kind in self.plan.happened):
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
        if found != names:
            raise Failure(f"the run's folder holds {found}, not {names}")
        if self.mirrored:
            again = self.root / "again" / "sim"
            again.parent.mkdir()
            restore(self.root / MIRROR, again)
            self._compare(again, wanted, "its mirror")

    def _compare(self, folder: Path, wanted: Contents, what: str) -> None:
        found = read_all(folder)
        if what == "its mirror":
            wanted = {**wanted, "base": {}}  # is not copied, but made again
        wrong = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
        if wrong:
            raise Failure(f"{what} differs from an undisturbed run in {', '.join(wrong)}")


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
    return sorted(name for name in names if not name.endswith(("-wal", "-shm")))


# -- what a seed does ----------


@dataclass(frozen=True)
class Scenario:
    """A way to give the command, and the moments of an undisturbed one."""

    mirrored: bool
    starts: list[Start]  # after more and more stages
    moments: dict[str, tuple[int, tuple[str, ...]]]


@dataclass(frozen=True)
class Catalog:
    """The scenarios, every moment with the scenario that has it, and an undisturbed run."""

    scenarios: dict[str, Scenario]
    points: list[tuple[str, str]]
    wanted: dict
    names: list[str]


@cache
def make_catalog() -> Catalog:
    """Run undisturbed, in every scenario."""
    speed_up()
    scenarios: dict[str, Scenario] = {}
    scenarios["plain"], wanted, names = _observe(mirrored=False)
    scenarios["mirror"], *_ = _observe(mirrored=True)
    scenarios["restore"], *_ = _observe(mirrored=True, start=_vanish())
    points, known = [], set()
    for name, scenario in scenarios.items():
        points += [(name, point) for point in sorted(scenario.moments) if point not in known]
        known |= scenario.moments.keys()
    gc.freeze()  # what is known now need not be searched for garbage again and again
    return Catalog(scenarios, points, wanted, names)


def _observe(mirrored: bool, start: Start | None = None) -> tuple[Scenario, Contents, list[str]]:
    """An undisturbed command: its scenario, and what the run holds afterwards."""
    simulation = Simulation(Plan([], random.Random(0)), mirrored, start)
    simulation.starts = [simulation.save()]
    try:
        if (outcome := simulation.command()) is not None:
            raise Failure(f"undisturbed: {outcome}")
        scenario = Scenario(mirrored, simulation.starts, simulation.plan.seen)
        return scenario, read_all(simulation.folder), list_names(simulation.folder)
    finally:
        simulation.close()


def _vanish() -> Start:
    """The mirror of a run whose machine vanished in its second training."""
    plan = Plan([Fault("training step", 8, 0.0, POWER)], random.Random(0))
    simulation = Simulation(plan, mirrored=True)
    try:
        simulation.command()
        simulation.forget_run()
        plan.seen.clear()
        return simulation.save()
    finally:
        simulation.close()


def draw_faults(seed: int, catalog: Catalog) -> tuple[Scenario, Start, list[Fault]]:
    """The scenario, start and faults of a seed; the first is at moment `seed` of all, in turn.

    Work before the first fault is skipped: the run begins at the last start before it.
    """
    luck = random.Random(f"faults {seed}")
    name, point = catalog.points[seed % len(catalog.points)]
    scenario = catalog.scenarios[name]
    nth = luck.randrange(scenario.moments[point][0])
    start = [one for one in scenario.starts if one.seen.get(point, 0) <= nth][-1]
    faults = [Fault(point, nth - start.seen.get(point, 0), luck.random())]
    while len(faults) < 3 and luck.random() < 0.5:
        point = luck.choice(sorted(scenario.moments))
        count = scenario.moments[point][0]
        faults.append(Fault(point, luck.randrange(max(1, count // 2)), luck.random()))
    return scenario, start, faults


def run_seed(seed: int, bug: str = "") -> Result:
    """Simulate one seed, with one of the planted BUGS if it is named."""
    catalog = make_catalog()
    scenario, start, faults = draw_faults(seed, catalog)
    plan = Plan(faults, random.Random(f"luck {seed}"))
    clock = random.Random(f"clock {seed}")
    simulation = Simulation(plan, scenario.mirrored, start, clock)
    failure = ""
    try:
        with BUGS[bug]() if bug else nullcontext():
            simulation.finish()
        simulation.check(catalog.wanted, catalog.names)
    except Failure as error:
        failure = "\n".join([error.what, *simulation.said])
    finally:
        simulation.close()
    return Result(seed, plan.happened, simulation.commands, simulation.refused, failure)


def run_seeds(seeds: Iterable[int], bug: str = "", processes: int = 2) -> list[Result]:
    """Simulate many seeds, in several processes; a failure is printed at once."""
    results = []
    with ProcessPoolExecutor(processes) as pool:
        for result in pool.map(partial(run_seed, bug=bug), seeds, chunksize=10):
            results.append(result)
            if result.failure:
                print(f"seed {result.seed}: {result.happened}\n{result.failure}\n", flush=True)
    return results


def soak(seconds: float, bug: str = "") -> Iterator[Result]:
    """Simulate seeds that no other run has, for so long."""
    first, size, until = time.time_ns(), 200, time.monotonic() + seconds
    while time.monotonic() < until:
        yield from run_seeds(range(first, first + size), bug)
        first += size


def count_hits(results: Iterable[Result]) -> dict[str, Counter[str]]:
    """How often each moment was hit, by what happened there."""
    hits: dict[str, Counter[str]] = {point: Counter() for _, point in make_catalog().points}
    for result in results:
        for point, kind in result.happened:
            hits.setdefault(point, Counter())[kind] += 1
    return hits


def describe(results: list[Result]) -> str:
    """Hits of each moment, and the totals."""
    hits, kinds = count_hits(results), Counter[str]()
    lines = []
    for point, counts in hits.items():
        kinds += counts
        shown = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
        lines.append(f"{counts.total():6} {point}: {shown}")
    failed = [result.seed for result in results if result.failure]
    lines.append(
        f"{len(results)} seeds, {sum(result.commands for result in results)} commands, "
        f"{kinds.total()} faults ({dict(kinds)}) at {len(hits)} moments, the fewest "
        f"{min(counts.total() for counts in hits.values())}; "
        f"{sum(result.refused for result in results)} runs refused what a lost sync damaged; "
        f"{len(failed)} failed{': seeds ' if failed else ''}{', '.join(map(str, failed))}"
    )
    return "\n".join(lines)


# -- planted bugs ----------


BUGS: dict = {}


# -- speed ----------


def speed_up() -> None:
    """Compute what depends on nothing else once for all runs of this process.

    And take a few short hostile texts only: some have 100,000 letters.
    """
    ChatFormat.load = staticmethod(cache(ChatFormat.load))
    load, prompt_ids, text_ids = (
        canaries.load_hostile_texts,
        ChatFormat.prompt_ids,
        ChatFormat.text_ids,
    )
    known: dict[tuple[str, str], tuple[int, ...]] = {}

    @cache
    def few(model: str):
        return [one for one in load(model) if len(one.text) * one.repeat < 200][:2]

    def known_prompt_ids(chat, messages, continue_with=""):
        key = repr(messages), continue_with
        if key not in known:
            known[key] = prompt_ids(chat, messages, continue_with)
        return known[key]

    @cache
    def known_text_ids(text: str) -> tuple[int, ...]:
        return tuple(text_ids(ChatFormat.load(TINY_MODEL), text))

    canaries.load_hostile_texts = few
    ChatFormat.prompt_ids = known_prompt_ids
    ChatFormat.text_ids = lambda chat, text: list(known_text_ids(text))
    prepare.list_gpus = list  # asks another program
    judgments.read_score = cache(judgments.read_score)
    metrics.correlation = cache(metrics.correlation)
    response_pairs.find_appeal_to_judge = cache(response_pairs.find_appeal_to_judge)
    Script.reply = _cache_reply(Script.reply)


def _cache_reply(function):
    known: dict[object, object] = {}

    def cached(script, request, sample):
        key = request.tokens, request.seeds[sample], request.probe, request.closing
        if key not in known:
            known[key] = function(script, request, sample)
        return known[key]

    return cached


# -- by hand ----------


def main() -> None:
    """Simulate the seeds that the arguments name; exit code 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="simulate this seed, and print what happened")
    parser.add_argument("--seeds", type=int, default=2000, help="so many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--soak", type=float, help="hours; with seeds that no other run has")
    parser.add_argument("--bug", default="", help="plant a bug", choices=["", *BUGS])
    chosen = parser.parse_args()
    if chosen.seed is not None:
        result = run_seed(chosen.seed, chosen.bug)
        print(f"{result.happened}\n{result.failure or 'as an undisturbed run'}")
        sys.exit(bool(result.failure))
    began = time.monotonic()
    if chosen.soak is not None:
        results = list(soak(chosen.soak * 3600, chosen.bug))
    else:
        results = run_seeds(range(chosen.first, chosen.first + chosen.seeds), chosen.bug)
    print(describe(results))
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(any(result.failure for result in results))


if __name__ == "__main__":
    main()
