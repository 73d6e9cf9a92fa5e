"""The command line: reads arguments, prints answers. Everything else is elsewhere.

Progress goes to stderr; the last line of stdout is one JSON document. Exit codes: 0 done, 1 a failure (a bug of ours keeps
its traceback), 2 something the user can mend, 3 stopped by a gate, 130 interrupted and resumable.
"""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from selfreward_lite import config
from selfreward_lite.cli import plan
from selfreward_lite.cli.bench import bench
from selfreward_lite.cli.evaluate import evaluate
from selfreward_lite.cli.export import export
from selfreward_lite.cli.output import Display, console, downloads, say
from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub
from selfreward_lite.data.store import Store
from selfreward_lite.report import early_warnings, summary
from selfreward_lite.run.backup import Mirror, restore
from selfreward_lite.run.prune import prunable, remove
from selfreward_lite.system import gpu
from selfreward_lite.system.doctor import need_card
from selfreward_lite.system.errors import GateStop, SelfRewardError, UserError
from selfreward_lite.system.files import format_bytes
from selfreward_lite.system.gpu import list_gpus

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A language model that improves itself, on one card.",
)
app.add_typer(bench, name="bench")
app.add_typer(export, name="export")
app.add_typer(evaluate, name="evaluate")
app.command("plan")(plan.show)
INTERRUPTED = 130
SHOWN = 300  # characters of an example
RunsDir = Annotated[Path, typer.Option(help="Folder that holds all runs.")]
Name = Annotated[str | None, typer.Option(help="The run's name; by default the preset's.")]


@app.command()
def run(
    preset: Annotated[
        str | None, typer.Option(help="What to run; by default tiny, which needs no download.")
    ] = None,
    name: Name = None,
    runs_dir: RunsDir = Path("runs"),
    iterations: Annotated[
        int | None, typer.Option(help="Iterations after the seed stage, in all.", min=0)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of everything that is drawn.", min=0)
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting, as in --set dpo.beta=0.2; repeatable."),
    ] = None,
    gates: Annotated[
        Literal["stop", "report"] | None,
        typer.Option(help="Whether a failed gate ends the run; report holds for one command."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="Your own prompts: a file, a folder, or owner/name on the hub."),
    ] = None,
    hours: Annotated[
        float | None,
        typer.Option(help="Be done within so many hours: fewer prompts.", min=0, max=8760),
    ] = None,
    mirror: Annotated[
        Path | None,
        typer.Option(help="Keep a copy of the run in this folder, as on a mounted drive."),
    ] = None,
    restore_from: Annotated[
        Path | None,
        typer.Option(help="Go on from the copy in this folder, if the run is not here."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out bad lines of data files, and count them.")
    ] = False,
) -> None:
    """Start a run, or go on with it: the same command resumes."""
    wanted = config.parse_overrides(set_ or [])
    wanted |= {
        key: str(value)
        for key, value in (("iterations", iterations), ("seed", seed))
        if value is not None
    }
    wanted |= {"gates.mode": gates} if gates else {}
    if prompts:
        wanted["prompts.file"] = json.dumps(
            prompts if hub.named(prompts) else str(Path(prompts).absolute())
        )
    wanted |= {"skip_bad": "true"} if skip_bad else {}
    folder = runs_dir / (name or preset or "tiny")
    if restore_from is not None and not (
        restore_from == mirror and not (restore_from / folder.name).exists()
    ):
        # The same folder for both is how a run is begun and gone on with by one command: the first time there is no copy.
        say(
            f"{folder}: "
            + (
                "put back from its copy"
                if restore(restore_from, folder)
                else "is here already, so not put back"
            )
        )
    if not folder.exists():
        config.load(preset or "tiny", wanted)  # a mistyped command leaves no folder behind
    _run(folder, wanted, preset, hours, mirror)


def _run(
    folder: Path,
    wanted: dict[str, str],
    preset: str | None,
    hours: float | None,
    mirror: Path | None,
) -> None:
    from selfreward_lite.run import loop, prepare
    from selfreward_lite.run.runtime import open_runtime

    deadline = math.inf if hours is None else time.monotonic() + hours * 3600
    if hours is not None:
        signal.setitimer(
            signal.ITIMER_REAL, max(hours * 3600, 1e-3)
        )  # what is fitted to the hours should never need it
    with Store.write(folder) as store:

        def check(chosen: Settings) -> None:
            if not loop.finished(store, chosen):
                need_card(chosen.engine.gpu_layers)

        with downloads() as show:
            settings = prepare.load_or_create_settings(store, wanted, preset, show, check)
        say(
            f"{folder}: {settings.model.base} in {settings.model.quantisation}; llama.cpp runs on "
            f"{'the card' if settings.engine.gpu_layers else 'the CPU'}"
        )
        if loop.finished(store, settings):
            say(
                f"{folder} is finished: M{store.newest()} is its newest model. Go on from it with "
                f"--iterations {settings.iterations + 1}."
            )
        copies = Mirror(store, mirror, say) if mirror else None
        try:
            with (
                _card(folder.name),
                open_runtime(settings.backend) as runtime,
                Display(console) as watch,
            ):
                loop.run(
                    store, settings, runtime, copies.watching(watch) if copies else watch, deadline
                )
        finally:
            if copies:
                copies.copy(last=True)
            document = summary.summarize_run(store)
            _print_table(summary.build_run_table(document["iterations"]))
            _print_examples(store)
            print(json.dumps(document), flush=True)


def _card(name: str) -> AbstractContextManager[None]:
    """The card, where there is one, for this run alone: an app that chats on it gives it up."""
    return gpu.held(f"run {name}, process {os.getpid()}", say) if list_gpus() else nullcontext()


@app.command()
def status(name: Name = None, runs_dir: RunsDir = Path("runs")) -> None:
    """Show how far a run is; works while it runs."""
    with Store.read(runs_dir / (name or "tiny")) as store:
        document = summary.summarize_run(store)
        for table in (
            summary.build_stage_table(store),
            summary.build_seed_table(store),
            summary.build_time_table(store),
            summary.build_prediction_table(store),
            summary.build_memory_table(store),
            summary.build_run_table(document["iterations"]),
        ):
            _print_table(table)
        readings = early_warnings.early_warnings(store)
        _print_table(early_warnings.build_sign_table(readings), "early warnings")
        for words in early_warnings.list_advice(readings):
            say(words)
        warned = [
            {"model": one.model, "sign": one.sign.name, "value": one.value}
            for one in readings
            if one.warns
        ]
        print(json.dumps({**document, "early_warnings": warned}))


@app.command("report")
def write_report(
    name: Annotated[str, typer.Argument(metavar="RUN", help="The run's name.")],
    runs_dir: RunsDir = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(help="The file to write; by default RUN.html, here.")
    ] = None,
) -> None:
    """Write a run as one page that opens anywhere: tables, plots, examples, pairs, gates, settings."""
    from selfreward_lite.report import html

    out = out or Path(f"{name}.html")
    with Store.read(runs_dir / name) as store:
        page = html.page(store)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    say(f"{out}: open it in a browser; it needs no network")
    print(json.dumps({"run": name, "out": str(out), "bytes": out.stat().st_size}))


@app.command()
def verify(name: Name = None, runs_dir: RunsDir = Path("runs")) -> None:
    """Check a run: the file's integrity, every id, every text, every model's manifest."""
    with Store.read(runs_dir / (name or "tiny")) as store:
        faults = store.faults()
        for fault in faults:
            console.print(fault, highlight=False, soft_wrap=True, markup=False)
        print(json.dumps({"run": store.folder.name, "faults": len(faults)}))
        if faults:
            raise UserError(
                f"{len(faults)} faults in {store.folder}; restore it from a copy, or start a new --name"
            )


@app.command()
def accept(name: Name = None, runs_dir: RunsDir = Path("runs")) -> None:
    """Promote the candidate that a gate has refused, by hand; `run` then goes on from it."""
    from selfreward_lite.run.steps import promotion

    folder = runs_dir / (name or "tiny")
    Store.read(folder).close()  # a mistyped name makes no folder
    with Store.write(folder) as store:
        candidate = promotion.accept(store)
        for gate, (passed, reason) in store.gates(candidate).items():
            if not passed:
                console.print(
                    f"accepted all the same: {gate}: {reason}",
                    highlight=False,
                    soft_wrap=True,
                    markup=False,
                )
        print(json.dumps({"run": folder.name, "accepted": candidate}))


@app.command()
def prune(
    name: Name = None,
    runs_dir: RunsDir = Path("runs"),
    models: Annotated[
        bool, typer.Option("--models", help="Remove the models between M0 and the newest too.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove what is listed; without it nothing is removed.")
    ] = False,
) -> None:
    """Make an old run smaller: what can be made again, and models between if asked for. Records stay."""
    folder = runs_dir / (name or "tiny")
    Store.read(folder).close()
    with Store.write(folder) as store:
        parts = prunable(store, models=models)
        for part in parts:
            say(f"{part.path}: {format_bytes(part.size)}, {part.words}")
        freed = remove(store, parts) if yes else 0
    say(
        f"{format_bytes(freed)} freed"
        if yes
        else f"nothing was removed; --yes removes {format_bytes(sum(one.size for one in parts))}"
    )
    print(
        json.dumps(
            {
                "run": folder.name,
                "removed": [part.path.name for part in parts] if yes else [],
                "freed": freed,
            }
        )
    )


@app.command()
def doctor(runs_dir: RunsDir = Path("runs")) -> None:
    """Say what this machine can do, and the command that mends what it cannot; exit code 2 where a run would fail."""
    from selfreward_lite.system import doctor as doctor_checks

    say("asking packages, card, torch and llama.cpp …")
    found = doctor_checks.findings(doctor_checks.examine(runs_dir))
    colours = {"good": "green", "note": "yellow", "bad": "red"}
    for one in found:
        console.print(
            Text(f"{one.what:<10} ", style=colours[one.state]) + Text(one.words), soft_wrap=True
        )
        if one.mend:
            console.print(Text(f"{'':<10} → {one.mend}"), soft_wrap=True)
    print(json.dumps([asdict(one) for one in found]))
    bad = [one.what for one in found if one.state == "bad"]
    if bad:
        raise UserError(
            f"not ready: {', '.join(bad)}; give the commands above, then `python -m selfreward_lite doctor` again"
        )


@app.command()
def llama(
    wheels: Annotated[
        list[Path] | None,
        typer.Option(
            help="A folder to take a wheel that fits from; the last one given keeps what is made."
        ),
    ] = None,
) -> None:
    """Make llama.cpp use the card of this machine: from a kept wheel, else compiled; on the CPU where there is no card."""
    from selfreward_lite.system import llama_build

    found = llama_build.install(wheels or [], say)
    if found.state == "bad":
        raise UserError(
            f"llama.cpp {found.words}" + (f"; by hand: {found.mend}" if found.mend else "")
        )
    say(f"llama.cpp {found.words}")
    print(json.dumps(asdict(found)))


def main() -> None:
    """Run the command line and end the process with the documented exit code."""
    for reason in (signal.SIGTERM, signal.SIGALRM):  # the second is the end of --hours
        signal.signal(reason, _interrupt)
    try:
        app()
    except SelfRewardError as error:
        console.print(
            str(error),
            style="red" if not isinstance(error, GateStop) else "yellow",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
        sys.exit(error.exit_code)
    except OSError as error:
        full, shut = (
            (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
            (errno.EROFS, errno.EACCES, errno.EPERM),
        )
        wrong = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
        if error.errno not in (*full, *shut, *wrong):
            raise
        advice = (
            "free space and give the same command again"
            if error.errno in full
            else "make it writable and give the same command again"
            if error.errno in shut
            else "move what is in the way, or give another --name or --runs-dir"
        )
        say(
            f"{error.filename or 'the disk'}: {error.strerror}. What was committed is kept: {advice}."
        )
        sys.exit(UserError.exit_code)
    except (
        SystemExit
    ) as end:  # typer has said what is wrong with the command, or turned an interrupt into this
        if end.code == INTERRUPTED:
            console.print(
                "Interrupted; what was committed is kept. The same command goes on.",
                highlight=False,
            )
        raise


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _print_table(table: summary.Table, title: str | None = None) -> None:
    """Print a table, with brackets as they are; nothing for a table without rows."""
    if table.rows:
        shown = Table(*table.head, title=title, title_justify="left")
        for row in table.rows:
            shown.add_row(*(Text(cell) for cell in row))
        console.print(shown)


def _print_examples(store: Store) -> None:
    head, rows = summary.build_example_table(store, 5)
    short = [[text if len(text) <= SHOWN else f"{text[:SHOWN]} …" for text in row] for row in rows]
    _print_table(summary.Table(head, short), "before and after")
