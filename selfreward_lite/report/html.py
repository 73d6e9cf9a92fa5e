"""A run as one page that opens anywhere, without a network: tables, pictures, examples, pairs, gates, settings.

Knows: what belongs on the page. Does not know: how anything on it is computed (`report`, `figures`, `warning_signs`, `explore`).
Every text is somebody's, and becomes letters: the template escapes all but the pictures, and the page may load nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

from selfreward_lite.data.records import ModelId
from selfreward_lite.data.store import Store
from selfreward_lite.report import early_warnings, explore, plots, summary
from selfreward_lite.report.explore import PromptHistory
from selfreward_lite.report.summary import RunSummary

TEMPLATE = Path(__file__).with_name("page.html")
EXAMPLES, PAIRS = 12, 3  # of the run, of each model
SUPERVISION = (
    "The loop was given no labels: every score and pair below is the model's own. The seed stage was, unless seed_stage.eft is "
    "off: M0 learnt to judge from judgments that agree with people's ranks. The judge's figures are agreement with such ranks."
)


def render_page(store: Store) -> str:
    """Return a run as HTML. Raises UserError where there is none yet."""
    document = summary.summarize_run(store)
    newest, readings = store.newest(), early_warnings.early_warnings(store)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        run=document["run"],
        preset=document["preset"],
        newest="the base" if newest is None else ModelId(newest).name,
        duration=_duration(document["seconds"]),
        hardware=store.fact("hardware") or "an unknown machine",
        versions=store.fact("versions") or {},
        supervision=SUPERVISION,
        measured=summary.build_measurement_table(store, document),
        measured_note=_note(document),
        pictures=_pictures(store, document),
        advice=early_warnings.list_advice(readings),
        signs=early_warnings.build_sign_table(readings),
        gates=summary.build_gate_table(store),
        examples=summary.build_example_table(store, EXAMPLES).rows,
        pairs=_pairs(store),
        stages=summary.build_stage_table(store),
        settings=json.dumps(store.fact("settings"), indent=2, ensure_ascii=False),
    )


def _pictures(store: Store, document: RunSummary) -> dict[str, str]:
    drawn = {
        "worth": plots.draw_worth(store, document),
        "training": plots.draw_training(store),
        "scores": plots.draw_scores(store),
        "seconds": plots.draw_seconds(store),
    }
    return {title: plots.to_svg(figure) for title, figure in drawn.items()}


def _note(document: RunSummary) -> str:
    exact = any(row.get("exact_score") is not None for row in document["iterations"])
    who = (
        "an exact scorer, which no stage and no gate sees"
        if exact
        else "M0, frozen, in both orders"
    )
    return f"The win rate against M0 is decided by {who}; a tie is half."


def _pairs(store: Store) -> list[dict[str, Any]]:
    """The first pairs of every model, newest first, whole; with the first of them that has a pair of judgments too, if any."""
    found = []
    for group in explore.list_groups(store):
        if group[1:].isdigit():
            hits, _ = explore.find_prompts(store, group, outcome="gave a pair")
            judged = next((hit for hit in hits if hit.judgment_pair), None)
            shown = hits[:PAIRS] + ([judged] if judged and judged not in hits[:PAIRS] else [])
            found += [_pair(group, explore.load_history(store, hit.id)) for hit in shown]
    return found


def _pair(model: str, look: PromptHistory) -> dict[str, Any]:
    parts = sorted(
        (one for one in look.answers if one.part in ("chosen", "rejected")),
        key=lambda one: one.part,
    )
    answers = [
        {
            "part": one.part,
            "score": ", ".join(f"{value:.2f}" for value in one.means("score").values()),
            "text": one.response.text,
            "judgment": next((judged.text for judged in one.judgments), ""),
        }
        for one in parts
    ]
    return {
        "model": model,
        "prompt": look.prompt.text,
        "why": look.why,
        "answers": answers,
        "judgments": _judgments(look),
    }


def _judgments(look: PromptHistory) -> list[dict[str, str]]:
    """The judgments that were trained on as a pair, the chosen one first, with the strength that the battles gave each."""
    if look.judgment_pair is None:
        return []
    one, texts = (
        look.judgment_pair,
        {each.id: each.text for answer in look.answers for each in answer.judgments},
    )
    return [
        {"part": "chosen", "strength": f"{one.chosen_strength:+.2f}", "text": texts[one.chosen_id]},
        {
            "part": "rejected",
            "strength": f"{one.rejected_strength:+.2f}",
            "text": texts[one.rejected_id],
        },
    ]


def _duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> _duration(128.2), _duration(30000)
    ('2.1 minutes', '8.3 hours')
    """
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
