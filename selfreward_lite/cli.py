"""The command line: reads arguments, prints answers. Everything else is elsewhere.

Progress goes to stderr; the last line of stdout is one JSON document. Exit codes: 0 done, 1 a failure (a bug of ours keeps
its traceback), 2 something the user can mend, 3 stopped by a gate, 130 interrupted and resumable.
"""

from __future__ import annotations

import errno
import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfreward_lite import config, report
from selfreward_lite.errors import GateStop, SelfRewardError, UserError
from selfreward_lite.store import Store

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="A language model that improves itself, on one card.",
)
bench = typer.Typer(no_args_is_help=True, help="Measure: every bench goes on where it stopped.")
app.add_typer(bench, name="bench")
console = Console(stderr=True)
INTERRUPTED = 130

RunsDir = Annotated[Path, typer.Option(help="Folder that holds all runs.")]
Name = Annotated[str | None, typer.Option(help="The run's name; by default the preset's.")]


@app.command()
def run(
    preset: Annotated[str | None, typer.Option(help="What to run; by default tiny, which needs no download.")] = None,
    name: Name = None,
    runs_dir: RunsDir = Path("runs"),
    iterations: Annotated[int | None, typer.Option(help="Iterations after the seed stage, in all.", min=0)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is drawn.", min=0)] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting, as in --set dpo.beta=0.2; repeatable.")] = None,
    gates: Annotated[
        Literal["stop", "report"] | None, typer.Option(help="Whether a failed gate ends the run; report holds for one command.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Your own prompts: JSONL, CSV or Parquet.")] = None,
    hours: Annotated[float | None, typer.Option(help="Stop after so many hours, resumably.", min=0, max=8760)] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out bad lines of data files, and count them.")] = False,
) -> None:
    """Start a run, or go on with it: the same command resumes."""
    from selfreward_lite import loop
    from selfreward_lite.display import Display
    from selfreward_lite.tools import real_tools

    wanted = _overrides(set_ or [])
    wanted |= {key: str(value) for key, value in (("iterations", iterations), ("seed", seed)) if value is not None}
    wanted |= {"gates.mode": gates} if gates else {}
    wanted |= {"prompts.file": json.dumps(str(prompts.absolute()))} if prompts else {}
    wanted |= {"skip_bad": "true"} if skip_bad else {}
    folder = runs_dir / (name or preset or "tiny")
    if not folder.exists():
        config.load(preset or "tiny", wanted)  # a mistyped command leaves no folder behind
    if hours is not None:
        signal.setitimer(signal.ITIMER_REAL, max(hours * 3600, 1e-3))
    with Store.write(folder) as store:
        settings = loop.settle(store, wanted, preset)
        _say(f"{folder}: {settings.model.base} in {settings.model.quantisation}; llama.cpp runs on "
             f"{'the card' if settings.engine.gpu_layers else 'the CPU'}")
        if loop.finished(store, settings):
            console.print(f"{folder} is finished: M{store.newest()} is its newest model. Go on from it with "
                          f"--iterations {settings.iterations + 1}.", highlight=False, soft_wrap=True)
        try:
            with real_tools() as tools, Display(console) as watch:
                loop.run(store, settings, tools, watch)
        finally:
            _print_iterations(store)
            _print_examples(store)
            print(json.dumps(report.summary(store)), flush=True)


@app.command()
def status(name: Name = None, runs_dir: RunsDir = Path("runs")) -> None:
    """Show how far a run is; works while it runs."""
    with Store.read(runs_dir / (name or "tiny")) as store:
        table = Table("model", "stage", "items", "seconds", "dropped", title=str(store.folder), title_justify="left")
        for iteration, stage, done, total, seconds, ended in store.stages():
            drops = ", ".join(f"{count} {reason}" for reason, count in store.drops(iteration, stage).items())
            table.add_row(f"M{iteration}", stage, f"{done}/{total}" + ("" if ended else " …"), f"{seconds:.1f}", drops)
        console.print(table)
        spent = report.seconds_by_stage(store)
        table = Table("where the seconds went", "seconds", "share", title_justify="left")
        for stage, seconds in spent.items():
            table.add_row(stage, f"{seconds:.1f}", f"{seconds / max(sum(spent.values()), 1e-9):.0%}")
        console.print(table)
        _print_iterations(store)
        print(json.dumps(report.summary(store)))


@app.command()
def verify(name: Name = None, runs_dir: RunsDir = Path("runs")) -> None:
    """Check a run: the file's integrity, every id, every text, every model's manifest."""
    with Store.read(runs_dir / (name or "tiny")) as store:
        faults = store.faults()
        for fault in faults:
            console.print(fault, highlight=False, soft_wrap=True, markup=False)
        print(json.dumps({"run": store.folder.name, "faults": len(faults)}))
        if faults:
            raise UserError(f"{len(faults)} faults in {store.folder}; restore it from a copy, or start a new --name")


@app.command()
def accept(name: Name = None, runs_dir: RunsDir = Path("runs")) -> None:
    """Promote the candidate that a gate has refused, by hand; `run` then goes on from it."""
    from selfreward_lite import assess

    folder = runs_dir / (name or "tiny")
    Store.read(folder).close()  # a mistyped name makes no folder
    with Store.write(folder) as store:
        candidate = assess.accept(store)
        for gate, (passed, reason) in store.gates(candidate).items():
            if not passed:
                console.print(f"accepted all the same: {gate}: {reason}", highlight=False, soft_wrap=True, markup=False)
        print(json.dumps({"run": folder.name, "accepted": candidate}))


@bench.command("tiny")
def bench_tiny(
    seeds: Annotated[str, typer.Option(help="Seeds, as 100-104 or 7,9.")] = "100-104",
    prompts: Annotated[int, typer.Option(help="Held-out prompts a model.", min=2)] = 1000,
    runs_dir: Annotated[Path, typer.Option(help="Folder of the bench's runs.")] = Path("runs/bench-tiny"),
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting, as for run.")] = None,
) -> None:
    """Does the loop learn? The tiny run over several seeds, with standard errors, failures included."""
    from selfreward_lite.bench import tiny
    from selfreward_lite.display import Display
    from selfreward_lite.tools import real_tools

    wanted = {**_overrides(set_ or []), "evaluation.prompts": str(prompts)}
    with Display(console) as watch:
        results = tiny.run_seeds(runs_dir, _seeds(seeds), wanted, real_tools, watch, _say)
    means, verdicts = tiny.averages(results), tiny.verdicts(results)
    table = Table("", "base", *(f"M{place}" for place in range(len(means) - 1)))
    table.add_row("seeds that have it", *map(str, tiny.reached(results)))
    for name in tiny.COLUMNS:
        table.add_row(name.replace("_", " "), *(_mean_and_error(mean.get(name)) for mean in means))
    console.print(table)
    shown = ("win_rate_vs_seed", "exact_score", "answer_right", "judge_pair_accuracy")
    table = Table("seed", *(name.replace("_", " ") for name in shown), "seconds", "stopped")
    for result in results:
        columns = [" ".join(_short(row.get(name)) for row in result.rows[1:]) for name in shown]
        table.add_row(str(result.seed), *columns, str(result.document["seconds"]), result.stopped or "")
    console.print(table)
    for claim, holds in verdicts.items():
        _say(f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}")
    print(json.dumps({"seeds": [result.seed for result in results], "mean_and_error": means, "verdicts": verdicts}))


@bench.command("settings")
def bench_settings(
    seeds: Annotated[str, typer.Option(help="Seeds, none of the published ones.")] = "200,201",
    runs_dir: Annotated[Path, typer.Option(help="Folder of the bench's runs.")] = Path("runs/bench-settings"),
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting, as for run.")] = None,
) -> None:
    """Is the result an accident of its settings? The tiny run with one setting changed at a time."""
    from selfreward_lite.bench import settings, tiny
    from selfreward_lite.display import Display
    from selfreward_lite.tools import real_tools

    base = {"gates.mode": "report", **_overrides(set_ or [])}
    with Display(console) as watch:
        results = settings.run_variants(runs_dir, _seeds(seeds), base, real_tools, watch, _say)
    shown = ("win_rate_vs_seed", "exact_score", "answer_right", "judge_pair_accuracy", "mean_response_tokens")
    table = Table("setting", *(name.replace("_", " ") for name in shown), "seconds", "refused")
    document = {}
    for name, found in results.items():
        last = tiny.averages(found)[-1]
        refused = sum(len(result.document["refused"]) for result in found)
        seconds = sum(result.document["seconds"] for result in found) / len(found)
        table.add_row(name, *(_mean_and_error(last.get(column)) for column in shown), f"{seconds:.0f}", str(refused))
        document[name] = {**{column: last.get(column) for column in shown}, "refused": refused}
    console.print(table)
    print(json.dumps({"seeds": _seeds(seeds), "variants": document}))


def main() -> None:
    """Run the command line and end the process with the documented exit code."""
    for reason in (signal.SIGTERM, signal.SIGALRM):  # the second is the end of --hours
        signal.signal(reason, _interrupt)
    try:
        app()
    except SelfRewardError as error:
        console.print(str(error), style="red" if not isinstance(error, GateStop) else "yellow", highlight=False,
                      soft_wrap=True, markup=False)
        sys.exit(error.exit_code)
    except OSError as error:
        full, shut = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), (errno.EROFS, errno.EACCES, errno.EPERM)
        wrong = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
        if error.errno not in (*full, *shut, *wrong):
            raise
        advice = (
            "free space and give the same command again" if error.errno in full
            else "make it writable and give the same command again" if error.errno in shut
            else "move what is in the way, or give another --name or --runs-dir"
        )
        _say(f"{error.filename or 'the disk'}: {error.strerror}. What was committed is kept: {advice}.")
        sys.exit(UserError.exit_code)
    except SystemExit as end:  # typer has said what is wrong with the command, or turned an interrupt into this
        if end.code == INTERRUPTED:
            console.print("Interrupted; what was committed is kept. The same command goes on.", highlight=False)
        raise


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _overrides(settings: list[str]) -> dict[str, str]:
    wanted = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write it as --set key=value, for example --set dpo.beta=0.2")
        wanted[key.strip()] = value.strip()
    return wanted


def _seeds(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UserError(f"--seeds {text}: write them as 100-104 or 7,9")
        found += range(int(first), int(last or first) + 1)
    return found


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _mean_and_error(found: tuple[float, float] | None) -> str:
    return "–" if found is None else f"{found[0]:.3f} ± {found[1]:.3f}"


def _print_iterations(store: Store) -> None:
    rows = report.summary(store)["iterations"]
    if not rows:
        return
    table = Table("", *(f"M{row['iteration']}" for row in rows))
    for name in [name for name in rows[0] if name != "iteration"]:
        table.add_row(name.replace("_", " "), *("–" if row[name] is None else str(row[name]) for row in rows))
    console.print(table)


def _print_examples(store: Store) -> None:
    examples = report.before_after(store, 5)
    if not examples:
        return
    table = Table("held-out prompt", "M0", f"M{store.newest()}", title="before and after", title_justify="left")
    for one in examples:
        table.add_row(*(Text(part) for part in (one.prompt, one.before, one.after)))
    console.print(table)
