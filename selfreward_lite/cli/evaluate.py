"""`evaluate …`: compares models of a run, or models on open task sets.

See `run/evaluate.py`; `evaluate judge` is in `judge.py`.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Context, Option, Typer

from selfreward_lite import config
from selfreward_lite.cli.options import EXPORTED, RUNS, RunName, RunsDir, Seeds, parse_seeds
from selfreward_lite.cli.output import (
    Display,
    emit,
    hold_gpu,
    print_table,
    say,
    show_downloads,
    write_file,
)
from selfreward_lite.cli.prompts import SkipBad, read_own_prompts
from selfreward_lite.data import task_sets
from selfreward_lite.data.records import ModelId
from selfreward_lite.data.rows import describe_counts
from selfreward_lite.data.store import Store
from selfreward_lite.data.task_sets import SETS, TASK_SETS, TaskName
from selfreward_lite.method import metrics
from selfreward_lite.method.statistics import format_with_error
from selfreward_lite.method.task_card import build_card
from selfreward_lite.report import plots
from selfreward_lite.report import tasks as tasks_report
from selfreward_lite.run.evaluate import (
    EXACT,
    Evaluation,
    can_score_exactly,
    open_evaluation,
)
from selfreward_lite.run.steps.tasks import load_asked
from selfreward_lite.system.arguments import check_run_name
from selfreward_lite.system.errors import UserError

evaluate = Typer(
    invoke_without_command=True,
    help="Compare two models of a run, a judge with people, or models on open task sets.",
)
ModelName = Annotated[
    str | None, Option(help="A model of the run: base, M0, M1, …; by default the newest.")
]
Set = Annotated[
    list[str] | None, Option("--set", help="A setting of evaluation, engine or judge, as for run.")
]
FromFolder = Annotated[
    Path | None, Option("--from", help="A folder that holds the files already, by their names.")
]
CHANGEABLE = ("evaluation", "engine", "judge")


@evaluate.callback()
def compare(
    context: Context,
    name: RunName = "tiny",
    runs_dir: RunsDir = RUNS,
    model: ModelName = None,
    against: Annotated[
        str, Option(help="Another model of the run, or of another run, as other/M3.")
    ] = "M0",
    judge: Annotated[
        str | None,
        Option(
            help="exact (the exact score), a model of the run, or a GGUF file; by default "
            "exact where it works, else M0."
        ),
    ] = None,
    export: Annotated[
        Literal["alpaca_eval"] | None,
        Option(help="Do not compare; write the answers in this tool's format."),
    ] = None,
    prompts: Annotated[
        str | None, Option(help="With --export: prompts, as for run; by default the held-out ones.")
    ] = None,
    out: Annotated[Path, Option(help="With --export: folder to write to.")] = EXPORTED,
    skip_bad: SkipBad = False,
    set_: Set = None,
) -> None:
    """Compare two models' answers to the held-out prompts, in both orders, or export answers."""
    if command := context.invoked_subcommand:
        if any(_is_given(context, option) for option in context.params):
            raise UserError(f"write options of `evaluate {command}` after the word {command}")
        return
    _check_options(export, against, prompts, context)
    if judge is None:
        with Store.read(runs_dir / name) as store:
            judge = EXACT if can_score_exactly(store) else "M0"
    asks_models = judge != EXACT or prompts is not None
    with open_work(name, runs_dir, set_, asks_models=asks_models) as work:
        mine = model or find_newest(work)
        if export is not None:
            settings = work.run.settings.model_copy(update={"skip_bad": skip_bad})
            texts = None if prompts is None else read_own_prompts(prompts, settings).texts
            _export(work, mine, against, texts, out)
            return
        results = work.compare_answers(mine, against, judge)
    found = metrics.win_rates(results)
    rate = format_with_error((found["win_rate"], found["win_rate_error"]))
    rows = [
        [
            "prompts: won, tied, lost",
            f"{found['prompts']}: {found['won']}, {found['tied']}, {found['lost']}",
        ],
        [
            "win rate, a tie as half",
            f"{rate}, 95 %: {found['win_rate_low']:.3f} to {found['win_rate_high']:.3f}",
        ],
        [
            "win rate at equal length (not AlpacaEval's)",
            f"{found['length_controlled_win_rate']:.3f}, 95 %: "
            f"{found['length_controlled_low']:.3f} to {found['length_controlled_high']:.3f}",
        ],
        [
            "characters per answer, its and theirs",
            f"{found['mine_length']:.1f}, {found['their_length']:.1f}",
        ],
    ]
    if not math.isnan(found["flip_rate"]):
        rows += [
            ["verdicts that flip with the order", f"{found['flip_rate']:.1%}"],
            [
                "verdicts for the answer shown first",
                f"{found['first_share']:.1%} (50 % is unbiased)",
            ],
            ["verdicts that could not be read", f"{found['unread_share']:.1%}"],
        ]
    print_table(["", ""], rows, f"{mine} against {against}, decided by {judge}")
    emit({"run": name, "model": mine, "against": against, "judge": judge, **found})


def _is_given(context: Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name != "DEFAULT"


def _check_options(export: str | None, against: str, prompts: str | None, context: Context) -> None:
    """Raise UserError for an option that would be ignored."""
    if export is None:
        for option in ("prompts", "out", "skip_bad"):
            if _is_given(context, option):
                name = option.replace("_", "-")
                raise UserError(f"--{name} works only with --export alpaca_eval")
        if "/" in against:
            check_run_name(against.rpartition("/")[0])
        return
    if prompts is None and _is_given(context, "skip_bad"):
        raise UserError("--skip-bad is for a file of --prompts; leave it out")
    if _is_given(context, "judge"):
        raise UserError("--export writes answers, which nothing judges; leave --judge out")
    if prompts is not None and _is_given(context, "against"):
        raise UserError(
            "--export --prompts writes the answers of one model; leave --against out, and choose "
            "the model with --model"
        )
    if "/" in against:
        raise UserError(
            f"--export works on one run; export {against} with --name {against.rpartition('/')[0]}"
        )


def _export(work: Evaluation, mine: str, against: str, texts: list[str] | None, out: Path) -> None:
    """Write the answers of one model to own prompts, or of both to the held-out prompts."""
    models = dict.fromkeys([mine, against] if texts is None else [mine])
    exported = work.export_answers([*models], texts)
    files = []
    for model, rows in exported.rows.items():
        files.append(out / f"{work.run.store.folder.name}-{model}-alpaca_eval.json")
        write_file(files[-1], json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
        if empty := exported.empty[model]:
            say(f"{files[-1]}: outputs that are empty, since the model ended at once: {empty}")
    if exported.left_out:
        say(f"left out of every file: {describe_counts(exported.left_out)}")
    count = len({row["instruction"] for row in exported.rows[mine]})
    reference = f" --reference_outputs {files[1]}" if len(files) > 1 else ""
    say(f"answers per model: {count}. pip install alpaca_eval, set its judge's key, then run:")
    say(f"alpaca_eval --model_outputs {files[0]}{reference}")
    found = {"answers": count, "empty": exported.empty, "left_out": exported.left_out}
    emit({**found, "files": [*map(str, files)]})


@evaluate.command("fetch")
def fetch_sets(
    sets: Annotated[
        list[str] | None,
        Argument(metavar="SET", help=f"Of {', '.join(SETS)}; by default all."),
    ] = None,
    source: FromFolder = None,
) -> None:
    """Download open test sets, each file at its pinned commit; what is there is kept."""
    rows, found = [], {}
    for name in sets or SETS:
        one = task_sets.find_set(name)
        with show_downloads() as show:
            folder = task_sets.fetch_set(name, show, source)
        rows.append([name, one.title, f"{one.size / 1e6:.1f} MB", one.licence])
        found[name] = {"bytes": one.size, "licence": one.licence}
    print_table(["set", "", "size", "licence"], rows, str(folder))
    emit({"folder": str(folder), "sets": found})


@evaluate.command("tasks")
def measure_tasks(
    name: RunName = "tiny",
    runs_dir: RunsDir = RUNS,
    models: Annotated[
        str | None,
        Option(help="Models of the run; by default base, M0, if it was trained, and the newest."),
    ] = None,
    tasks: Annotated[str, Option(help="Task sets.")] = ",".join(TASK_SETS),
    samples: Annotated[int, Option(help="Answers to each prompt.", min=1)] = 4,
    limit: Annotated[
        int | None, Option(help="Prompts of each set at most, always the same.", min=1)
    ] = None,
    source: FromFolder = None,
    greedy: Annotated[
        bool, Option("--greedy", help="One answer to each prompt, always the likeliest token.")
    ] = False,
    set_: Set = None,
) -> None:
    """Ask open task sets, whose answers a program scores; says which model is better."""
    names = _split_tasks(tasks)
    settings_of_draw = ["evaluation.draw.temperature=0"] if greedy else []
    with open_work(name, runs_dir, [*(set_ or ()), *settings_of_draw]) as work:
        draw = work.run.settings.evaluation.draw
        first = "base,M0" if work.run.settings.seed_stage.trains else "base"  # else M0 is the base
        wanted = models or f"{first},{find_newest(work)}"
        chosen = [*dict.fromkeys(one.strip() for one in wanted.split(","))]
        for model in chosen:
            work.run.find_model(model)  # before the first is asked
        asked = load_asked(names, limit, samples, draw.temperature, source)
        answers = work.answer_tasks(chosen, asked)
    card, about = build_card(answers, chosen), asked.describe(draw)
    shown = tasks_report.describe_card(card, about, "now")
    for line in (shown.about, *shown.words):
        say(line)
    print_table(*shown.scores)
    print_table(*shown.verdicts)
    for note in shown.notes:
        say(note)
    emit({"run": name, "models": chosen, "asked": about, **tasks_report.card_to_json(card)})


def _split_tasks(text: str) -> list[TaskName]:
    """The names in a list with commas. Raises UserError for one that is no task set."""
    names: list[TaskName] = []
    for one in dict.fromkeys(part.strip() for part in text.split(",")):
        found = next((name for name in TASK_SETS if name == one), None)
        if found is None:
            task_sets.find_set(one)  # says more where the set is not offered
            raise UserError(
                f"{one} measures a judge, not answers; choose of {', '.join(TASK_SETS)}"
            )
        names.append(found)
    return names


@evaluate.command("paper-table")
def paper_table(
    seeds: Seeds = "420-427",  # only the 7 epochs of one arm were chosen by what they show
    runs_dir: Annotated[
        Path, Option(help="Folder for its runs; those that are there are resumed.")
    ] = Path("runs/paper-table"),
    out: Annotated[
        Path, Option(help="Folder for the table, as JSON and Markdown, and its figure.")
    ] = Path("."),
) -> None:
    """The papers' comparisons in miniature, in the tiny world; takes hours."""
    from selfreward_lite.bench import claim_tables, paper_table

    with Display() as watch:
        rows = paper_table.run_table(runs_dir, parse_seeds(seeds), watch, say)
    table = claim_tables.PaperTable(rows)
    print_table(*table.build_arm_table())
    command = f"python -m selfreward_lite evaluate paper-table --seeds {seeds}"
    document = {"command": command, **table.to_json()}
    with Store.read(runs_dir / f"seed-{rows[0].seed}" / rows[0].arm) as store:
        document |= {name: store.fact(name) for name in ("hardware", "versions")}
    say("Differences as mean (95 % interval over seeds):")
    for one in table.claims:
        say(f"{one.verdict}: {one.claim.name} {one.claim.text}")
        for found in one.found:
            say(f"    {found}")
    for note in document["notes"]:
        say(note)
    if spent := table.seconds_of_an_arm:
        say(
            f"an arm took {spent['median']:.0f} s (median), the slowest {spent['most']:.0f} s, "
            "without the shared seed stage"
        )
    write_file(out / "paper-table.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    write_file(out / "paper-table.md", table.to_markdown())
    plots.draw_curves(table.panels(), height=1.5 * plots.HEIGHT).savefig(
        out / "paper-table.png", dpi=110
    )
    verdicts = {one.claim.name: one.verdict for one in table.claims}
    emit({"seeds": document["seeds"], "verdicts": verdicts})


def find_newest(work: Evaluation) -> str:
    """The name of the newest model. Raises UserError where there is none."""
    newest = work.run.store.newest()
    if newest is None:
        raise UserError(f"{work.run.store.folder.name} has no model yet; resume it with `run`")
    return ModelId(newest).name


@contextmanager
def open_work(
    name: str, runs_dir: Path, set_: list[str] | None, *, asks_models: bool = True
) -> Iterator[Evaluation]:
    """A run, open for questions with changed settings; holds the GPU if models are asked."""
    from selfreward_lite.run.runtime import open_runtime

    overrides = config.parse_overrides(set_)
    if other := [key for key in overrides if key.split(".")[0] not in CHANGEABLE]:
        raise UserError(
            f"--set {other[0]}: only {', '.join(CHANGEABLE)} can be set here; the rest is the run's"
        )
    if overrides and not asks_models:
        raise UserError(
            "--set has no effect, since no model is asked; name a model as --judge, or add "
            "--prompts"
        )
    with Store.read(runs_dir / name) as store:
        settings = config.override(store.settings().model_dump(mode="json"), overrides)
        with (
            hold_gpu(f"evaluate {name}") if asks_models else nullcontext(),
            open_runtime(bare=True) as runtime,
            Display() as watch,
            open_evaluation(store, settings, runtime, watch) as work,
        ):
            yield work
