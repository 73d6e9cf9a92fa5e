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

Only a sync that the disk loses may cost more, since no program can see it. Then the run, `verify`
or the gate of files must say so; refused, it must resume from its mirror, or begin again.
"""

import argparse
import gc
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from unittest.mock import patch

from planted_bugs import BUGS
from scripted_runtime import Script
from simulated_disk import KILL
from simulated_run import (
    Contents,
    Failure,
    Fault,
    Plan,
    Simulation,
    Start,
    list_names,
    read_all,
)

from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.method import canaries, judgments, metrics, response_pairs
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.run import prepare


@dataclass
class Result:
    """How a seed ended; `failure` is empty if all was well."""

    seed: int
    happened: list[tuple[str, str]]
    commands: int
    refused: int
    failure: str = ""


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
def make_catalog(bug: str = "") -> Catalog:
    """Run undisturbed, in every scenario; with a planted bug, its own moments count."""
    scenarios: dict[str, Scenario] = {}
    with sped_up(), BUGS[bug]() if bug else nullcontext():
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
    plan = Plan([Fault("training step", 8, 0.0, KILL)], random.Random(0))
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
    catalog = make_catalog(bug)
    scenario, start, faults = draw_faults(seed, catalog)
    plan = Plan(faults, random.Random(f"luck {seed}"))
    if start.ended:
        plan.happened.append(("the end of a stage", KILL))
    clock = random.Random(f"clock {seed}")
    simulation = Simulation(plan, scenario.mirrored, start, clock)
    failure = ""
    try:
        with sped_up(), BUGS[bug]() if bug else nullcontext():
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
        f"{sum(bool(result.refused) for result in results)} runs refused what a lost sync damaged; "
        f"{len(failed)} failed{': seeds ' if failed else ''}{', '.join(map(str, failed))}"
    )
    return "\n".join(lines)


def find_bug(bug: str, seeds: int) -> Result | None:
    """The first seed that finds a planted bug, None if none does."""
    return next((one for seed in range(seeds) if (one := run_seed(seed, bug)).failure), None)


# -- speed ----------


@contextmanager
def sped_up() -> Iterator[None]:
    """Take what depends on nothing else from memory, for as long as the block lasts.

    And take a few short hostile texts only: some have 100,000 letters.
    """
    with ExitStack() as stack:
        for owner, name, faster in _faster():
            stack.enter_context(patch.object(owner, name, faster))
        yield


@cache
def _faster() -> list[tuple[object, str, object]]:
    """What is replaced, by what; made once, so that all runs of this process share the memory."""
    load_chat = cache(ChatFormat.load)
    load_texts, prompt_ids, text_ids = (
        canaries.load_hostile_texts,
        ChatFormat.prompt_ids,
        ChatFormat.text_ids,
    )
    known: dict[tuple[str, str], tuple[int, ...]] = {}

    @cache
    def few(model: str):
        return [one for one in load_texts(model) if len(one.text) * one.repeat < 200][:2]

    def known_prompt_ids(chat, messages, continue_with=""):
        key = repr(messages), continue_with
        if key not in known:
            known[key] = prompt_ids(chat, messages, continue_with)
        return known[key]

    @cache
    def known_text_ids(text: str) -> tuple[int, ...]:
        return tuple(text_ids(load_chat(TINY_MODEL), text))

    return [
        (ChatFormat, "load", staticmethod(load_chat)),
        (ChatFormat, "prompt_ids", known_prompt_ids),
        (ChatFormat, "text_ids", lambda chat, text: list(known_text_ids(text))),
        (canaries, "load_hostile_texts", few),
        (prepare, "list_gpus", list),  # asks another program
        (judgments, "read_score", cache(judgments.read_score)),
        (metrics, "correlation", cache(metrics.correlation)),
        (
            response_pairs,
            "find_appeal_to_judge",
            cache(response_pairs.find_appeal_to_judge),
        ),
        (Script, "reply", _cache_reply(Script.reply)),
    ]


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
