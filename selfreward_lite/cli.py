"""The command line: reads arguments, prints answers. Everything else is elsewhere.

Progress goes to stderr; the last line of stdout is one JSON document. Exit codes: 0 done, 1 a failure (a bug of ours keeps
its traceback), 2 something the user can mend, 3 stopped by a gate, 130 interrupted and resumable.
"""

from __future__ import annotations

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
    gates: Annotated[Literal["stop", "report"] | None, typer.Option(help="Whether a failed gate ends the run.")] = None,
) -> None:
    """Start a run, or go on with it: the same command resumes."""
    from selfreward_lite import loop
    from selfreward_lite.display import Display
    from selfreward_lite.tools import real_tools

    wanted = _overrides(set_ or [])
    wanted |= {key: str(value) for key, value in (("iterations", iterations), ("seed", seed)) if value is not None}
    wanted |= {"gates.mode": gates} if gates else {}
    folder = runs_dir / (name or preset or "tiny")
    if not folder.exists():
        config.load(preset or "tiny", wanted)  # a mistyped command leaves no folder behind
    with Store.write(folder) as store:
        settings = loop.settle(store, wanted, preset)
        if loop.finished(store, settings):
            console.print(f"{folder} is finished: M{store.newest()} is its newest model. Go on from it with "
                          f"--iterations {settings.iterations + 1}.", highlight=False, soft_wrap=True)
        try:
            with Display(console) as watch:
                loop.run(store, settings, real_tools(), watch)
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


def main() -> None:
    """Run the command line and end the process with the documented exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except SelfRewardError as error:
        console.print(str(error), style="red" if not isinstance(error, GateStop) else "yellow", highlight=False,
                      soft_wrap=True, markup=False)
        sys.exit(error.exit_code)
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
