"""The command line: `run` and what concerns one run or this machine; other groups are beside it.

Progress goes to stderr; the last line of stdout is one JSON document. Exit codes: 0 done,
1 a failure (a bug keeps its traceback), 2 something the user can fix, 3 stopped by a gate,
130 interrupted and resumable.
"""

import json
import math
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option, Typer

from selfreward_lite import config
from selfreward_lite.cli import advice, bench, evaluate, export, judge, plan
from selfreward_lite.cli.options import (
    RUNS,
    Commands,
    Iterations,
    RunName,
    RunsDir,
    Set,
    SkipBad,
    check_name,
    check_preset,
)
from selfreward_lite.cli.output import (
    Display,
    emit,
    hold_gpu,
    print_findings,
    print_table,
    say,
    show_downloads,
    write_file,
)
from selfreward_lite.cli.servers import check_servers
from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub
from selfreward_lite.data.store import Store
from selfreward_lite.report import early_warnings, passport, summary, tasks
from selfreward_lite.report.constraints import build_constraint_table
from selfreward_lite.run.backup import Backup, check_place, has_copy, restore
from selfreward_lite.run.prune import find_parts, remove_parts
from selfreward_lite.system import doctor, llama_build
from selfreward_lite.system.errors import GateStop, SelfRewardError, UserError
from selfreward_lite.system.files import format_bytes
from selfreward_lite.system.surroundings import (
    check_surroundings,
    expand_user,
    leave_terminal,
)

app = Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A language model that improves itself, on one GPU.",
)
app.add_typer(bench.bench, name="bench")
app.add_typer(export.export, name="export")
evaluate.evaluate.command("judge")(judge.measure_judge)
app.add_typer(evaluate.evaluate, name="evaluate")
app.command("plan")(plan.show)
INTERRUPTED = 130
_received: list[int] = []  # signals that ended this command
SHOWN = 300  # characters of an example


@app.command()
def run(
    preset: Annotated[
        str | None,
        Option(
            help="Preset to run; by default tiny, which needs no download.", callback=check_preset
        ),
    ] = None,
    name: Annotated[
        str | None,
        Option(help="Name of the run; by default the preset's name.", callback=check_name),
    ] = None,
    runs_dir: RunsDir = RUNS,
    iterations: Iterations = None,
    seed: Annotated[int | None, Option(help="Seed of all randomness.", min=0)] = None,
    set_: Set = None,
    gates: Annotated[
        Literal["stop", "report"] | None,
        Option(help="Whether a failed gate ends the run; report holds for this command."),
    ] = None,
    prompts: Annotated[
        str | None, Option(help="Your own prompts: a file, a folder, or owner/name on the hub.")
    ] = None,
    hours: Annotated[
        float | None,
        Option(
            help="Finish within this many hours, with fewer prompts if needed.", min=0, max=8760
        ),
    ] = None,
    mirror: Annotated[
        str | None,
        Option(
            help="Keep a copy of the run here: a folder, such as a mounted drive, or "
            "s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, hf://buckets/OWNER/NAME."
        ),
    ] = None,
    restore_from: Annotated[
        str | None,
        Option(help="Restore the run from its copy, a folder or a bucket, if it is not here."),
    ] = None,
    skip_bad: SkipBad = False,
) -> None:
    """Start a run, or resume it: the same command does both."""
    from selfreward_lite.run import loop, prepare, readiness
    from selfreward_lite.run.runtime import open_runtime

    path = prompts
    if prompts and not hub.parse_repository(prompts):
        path = str(expand_user(prompts).absolute())
    options = {
        "iterations": iterations,
        "seed": seed,
        "gates.mode": gates,
        "prompts.file": json.dumps(path) if path else None,
        "skip_bad": "true" if skip_bad else None,
    }
    overrides = config.parse_overrides(set_, options)
    folder = runs_dir / (name or preset or "tiny")
    if mirror is not None:
        check_place(mirror)  # as below
    if restore_from is not None:
        _restore(folder, restore_from, mirror)
    if not folder.exists():
        config.load(preset or "tiny", overrides)  # a mistyped command leaves no folder behind
    deadline = math.inf
    if hours is not None:
        deadline = time.monotonic() + hours * 3600
        # A safeguard: what is fitted to the hours should end before.
        signal.setitimer(signal.ITIMER_REAL, max(hours * 3600, 1e-3))
    with Store.write(folder) as store:

        def check(chosen: Settings) -> None:
            if not loop.is_finished(store, chosen):
                with hold_gpu(f"run {folder.name}"):  # what is tried must not disturb another run
                    readiness.check_machine(chosen, runs_dir, say)

        with show_downloads() as show:
            settings = prepare.load_or_create_settings(store, overrides, preset, show, check)
        say(f"{folder}: {_describe_models(settings)}")
        if loop.is_finished(store, settings):
            say(
                f"{folder} is finished: M{store.newest()} is its newest model. "
                f"Add --iterations {settings.iterations + 1} for another iteration."
            )
        copies = Backup(store, mirror, say) if mirror is not None else None
        try:
            with (
                hold_gpu(f"run {folder.name}"),
                open_runtime(settings.backend) as runtime,
                Display() as watch,
            ):
                loop.run(
                    store, settings, runtime, copies.watching(watch) if copies else watch, deadline
                )
        finally:
            if copies:
                copies.copy(last=True)
            document = summary.summarize_run(store)
            print_table(*summary.build_run_table(document["iterations"]))
            print_table(*summary.build_exact_table(document))
            print_table(*build_constraint_table(store))
            head, rows = summary.build_example_table(store, 5)
            short = [
                [text if len(text) <= SHOWN else f"{text[:SHOWN]} …" for text in row]
                for row in rows
            ]
            print_table(head, short, "before and after")
            emit(document)


def _describe_models(settings: Settings) -> str:
    """The base, and what generates and judges."""
    where = f"llama.cpp runs on the {'GPU' if settings.engine.gpu_layers else 'CPU'}"
    if settings.engine.kind == "server":
        where = f"{', '.join(settings.engine.servers)} generate and judge"
    return f"{settings.model.base} in {settings.model.quantisation}; {where}"


def _restore(folder: Path, restore_from: str, mirror: str | None) -> None:
    """Restore a run that is not here, and say what was done."""
    here = (folder / "run.sqlite").exists()
    # One command may start and resume a run with the same place for both: at first it has no copy.
    same = mirror is not None and Path(restore_from) == Path(mirror)
    if here or not same or has_copy(restore_from, folder.name):
        restored = restore(restore_from, folder)
        done = "restored from its copy" if restored else "is here already, so not restored"
        say(f"{folder}: {done}")


@app.command()
def status(name: RunName = "tiny", runs_dir: RunsDir = RUNS) -> None:
    """Show how far a run is: stages, dropped items, times, early warnings. Works while it runs."""
    with Store.read(runs_dir / name) as store:
        document = summary.summarize_run(store)
        head, rows = summary.build_stage_table(store.stages())
        print_table(head[:-1], [row[:-1] for row in rows], str(store.folder))
        for model, stage, *_, left_out in rows:  # in a column of the table they would be narrow
            if left_out:
                say(f"left out of {model} {stage}: {left_out}")
        for build in (
            summary.build_seed_table,
            summary.build_time_table,
            summary.build_prediction_table,
            summary.build_memory_table,
            summary.build_training_table,
            summary.build_hours_table,
        ):
            print_table(*build(store))
        print_table(*summary.build_run_table(document["iterations"]))
        print_table(*summary.build_exact_table(document))
        print_table(*build_constraint_table(store))
        readings = early_warnings.early_warnings(store)
        shown = [(one.about, one.words) for one in tasks.load_reports(store)]
        shown += [(one.about, one.words) for one in passport.load_reports(store)]
    print_table(*early_warnings.build_sign_table(readings), "early warnings")
    for line in early_warnings.list_advice(readings):
        say(line)
    for about, words in shown:
        say(about)
        for line in words:
            say(line)
    warned = [
        {"model": one.model, "sign": one.sign.name, "value": one.value}
        for one in readings
        if one.warns
    ]
    emit({**document, "early_warnings": warned})


@app.command("report")
def write_report(
    name: Annotated[str, Argument(metavar="RUN", help="Name of the run.", callback=check_name)],
    runs_dir: RunsDir = RUNS,
    out: Annotated[Path | None, Option(help="File to write; by default RUN.html, here.")] = None,
) -> None:
    """Write a run as one HTML page: tables, plots, examples, pairs, gates, settings."""
    from selfreward_lite.report import html

    out = out or Path(f"{name}.html")
    with Store.read(runs_dir / name) as store:
        page = html.render_page(store)
    write_file(out, page)
    say(f"{out}: open it in a browser; it needs no network")
    emit({"run": name, "out": str(out), "bytes": out.stat().st_size})


@app.command()
def serve(
    name: Annotated[
        str | None,
        Argument(
            metavar="[RUN]", help="Name of the run; by default all runs.", callback=check_name
        ),
    ] = None,
    runs_dir: RunsDir = RUNS,
    port: Annotated[int, Option(help="Port to listen at.", min=1, max=65535)] = 8000,
    listen: Annotated[
        bool, Option("--listen", help="Let others on the network in; needs SELFREWARD_KEY.")
    ] = False,
) -> None:
    """Serve every model of a run as OpenAI's chat API, for programs that know it.

    A key for callers is read from the environment variable SELFREWARD_KEY.
    """
    from selfreward_lite.app.library import RunLibrary
    from selfreward_lite.app.openai_api import build_server, check_key, run_server

    key = check_key(listen, os.environ.get("SELFREWARD_KEY"))
    library = RunLibrary(runs_dir.absolute())
    if name is not None:
        library.check_choice(name)
        library.models(name)  # one without a base is said at once
    models = "NAME/MODEL" if name is None else f"{name}/MODEL"
    say(f"http://127.0.0.1:{port}/v1 serves the models {models}; stop it with Ctrl-C")
    run_server(build_server(library, key, name), library, port, listen)


@app.command()
def verify(name: RunName = "tiny", runs_dir: RunsDir = RUNS) -> None:
    """Check a run for damage: its database, every id and text, the files of every model."""
    folder = runs_dir / name
    with Store.read(folder) as store:
        faults = store.faults()
        if store.is_done(0, "base") and not (folder / "base").exists():
            say(f"{folder / 'base'}: not here, as after `prune`; `run` makes it again")
    for fault in faults:
        say(fault)
    emit({"run": folder.name, "faults": len(faults)})
    if faults:
        raise UserError(
            f"{folder} has faults: {len(faults)}; restore it from a copy, or start a new "
            "run with another --name"
        )


@app.command()
def accept(name: RunName = "tiny", runs_dir: RunsDir = RUNS) -> None:
    """Promote the model that a gate refused; `run` then continues from it."""
    from selfreward_lite.run.steps import promotion

    folder = runs_dir / name
    Store.read(folder).close()  # a mistyped name makes no folder
    with Store.write(folder) as store:
        candidate = promotion.accept(store)
        for gate, reason in store.refusals(candidate).items():
            say(f"accepted anyway: {gate}: {reason}")
    emit({"run": folder.name, "accepted": candidate})


@app.command()
def prune(
    name: RunName = "tiny",
    runs_dir: RunsDir = RUNS,
    models: Annotated[
        bool, Option("--models", help="Also remove the models between M0 and the newest.")
    ] = False,
    yes: Annotated[
        bool, Option("--yes", help="Remove what is listed; without it nothing is removed.")
    ] = False,
) -> None:
    """Make an old run smaller: remove what can be made again. Records stay."""
    folder = runs_dir / name
    Store.read(folder).close()
    with Store.write(folder) as store:
        parts = find_parts(store, models=models)
        for part in parts:
            say(f"{part.path}: {format_bytes(part.size)}, {part.effect}")
        freed = remove_parts(store, parts) if yes else 0
    size = format_bytes(sum(part.size for part in parts))
    say(f"{format_bytes(freed)} freed" if yes else f"nothing was removed; --yes removes {size}")
    removed = [part.path.name for part in parts] if yes else []
    emit({"run": folder.name, "removed": removed, "freed": freed})


@app.command("doctor")
def check_machine(
    names: Annotated[
        list[str] | None,
        Argument(metavar="NAME", help="With --base: presets, or what model.base can be."),
    ] = None,
    base: Annotated[
        bool,
        Option(
            "--base",
            help="Check base models instead, by their small files (about 10 MB each); "
            "without a NAME those of all presets.",
        ),
    ] = False,
    servers: Annotated[
        str | None,
        Option(
            metavar="RUN",
            help="Instead, print how to start servers for a run, and ask those it names.",
            callback=check_name,
        ),
    ] = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Check this machine, base models or servers, and print what fixes each problem."""
    if names and not base:
        raise UserError(f"doctor {' '.join(names)}: names are for `doctor --base`")
    if servers is not None:
        check_servers(runs_dir / servers)
        return
    if base:
        _check_bases(names or [])
        return
    say("trying packages, GPU, torch and llama.cpp; with a GPU a minute or two …")
    found = doctor.findings(doctor.examine(runs_dir))
    bad = print_findings(found)
    if bad:
        raise UserError(
            f"not ready: {', '.join(bad)}; give the commands above, then "
            "`python -m selfreward_lite doctor` again"
        )


def _check_bases(names: list[str]) -> None:
    """Print whether bases can be used, before gigabytes of weights are downloaded."""
    from selfreward_lite.run import bases

    with show_downloads() as show:
        found = [
            bases.examine_base(name, settings, show)
            for name, settings in bases.choose_bases(names).items()
        ]
    bad = print_findings(found)
    if bad:
        raise UserError(
            f"a run would refuse {', '.join(bad)}; choose another base (docs/models.md), or report "
            "the lines above"
        )


@app.command()
def llama(
    wheels: Annotated[
        list[Path] | None,
        Option(
            help="Folder with wheels to look in; the last one given keeps a wheel that is built."
        ),
    ] = None,
) -> None:
    """Make llama.cpp use this machine's GPU: a kept wheel, a prebuilt one, or compiled."""
    found = llama_build.install(wheels or [], say)
    if found.state == "bad":
        raise UserError(f"llama.cpp {found.words}; `python -m selfreward_lite doctor` says more")
    say(f"llama.cpp {found.words}")
    emit(asdict(found))


def main() -> None:
    """Run the command line and end the process with the documented exit code."""
    _catch_signals()
    try:
        check_surroundings()
        app()
    except SelfRewardError as error:
        say(str(error), style="yellow" if isinstance(error, GateStop) else "red")
        sys.exit(error.exit_code)
    except MemoryError:
        say(advice.MEMORY)
        sys.exit(UserError.exit_code)
    except (OSError, RuntimeError) as error:
        line = advice.explain(error)
        if line is None:
            raise
        say(line)
        sys.exit(UserError.exit_code)
    except SystemExit as end:  # typer has printed its error, or turned an interrupt into this
        if end.code == INTERRUPTED:
            why = "--hours are over" if signal.SIGALRM in _received else "Interrupted"
            say(f"{why}; what was committed is kept. The same command resumes.")
        raise


def _catch_signals() -> None:
    """Let what asks a command to end interrupt it, also where the starter held that back.

    A closed terminal (SIGHUP) does so too, unless `nohup` has the command ignore it. SIGALRM is the
    end of --hours.
    """
    reasons = {signal.SIGTERM, signal.SIGALRM}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        reasons.add(signal.SIGHUP)
    for reason in reasons:
        signal.signal(reason, _interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*reasons, signal.SIGINT})


def _interrupt(number: int, _: object) -> None:
    _received.append(number)
    if number == signal.SIGHUP:
        leave_terminal()
    raise KeyboardInterrupt
