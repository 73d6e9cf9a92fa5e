"""`python -m selfreward_lite evaluate …`: reads arguments, prints tables. What is asked and computed is in the modules above.

Tables go to stderr; the last line of stdout is one JSON document.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from selfreward_lite import config
from selfreward_lite.cli.output import Display, console, downloads, say
from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub, prompt_files, ranked, votes
from selfreward_lite.data.ranked import RankedPrompt
from selfreward_lite.data.records import ModelId, Prompt, Response
from selfreward_lite.data.store import Store
from selfreward_lite.method import metrics
from selfreward_lite.method.statistics import format_with_error, nan_to_none
from selfreward_lite.report import plots
from selfreward_lite.run.evaluate import EXACT, Evaluation, open_evaluation
from selfreward_lite.system import gpu
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.gpu import list_gpus

evaluate = typer.Typer(
    invoke_without_command=True,
    help="Hold models of a run against each other, or a judge against people.",
)
RunsDir = Annotated[Path, typer.Option(help="Folder that holds all runs.")]
RunName = Annotated[str, typer.Option(help="The run.")]
Model = Annotated[
    str | None, typer.Option(help="A model of the run: base, M0, M1, …; by default the newest.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of evaluation, judge or engine, as for run."),
]
FREE = ("evaluation", "engine", "judge")


@evaluate.callback()
def compare(
    context: typer.Context,
    name: RunName = "tiny",
    runs_dir: RunsDir = Path("runs"),
    model: Model = None,
    against: Annotated[
        str, typer.Option(help="Another model of the run, or of another run, as other/M3.")
    ] = "M0",
    judge: Annotated[
        str | None,
        typer.Option(
            help="exact (of the tiny world), a model of the run, or a GGUF file; by default exact where it can be, else M0.",
        ),
    ] = None,
    export: Annotated[
        Literal["alpaca_eval"] | None,
        typer.Option(help="Write answers as that tool reads them instead."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="With --export: the prompts, as for run; else the held-out ones."),
    ] = None,
    out: Annotated[Path, typer.Option(help="With --export: the folder to write to.")] = Path(
        "exported"
    ),
    set_: Set = None,
) -> None:
    """Hold two models' answers to the held-out prompts against each other, in both orders; or export answers."""
    if context.invoked_subcommand is not None:
        if any(_given(context, option) for option in context.params):
            raise UserError(
                f"options of `evaluate {context.invoked_subcommand}` stand behind {context.invoked_subcommand}"
            )
        return
    _only_together(export, against, prompts, context)
    decided = judge or (EXACT if _exact(runs_dir / name) else "M0")
    with _examination(name, runs_dir, set_, engine=decided != EXACT or prompts is not None) as work:
        mine = model or _newest(work)
        if export is not None:
            _export(work, (mine, against), prompts, out)
            return
        met = work.compare_answers(mine, against, decided)
    found = metrics.win_rates(met)
    table = Table(
        "", "", title=f"{mine} against {against}, decided by {decided}", title_justify="left"
    )
    for title, words in _head_to_head(found):
        table.add_row(title, words)
    console.print(table)
    print(
        json.dumps(
            {"run": name, "model": mine, "against": against, "judge": decided, **_plain(found)}
        )
    )


def _given(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name != "DEFAULT"


def _only_together(
    export: str | None, against: str, prompts: str | None, context: typer.Context
) -> None:
    """Raise UserError for an option that would be ignored."""
    if export is None and (prompts is not None or _given(context, "out")):
        raise UserError(
            f"--{'prompts' if prompts is not None else 'out'} is for --export alpaca_eval alone"
        )
    if export is not None and _given(context, "judge"):
        raise UserError("--export writes answers, which nobody judges; leave --judge out")
    if export is not None and prompts is not None and _given(context, "against"):
        raise UserError(
            "--export --prompts writes one model's answers; leave --against out, and name another as --model"
        )
    if export is not None and "/" in against:
        raise UserError(
            f"--export is of one run; export {against} with --name {against.rpartition('/')[0]}"
        )


def _exact(folder: Path) -> bool:
    """Whether answers to a run's held-out prompts need no judge, so that nothing has to wait for the card."""
    with Store.read(folder) as store:
        return (
            store.count(Prompt, origin="held_out") > 0
        )  # elsewhere than in the tiny world they are ranked ones


def _head_to_head(found: dict[str, float]) -> Iterator[tuple[str, str]]:
    yield (
        "prompts: won, tied, lost",
        f"{found['prompts']}: {found['won']}, {found['tied']}, {found['lost']}",
    )
    yield (
        "win rate, a tie as half",
        (
            f"{format_with_error((found['win_rate'], found['win_rate_error']))}, 95 %: {found['win_rate_low']:.3f} to "
            f"{found['win_rate_high']:.3f}"
        ),
    )
    yield (
        "win rate at equal length (not AlpacaEval's)",
        (
            f"{found['length_controlled_win_rate']:.3f}, 95 %: {found['length_controlled_low']:.3f} to "
            f"{found['length_controlled_high']:.3f}"
        ),
    )
    yield "characters, its and theirs", f"{found['mine_length']:.1f}, {found['their_length']:.1f}"
    if not math.isnan(found["flip_rate"]):
        yield "verdicts that flip with the order", f"{found['flip_rate']:.1%}"
        yield (
            "verdicts for the answer shown first",
            f"{found['first_share']:.1%} (50 % is unbiased)",
        )
        yield "verdicts that could not be read", f"{found['unread_share']:.1%}"


def _export(work: Evaluation, models: Sequence[str], prompts: str | None, out: Path) -> None:
    """Write the answers of the models, the rival's too if the prompts are our own: AlpacaEval has answers to its own only."""
    models = models[:1] if prompts is not None else models
    rows: dict[str, list[dict[str, str]]] = {}
    texts = None
    if prompts is not None:
        with downloads() as show:
            place = hub.fetch_path(prompts, "dataset", show)
        texts = prompt_files.extract_prompts(prompt_files.read_rows(place, skip_bad=False))
    for model in dict.fromkeys(models):
        answered = (
            work.held_out_answers(model)
            if texts is None
            else list(zip(texts, work.answer_prompts(model, texts), strict=True))
        )
        rows[model] = [
            _row(work, model, one if isinstance(one, str) else one.text, answer)
            for one, answer in answered
        ]
    common = set.intersection(*({row["instruction"] for row in found} for found in rows.values()))
    out.mkdir(parents=True, exist_ok=True)
    files = {}
    for model, found in rows.items():
        files[model] = out / f"{work.run.store.folder.name}-{model}-alpaca_eval.json"
        kept = [row for row in found if row["instruction"] in common]
        files[model].write_text(
            json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    mine, theirs = files[models[0]], files[models[-1]]
    reference = f" --reference_outputs {theirs}" if mine != theirs else ""
    say(f"{len(common)} answers a model. pip install alpaca_eval, set its judge's key, and give:")
    say(f"alpaca_eval --model_outputs {mine}{reference}")
    print(json.dumps({"answers": len(common), "files": [str(path) for path in files.values()]}))


def _row(work: Evaluation, model: str, prompt: str, answer: Response) -> dict[str, str]:
    """What AlpacaEval reads: https://github.com/tatsu-lab/alpaca_eval, "Evaluating a model"."""
    return {
        "instruction": prompt,
        "output": answer.text,
        "generator": f"{work.run.store.folder.name}-{model}",
    }


@evaluate.command("judge")
def judge_quality(
    name: RunName = "tiny",
    runs_dir: RunsDir = Path("runs"),
    model: Model = None,
    ranked: Annotated[
        str | None,
        typer.Option(
            help="Ranked data in OASST's schema: a file, a folder, owner/name on the hub, tiny, or votes (of the app); by default "
            "the run's own evaluation prompts.",
        ),
    ] = None,
    judgments: Annotated[
        int | None, typer.Option(help="Judgments an answer; by default as in the run.", min=1)
    ] = None,
    most: Annotated[int, typer.Option(help="Prompts at most.", min=1)] = 1000,
    set_: Set = None,
) -> None:
    """Hold a model's scores of ranked answers against the ranks: the five metrics of arXiv 2401.10020, section 3.2, and more."""
    with _examination(name, runs_dir, set_) as work:
        mine = model or _newest(work)
        found = _ranked(work, ranked)[:most]
        if not found:
            raise UserError(
                f"{ranked or name}: no prompt with two ranked answers in it; give other --ranked data"
            )
        quality = work.measure_judge(
            mine, found, judgments or work.run.settings.evaluation.judgments
        )
    known = quality.metrics()
    table = Table(
        "",
        "",
        title=f"{mine} as judge of {quality.answers} answers to {len(found)} prompts",
        title_justify="left",
    )
    for title, value in known.items():
        if not title.endswith("_error"):
            table.add_row(
                title.replace("_", " "), format_with_error((value, known.get(f"{title}_error")))
            )
    console.print(table)
    print(
        json.dumps(
            {
                "run": name,
                "model": mine,
                "prompts": len(found),
                "answers": quality.answers,
                **_plain(known),
            }
        )
    )


@evaluate.command("paper-table")
def paper_table(
    seeds: Annotated[str, typer.Option(help="Seeds, as 420-427 or 7,9.")] = "420-427",
    runs_dir: Annotated[
        Path, typer.Option(help="Folder of its runs; what is there is gone on with.")
    ] = Path("runs/paper-table"),
    out: Annotated[
        Path, typer.Option(help="Folder for the table, as JSON and Markdown, and its figure.")
    ] = Path("."),
) -> None:
    """The papers' comparisons in miniature, in the tiny world: the same M0, as many prompts and judgments a method; hours."""
    from selfreward_lite.bench import claims
    from selfreward_lite.bench import paper_table as paper_bench
    from selfreward_lite.cli.options import parse_seeds
    from selfreward_lite.run.runtime import open_runtime

    with Display(console) as watch:
        rows = paper_bench.run_table(
            runs_dir, paper_bench.Table(parse_seeds(seeds)), open_runtime, watch, say
        )
    table = Table("", *claims.COLUMNS.values())
    for arm, means in claims.table(rows).items():
        table.add_row(arm, *(format_with_error(means.get(name)) for name in claims.COLUMNS))
    console.print(table)
    document = {
        "command": f"python -m selfreward_lite evaluate paper-table --seeds {seeds}",
        **claims.document(rows),
    }
    with Store.read(runs_dir / f"seed-{rows[0].seed}" / rows[0].arm) as store:
        document |= {name: store.fact(name) for name in ("hardware", "versions")}
    say("Differences as mean (95 % interval over seeds):")
    for one in document["claims"]:
        say(f"{one['verdict']}: {one['name']} {one['words']}")
        for found in one["differences"]:
            say(f"    {claims.format_difference(found)}")
    for words in document["notes"]:
        say(words)
    if spent := document["seconds_of_an_arm"]:
        say(
            f"an arm took {spent['median']:.0f} s, the slowest {spent['most']:.0f} s, beside the seed stage that it shares"
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / "paper-table.json").write_text(
        json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (out / "paper-table.md").write_text(claims.markdown(document), encoding="utf-8")
    plots.draw_curves(claims.panels(rows)).savefig(out / "paper-table.png", dpi=110)
    print(
        json.dumps(
            {
                "seeds": document["seeds"],
                "verdicts": {one["name"]: one["verdict"] for one in document["claims"]},
            }
        )
    )


def _ranked(work: Evaluation, source: str | None) -> list[RankedPrompt]:
    run = work.run
    if source is None:
        return run.reader.ranked().evaluation
    if source == "votes":
        rows, _ = votes.build_ranked_rows(votes.load_votes(run.store.folder))
    else:
        with downloads() as show:
            place = source if source == "tiny" else str(hub.fetch_path(source, "dataset", show))
        stage = run.settings.seed_stage.model_copy(update={"ranked": place})
        rows, _ = ranked.load_ranked_rows(run.settings.model_copy(update={"seed_stage": stage}))
    content = hashlib.blake2b(
        json.dumps(rows, sort_keys=True, default=str).encode(), digest_size=8
    ).hexdigest()
    found, outcome = ranked.build_ranked_prompts(rows, f"{run.store.id_namespace}, {content}")
    for reason, count in outcome.dropped().items():
        say(f"left out: {count} {reason}")
    seen = {one.prompt.text for one in (*run.reader.ranked().eft, *run.reader.ranked().ift)}
    kept = [one for one in found if one.prompt.text not in seen]
    if len(kept) < len(found):
        say(
            f"left out: {len(found) - len(kept)} prompts that M0 was trained on, or could have been"
        )
    return kept


def _newest(work: Evaluation) -> str:
    newest = work.run.store.newest()
    if newest is None:
        raise UserError(f"{work.run.store.folder.name} has no model yet; go on with `run`")
    return ModelId(newest).name


@contextmanager
def _examination(
    name: str, runs_dir: Path, set_: list[str] | None, *, engine: bool = True
) -> Iterator[Evaluation]:
    from selfreward_lite.run.runtime import open_runtime

    wanted = config.parse_overrides(set_ or [])
    if other := [key for key in wanted if key.split(".")[0] not in FREE]:
        raise UserError(
            f"--set {other[0]}: the run was made with its own; only {', '.join(FREE)} can be set here"
        )
    if wanted and not engine:
        raise UserError(
            "--set is of no use here, since no model is asked anything; name a model as --judge, or --prompts"
        )
    with Store.read(runs_dir / name) as store:
        begun: dict[str, Any] | None = store.fact("settings")
        if begun is None:
            raise UserError(f"{name} has only just begun; try again in a moment")
        settings: Settings = config.override(begun, wanted)
        card = (
            gpu.held(f"evaluate {name}, process {os.getpid()}", say)
            if list_gpus() and engine
            else nullcontext()
        )
        with (
            card,
            open_runtime(bare=True) as runtime,
            Display(console) as watch,
            open_evaluation(store, settings, runtime, watch) as work,
        ):
            yield work


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    return {name: nan_to_none(value) for name, value in values.items()}
