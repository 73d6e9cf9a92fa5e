"""A run as one self-contained HTML page: tables, figures, examples, pairs, gates, settings.

The template escapes every text except the figures, and the page may load nothing.
"""

import json
from pathlib import Path

import jinja2

from selfreward_lite.config.settings import Settings
from selfreward_lite.data.records import ModelId
from selfreward_lite.data.store import Store
from selfreward_lite.report import early_warnings, explore, passport, plots, summary, tasks
from selfreward_lite.report.constraints import build_constraint_table
from selfreward_lite.report.explore import PromptHistory
from selfreward_lite.report.status import format_time

TEMPLATE = Path(__file__).with_name("page.html")
EXAMPLES, PAIRS = 12, 3  # of the run, of each model
SUPERVISION = (
    "The loop was given no labels: every score and pair below is the model's own. The seed stage "
    "was, unless seed_stage.eft is off: M0 learned to judge from judgments that agree with "
    "people's ranks. The judge's figures are agreement with such ranks."
)
VERIFIED = {
    "veto": "A program checked constraints of the prompts: an answer that breaks one was never "
    "chosen. Between the others, the model's own judgments decided.",
    "score": "A program decided the pairs: it checks which constraints of a prompt an answer "
    "keeps. The model's own judgments decided between answers that keep as many, and to prompts "
    "without constraints.",
}
NO_JUDGE = (
    "A program decided the pairs, not the model: it checks which constraints of a prompt an answer "
    "keeps. So this shows what training on such an exact score does, and nothing about a model "
    "that rewards itself. The ranks behind the judge's figures are by that program too, if "
    "seed_stage.ranked is checkable."
)


def render_page(store: Store) -> str:
    """Return a run as HTML. Raises UserError where there is none yet."""
    document = summary.summarize_run(store)
    newest, readings = store.newest(), early_warnings.early_warnings(store)
    figures = {
        "worth": plots.draw_worth(store, document),
        "training": plots.draw_training(store),
        "scores": plots.draw_scores(store),
        "seconds": plots.draw_seconds(store),
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        run=document["run"],
        preset=document["preset"],
        newest="the base" if newest is None else ModelId(newest).name,
        duration=format_time(document["seconds"]),
        hardware=store.fact("hardware") or "an unknown machine",
        versions=store.fact("versions") or {},
        supervision=_describe_supervision(store.settings()),
        measured=summary.build_measurement_table(store, document),
        constraints=build_constraint_table(store),
        has_exact=any(row["exact_score"] is not None for row in document["iterations"]),
        pictures={name: plots.to_svg(one) for name, one in figures.items() if one.axes},
        advice=early_warnings.list_advice(readings),
        signs=early_warnings.build_sign_table(readings),
        gates=summary.build_gate_table(store),
        tasks=tasks.load_reports(store),
        passports=passport.load_reports(store),
        examples=summary.build_example_table(store, EXAMPLES).rows,
        pairs=_load_pairs(store),
        stages=summary.build_stage_table(store.stages()),
        trained=summary.build_training_table(store),
        cut=summary.build_hours_table(store),
        settings=json.dumps(store.fact("settings"), indent=2, ensure_ascii=False),
    )


def _describe_supervision(settings: Settings) -> str:
    """Who decided the pairs."""
    if not settings.judge.count:
        return NO_JUDGE
    return VERIFIED.get(settings.pairs.verify, SUPERVISION)


def _load_pairs(store: Store) -> list[tuple[str, PromptHistory]]:
    """The first response pairs of every model, newest first, and the first with a judgment pair."""
    found = []
    for group in explore.list_groups(store):
        if group[1:].isdigit():
            hits, _ = explore.find_prompts(store, group, pairs="gave a pair")
            judged = [hit for hit in hits if hit.judgment_pair][:1]
            shown = dict.fromkeys(hits[:PAIRS] + judged)  # without the same hit twice
            found += [(group, explore.load_history(store, hit.id)) for hit in shown]
    return found
