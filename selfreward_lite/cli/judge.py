"""`evaluate judge`: what models of a run are worth as judges, beside "pick the longer"."""

import math
import time
from collections.abc import Mapping
from typing import Annotated, Literal

from typer import Option

from selfreward_lite.cli.evaluate import FromFolder, ModelName, Set, find_newest, open_work
from selfreward_lite.cli.options import RUNS, RunName, RunsDir, SkipBad
from selfreward_lite.cli.output import emit, print_table, say, show_downloads
from selfreward_lite.data.judge_sets import JudgeSet
from selfreward_lite.data.records import BASE
from selfreward_lite.data.rows import describe_counts
from selfreward_lite.method import metrics
from selfreward_lite.method.passport import WAYS, Way, group_outcomes, make_document
from selfreward_lite.method.statistics import format_with_error, mean_and_error, paired_interval
from selfreward_lite.report import passport as passport_report
from selfreward_lite.run import judge_sets
from selfreward_lite.run.evaluate import Evaluation
from selfreward_lite.system.errors import UserError


def measure_judge(
    name: RunName = "tiny",
    runs_dir: RunsDir = RUNS,
    models: Annotated[
        str | None, Option(help="Models of the run; by default base and the newest.")
    ] = None,
    model: ModelName = None,
    ranked: Annotated[
        str | None,
        Option(
            help="llmbar, pandalm or oasst (fetched if needed); ranked data in OASST's schema: a "
            "file, a folder, owner/name on the hub, tiny; or votes (of the app). By default the "
            "run's own evaluation prompts."
        ),
    ] = None,
    by: Annotated[
        Literal["scores", "comparison", "both"],
        Option(help="How a judge is asked: for a score of each answer, or which is better."),
    ] = "scores",
    judgments: Annotated[
        int | None, Option(help="Judgments per answer; by default as in the run.", min=1)
    ] = None,
    limit: Annotated[
        int, Option("--limit", "--most", help="Prompts at most, always the same.", min=1)
    ] = 1000,
    source: FromFolder = None,
    skip_bad: SkipBad = False,
    set_: Set = None,
) -> None:
    """Compare a judge with people: right how often, by part, beside "pick the longer answer".

    Ties count as half. Scores also get the metrics of arXiv 2401.10020, where ties are wrong.
    """
    if skip_bad and ranked is None:
        raise UserError("--skip-bad is for a file of --ranked; leave it out")
    ways: tuple[Way, ...] = WAYS if by == "both" else (by,)
    with open_work(name, runs_dir, set_) as work:
        chosen = _choose_models(work, models, model)
        with show_downloads() as show:
            whole = judge_sets.load_judge_set(work.run, ranked, show, source, skip_bad=skip_bad)
        for note in whole.notes:
            say(note)
        if whole.left_out:
            say(f"left out: {describe_counts(whole.left_out)}")
        asked, count = whole.first(limit), judgments or work.run.settings.evaluation.judgments
        passports = {way: work.judge_pairs(chosen, asked, way, count, whole.digest) for way in ways}
        known = {}
        if "scores" in ways:
            known = _measure_scores(work, chosen[-1], asked, whole.digest, count)
        documents = [
            make_document(one, work.describe_judge(asked, whole, way, count), time.time())
            for way, one in passports.items()
        ]
        work.keep_passports(documents)
    for document in documents:
        report = passport_report.describe(document)
        say(report.about)
        for line in report.words:
            say(line)
        print_table(*report.figures)
        print_table(*report.habits)
        if report.changes.rows:
            print_table(*report.changes)
    about = {"run": name, "model": chosen[-1], "models": chosen, "prompts": asked.prompts}
    emit({**about, "answers": len(asked.answers()), **known, "passports": documents})


def _choose_models(work: Evaluation, models: str | None, model: str | None) -> list[str]:
    if models is not None and model is not None:
        raise UserError("--model names one model and --models several; leave one of them out")
    names = models or model or f"{BASE.name},{find_newest(work)}"
    chosen = [*dict.fromkeys(one.strip() for one in names.split(","))]
    for one in chosen:
        work.run.find_model(one)  # before the first is asked
    return chosen


def _measure_scores(
    work: Evaluation, model: str, asked: JudgeSet, whole: str, count: int
) -> dict[str, float]:
    """Print and return the metrics of scores where a tie is wrong, and of "pick the longer"."""
    drawn = work.score_answers(model, asked, whole, count)
    agreement = metrics.judge_agreement(asked.ranked, work.run.score(drawn, count))
    rule = metrics.longer_agreement(asked.ranked)
    known = agreement.metrics() | metrics.measure_sources(drawn)
    longer = metrics.measure_longer(asked.ranked)
    mine, theirs = (group_outcomes(asked, one.outcomes) for one in (agreement, rule))
    known["pair_accuracy_error"] = mean_and_error(mine)[1]
    longer["longer_pair_accuracy_error"] = mean_and_error(theirs)[1]
    low, high = paired_interval(mine, theirs)
    over = {
        "over_longer": known["pair_accuracy"] - longer["longer_pair_accuracy"],
        "over_longer_low": low,
        "over_longer_high": high,
    }
    rows = [
        [
            name.replace("_", " "),
            _format_figure(known, name),
            _format_figure(longer, f"longer_{name}"),
        ]
        for name in known
        if not name.endswith("_error")
    ]
    interval = "–" if math.isnan(low) else f"{low:+.3f} to {high:+.3f}"
    rows[1:1] = [
        ["judge less longer", f"{over['over_longer']:+.3f}", ""],
        ["judge less longer, 95 %", interval, ""],
    ]
    about = f"{len(asked.answers())} answers to {asked.prompts} prompts"
    print_table(
        ["", model, "pick the longer"], rows, f"{model}'s scores of {about}; a tie counts as wrong"
    )
    return known | longer | over


def _format_figure(known: Mapping[str, float], name: str) -> str:
    """A figure with its error; "" where there is none of this name."""
    return format_with_error((known[name], known.get(f"{name}_error"))) if name in known else ""
