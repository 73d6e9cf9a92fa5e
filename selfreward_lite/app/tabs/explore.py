"""The tab in which one looks into a run: a prompt, its responses, what was said of them, and why there is a pair or none.

Knows: gradio's parts, what happens at a click. Does not know: tables of a store: `explore` does. Texts of models stand in cells
and boxes that show letters, never in Markdown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr

from selfreward_lite.app.escape import escape_markdown
from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.widgets import (
    NEWS,
    OWN,
    QUIET,
    Shell,
    dynamic_dropdown,
    errors_as_toasts,
    table,
)
from selfreward_lite.data.store import Store
from selfreward_lite.report import explore
from selfreward_lite.report.explore import HELD_OUT, PAGE, RANKED, Answer, PromptHistory
from selfreward_lite.system.errors import SelfRewardError

NOTHING = "Nothing to look into yet. **Begin a run on the Run tab**: its prompts appear here as soon as they are written."
HITS = ["prompt", "chosen", "rejected", "judgments too"]
ANSWERS = ["part", "score", "expected", "judgments", "response", "by", "tokens", "ended"]
JUDGMENTS = ["score", "expected", "by", "judgment"]
FIGHTS = [
    "winner",
    "shown first",
    "strength",
    "shown second",
    "strength ",
    "the meta-judge's words",
]
OUTCOMES = ["all", "gave a pair", "gave none"]


def offer(
    library: RunLibrary, run: str | None, chosen: str | None, known: list[str]
) -> tuple[Any, ...]:
    """Return what is `known` from now on, the groups of prompts to choose from, and why there are none.

    What somebody reads stays. Only where there was nothing yet but what all models share, the first pairs take its place.
    """
    found, why = _groups(library, run)
    if [run, why, *found] == known:
        return tuple(gr.skip() for _ in range(4))
    stays = chosen in found and not (
        chosen in (RANKED, HELD_OUT) and known[:1] == [run] and chosen == known[2]
    )
    return (
        [run, why, *found],
        gr.update(choices=found, value=chosen if stays else found[0] if found else None),
        gr.update(value=why or NOTHING, visible=not found),
        gr.update(visible=bool(found)),
    )


def hits(
    library: RunLibrary, run: str | None, group: str | None, words: str, outcome: str, page: int
) -> tuple[Any, ...]:
    """Return the ids of a page of prompts, their rows, and which page it is of how many."""
    if not run or run == TINY or not group:
        return [], [], "", 0
    with Store.read(library.folder(run)) as store:
        if group not in explore.groups(store):  # of the run that was chosen before
            return [], [], "", 0
        found, total = explore.find(store, group, words or "", outcome, max(0, page))  # type: ignore[arg-type]
        pages = max(1, -(-total // PAGE))
        if page >= pages:
            found, _ = explore.find(store, group, words or "", outcome, pages - 1)  # type: ignore[arg-type]
    rows = [
        [
            one.text,
            _number(one.chosen),
            _number(one.rejected),
            "a pair" if one.judgment_pair else "",
        ]
        for one in found
    ]
    number = max(0, min(page, pages - 1))
    count = f"{total:,} prompt{'' if total == 1 else 's'}, page {number + 1} of {pages}"
    return [one.id for one in found], rows, count, number


def whole(library: RunLibrary, run: str, prompt_id: str) -> PromptHistory:
    """Return a prompt with everything that became of it."""
    with Store.read(library.folder(run)) as store:
        return explore.look(store, prompt_id)


def answers(look: PromptHistory) -> list[list[Any]]:
    """Return a row a response."""
    return [
        [
            one.part,
            _means(one, "score"),
            _means(one, "expected_score"),
            len(one.judgments),
            one.response.text,
            one.response.model,
            one.response.tokens or "",
            {"stop": "by itself", "length": "cut"}.get(one.response.finish, one.response.finish),
        ]
        for one in look.answers
    ]


def judged(look: PromptHistory | None, place: int) -> list[list[Any]]:
    """Return a row a judgment of one of the responses."""
    if look is None or not 0 <= place < len(look.answers):
        return []
    return [
        [
            "not read" if one.score is None else f"{one.score:g}",
            _number(one.expected_score),
            one.model,
            one.text,
        ]
        for one in look.answers[place].judgments
    ]


def fights(look: PromptHistory) -> list[list[Any]]:
    """Return a row a battle between two judgments."""
    won = {1: "the first", -1: "the second", 0: "undecided"}
    return [
        [
            won[one.battle.verdict],
            one.first.text,
            _number(one.first_strength),
            one.second.text,
            _number(one.second_strength),
            one.battle.text,
        ]
        for one in look.fights
    ]


def battles_said(look: PromptHistory) -> str:
    """Return in words what the battles came to."""
    if not look.fights:
        return "No battles: judgments of a response fight where they disagree, in iterations that train on judgment pairs."
    pair = look.judgment_pair
    if pair is None:
        return f"{len(look.fights)} battles and no judgment pair: the strongest and the weakest did not differ, or were too long."
    return (
        f"{len(look.fights)} battles. Trained on: the judgment of strength {pair.chosen_strength:.2f} chosen over that of "
        f"{pair.rejected_strength:.2f}."
    )


def _means(answer: Answer, of: Literal["score", "expected_score"]) -> str:
    """What one judge gave, or what each did where there were several."""
    found = answer.means(of)
    if len(found) == 1:
        return _number(*found.values())
    return ", ".join(f"{judge} {_number(value)}" for judge, value in found.items())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


# -- how it is laid out -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Parts:
    """What stands on the tab."""

    filters: list[Any]  # the run, which group of prompts, words, what they gave
    listed: list[Any]  # the ids of the page that is shown, its rows, their count, which page it is
    turn: list[gr.Button]
    opened: list[
        Any
    ]  # the prompt that is looked at, its text, why, its frame, responses, judgments, battles in words and rows
    empty: gr.Markdown
    body: gr.Column


def tab(library: RunLibrary, shell: Shell) -> None:
    """Lay the tab out."""
    empty = gr.Markdown(NOTHING)
    with gr.Column(visible=False) as body:
        with gr.Row():
            group = dynamic_dropdown(
                "Prompts", info="of what a model was trained on", min_width=140
            )
            words = gr.Textbox(
                "", label="Search", placeholder="words of a prompt", max_lines=1, min_width=140
            )
            outcome = gr.Radio(OUTCOMES, value="all", label="That", min_width=220)
        with gr.Row():
            count = gr.Markdown("", elem_id="count")
            turn = [
                gr.Button(words, size="sm", min_width=80, scale=0) for words in ("Earlier", "Later")
            ]
        listing = table(HITS, "60 12 12 16", height=300, elem_id="hits")
        prompt = gr.Textbox(
            label="Prompt",
            lines=1,
            max_lines=12,
            interactive=False,
            visible=False,
            elem_id="prompt",
        )
        why = gr.Markdown("Choose a prompt above to see what became of it.", elem_id="why")
        with gr.Column(visible=False) as inside:
            replies = table(
                ANSWERS, "14 7 10 11 34 7 7 10", "Responses", height=360, elem_id="answers"
            )
            said = table(
                JUDGMENTS,
                "10 10 8 72",
                "Judgments of the response that is chosen above",
                elem_id="judgments",
            )
            fought = gr.Markdown("")
            with gr.Accordion("Battles between judgments", open=False):
                battles = table(FIGHTS, "9 24 9 24 9 25")
    filters, listed = (
        [shell.run, group, words, outcome],
        [gr.State([]), listing, count, gr.State(0)],
    )
    opened = [gr.State(None), prompt, why, inside, replies, said, fought, battles]
    _wire(library, shell, _Parts(filters, listed, turn, opened, empty, body))


def _wire(library: RunLibrary, shell: Shell, parts: _Parts) -> None:
    """Say what every click does."""
    filters, listed, group, known = parts.filters, parts.listed, parts.filters[1], gr.State([])
    ids, listing, _, page = listed
    look, _, _, _, replies, said, *_ = parts.opened

    def found_by(
        run: str | None, group: str | None, words: str, outcome: str, page: int
    ) -> tuple[Any, ...]:
        with errors_as_toasts():
            return hits(library, run, group, words, outcome, page)

    def opened(event: gr.SelectData, run: str, ids: list[str]) -> tuple[Any, ...]:
        row = event.index[0]
        if not 0 <= row < len(ids):
            return tuple(gr.skip() for _ in range(8))
        with errors_as_toasts():
            found = whole(library, run, ids[row])
        return (
            found,
            gr.update(value=found.prompt.text, visible=True),
            escape_markdown(found.why),
            gr.update(visible=True),
            answers(found),
            judged(found, 0),
            battles_said(found),
            fights(found),
        )

    gr.on(
        [one.change for one in filters[1:]],
        lambda *chosen: found_by(*chosen, 0),
        filters,
        listed,
        **NEWS,
    )
    for button, way in zip(parts.turn, (-1, 1), strict=True):
        button.click(
            lambda *chosen, way=way: found_by(*chosen[:4], chosen[4] + way),
            [*filters, page],
            listed,
            **QUIET,
        )
    offers = [known, group, parts.empty, parts.body]
    gr.on(
        [shell.run.change, shell.pulse.change],
        lambda *chosen: offer(library, *chosen),
        [shell.run, group, known],
        offers,
        **NEWS,
    ).then(found_by, [*filters, page], listed, **QUIET)
    listing.select(opened, [shell.run, ids], parts.opened, **OWN)
    _selects(replies, look, said)


def _selects(replies: gr.Dataframe, look: gr.State, said: gr.Dataframe) -> None:
    """Show the judgments of the response that is chosen."""

    def chosen(event: gr.SelectData, look: PromptHistory | None) -> list[list[Any]]:
        return judged(look, event.index[0])

    replies.select(chosen, look, said, **QUIET)


def _groups(library: RunLibrary, run: str | None) -> tuple[list[str], str]:
    """The groups of a run's prompts, and why they cannot be had."""
    if not run or run == TINY:
        return [], ""
    try:
        with Store.read(library.folder(run)) as store:
            return explore.groups(store) if store.fact("settings") else [], ""
    except SelfRewardError as error:
        return [], f"⚠ {escape_markdown(str(error))}"
