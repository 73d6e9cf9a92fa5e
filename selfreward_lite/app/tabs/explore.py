"""The explore tab: a prompt of a run, its responses and judgments, and why there is a pair or none.

Texts of models are shown in table cells and text boxes, never as Markdown.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import gradio as gr

from selfreward_lite.app.escape import escape_markdown
from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.widgets import (
    NEWS,
    OWN,
    QUIET,
    About,
    Choices,
    Header,
    Updates,
    dynamic_dropdown,
    errors_as_toasts,
    read_index,
    text_table,
    warn,
)
from selfreward_lite.data.records import Battle, Judgment
from selfreward_lite.data.store import Store
from selfreward_lite.report import explore
from selfreward_lite.report.explore import (
    HELD_OUT,
    PAGE,
    RANKED,
    JudgedAnswer,
    PairFilter,
    PromptHistory,
    PromptHit,
)
from selfreward_lite.system.errors import SelfRewardError

NO_PROMPTS = (
    "There are no prompts to show yet. **Start a run on the Run tab**: its prompts appear here as "
    "soon as they are written."
)
HIT_HEAD = ["prompt", "score of chosen", "score of rejected", "judgment pair"]
ANSWER_HEAD = [
    "used as",
    "mean score",
    "expected score",
    "judgments",
    "response",
    "author",
    "tokens",
    "ended",
]
JUDGMENT_HEAD = ["score", "expected score", "judge", "judgment"]
BATTLE_HEAD = [
    "winner",
    "shown first",
    "rating",
    "shown second",
    "its rating",
    "text of the meta-judge",
]
OUTCOMES: list[tuple[str, PairFilter]] = [
    ("either", "all"),
    ("a pair", "gave a pair"),
    ("no pair", "gave none"),
]
Rows = list[list[str]]


@dataclass(frozen=True)
class HitPage:
    """A page of prompts that were found, its number, and how many there are in all."""

    hits: tuple[PromptHit, ...] = ()
    number: int = 0
    title: str = ""

    @property
    def rows(self) -> Rows:
        """A table row per prompt."""
        return [
            [
                one.text,
                _format(one.chosen),
                _format(one.rejected),
                "yes" if one.judgment_pair else "",
            ]
            for one in self.hits
        ]


def list_groups(library: RunLibrary, run: str | None) -> Choices:
    """Return the groups of prompts that a run has now."""
    if not run or run == TINY:
        return Choices(run)
    try:
        with Store.read(library.folder(run)) as store:
            return Choices(run, tuple(explore.list_groups(store) if store.fact("settings") else []))
    except SelfRewardError as error:
        return Choices(run, problem=warn(error))


def find_page(store: Store, group: str, words: str, outcome: PairFilter, number: int) -> HitPage:
    """Return a page of prompts; the last one where there are fewer pages."""
    hits, total = explore.find_prompts(store, group, words, outcome, number)
    pages = max(1, -(-total // PAGE))
    if number >= pages:
        return find_page(store, group, words, outcome, pages - 1)
    title = f"{total:,} prompt{'' if total == 1 else 's'}, page {number + 1} of {pages}"
    return HitPage(tuple(hits), number, title)


def answer_rows(history: PromptHistory) -> Rows:
    """Return a row per response."""
    ends = {"stop": "by itself", "length": "cut"}
    return [
        [
            "; ".join(filter(None, (one.part, one.checks))),
            _format_means(one, "mean"),
            _format_means(one, "expected"),
            str(len(one.judgments)),
            one.response.text,
            one.response.model,
            str(one.response.tokens or ""),
            ends.get(one.response.finish, one.response.finish),
        ]
        for one in history.answers
    ]


def judgment_rows(history: PromptHistory | None, index: int) -> Rows:
    """Return a row per judgment of one response."""
    if history is None or not 0 <= index < len(history.answers):
        return []
    return [
        [
            "not readable" if one.score is None else mark_forced(f"{one.score:g}", one),
            _format(one.expected_score),
            one.model,
            one.text,
        ]
        for one in history.answers[index].judgments
    ]


def battle_rows(history: PromptHistory) -> Rows:
    """Return a row per battle between two judgments."""
    winners = {1: "first", -1: "second", 0: "undecided"}
    return [
        [
            mark_forced(winners[one.verdict], one),
            history.judgments[one.first_id].text,
            _format(history.strengths.get(one.first_id)),
            history.judgments[one.second_id].text,
            _format(history.strengths.get(one.second_id)),
            one.text,
        ]
        for one in history.battles
    ]


def battles_text(history: PromptHistory) -> str:
    """Return what resulted from the battles, in words."""
    count, pair = len(history.battles), history.judgment_pair
    if not count:
        return (
            "No battles. Judgments of one response are compared where they disagree, in iterations "
            "that train on judgment pairs."
        )
    if pair is None:
        return (
            f"{count} battles and no judgment pair: the highest and the lowest rating did not "
            "differ, or the texts were too long."
        )
    return (
        f"{count} battles. Trained on: the judgment rated {pair.chosen_strength:.2f} as chosen, "
        f"the one rated {pair.rejected_strength:.2f} as rejected."
    )


def mark_forced(found: str, record: Judgment | Battle) -> str:
    """Return a score or a winner, with a word if the judge did not write it."""
    return f"{found} (forced)" if record.source == "forced" else found


def _format_means(answer: JudgedAnswer, by: Literal["mean", "expected"]) -> str:
    """The mean of one judge, or of each judge by name."""
    found = answer.means(by)
    if len(found) == 1:
        return _format(*found.values())
    return ", ".join(f"{judge} {_format(value)}" for judge, value in found.items())


def _format(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


class ExploreTab:
    """The parts of the tab, and what happens at a click."""

    def __init__(self, library: RunLibrary, header: Header) -> None:
        self.library = library
        self.groups, self.hits = gr.State(None), gr.State(HitPage())
        self.history = gr.State(None)
        self.empty = gr.Markdown(NO_PROMPTS)
        with gr.Column(visible=False) as self.body:
            with gr.Row():
                self.group = dynamic_dropdown(
                    "Prompts", info="M1, M2, …: what that model was trained on", min_width=140
                )
                words = gr.Textbox(
                    "",
                    label="Search",
                    placeholder="words of a prompt",
                    max_lines=1,
                    max_length=200,  # the database looks for every word
                    min_width=140,
                )
                outcome = gr.Radio(
                    OUTCOMES, value="all", label="Show prompts with", min_width=220, scale=2
                )
            with gr.Row():
                self.title = gr.Markdown()
                pages = [
                    gr.Button(name, size="sm", min_width=80, scale=0)
                    for name in ("Previous", "Next")
                ]
            self.listing = text_table(HIT_HEAD, "60 13 13 14", height=300, elem_id="hits")
            self.prompt = gr.Textbox(
                label="Prompt",
                max_lines=12,
                interactive=False,
                visible=False,
                elem_id="prompt",
            )
            self.why = gr.Markdown(
                "Click a prompt in the list to see its responses and judgments.", elem_id="why"
            )
            with gr.Column(visible=False) as self.inside:
                self.answers = text_table(
                    ANSWER_HEAD, "13 8 10 11 32 8 8 10", "Responses", height=360, elem_id="answers"
                )
                self.judgments = text_table(
                    JUDGMENT_HEAD,
                    "10 10 8 72",
                    "Judgments of one response (click another response to see its judgments). "
                    "Forced: the judge wrote no score that can be read, so one was drawn from its "
                    "probabilities",
                    elem_id="judgments",
                )
                self.result = gr.Markdown()
                with gr.Accordion("Battles between judgments", open=False):
                    self.battles = text_table(
                        BATTLE_HEAD,
                        "9 24 9 24 9 25",
                        "Forced: the meta-judge named no winner, so one was drawn from its "
                        "probabilities",
                    )
        filters: list[Any] = [self.group, words, outcome]
        inputs = [header.run, *filters, self.hits]
        listed = [self.hits, self.listing, self.title]
        changes = [one.change for one in filters]
        gr.on(changes, partial(self.list_page, None), inputs, listed, **NEWS)
        for button, step in zip(pages, (-1, 1), strict=True):
            button.click(partial(self.list_page, step), inputs, listed, **QUIET)
        offers = [self.groups, self.group, self.empty, self.body]
        chosen = [header.run, self.group, self.groups]
        gr.on(header.changes, self.offer_groups, chosen, offers, **NEWS).then(
            partial(self.list_page, 0), inputs, listed, **QUIET
        )
        opened = [self.history, self.prompt, self.why, self.inside, self.result]
        opened += [self.answers, self.judgments, self.battles]
        self.listing.select(self.open_prompt, [header.run, self.hits], opened, **OWN)
        self.answers.select(self.open_answer, self.history, self.judgments, **QUIET)

    def list_page(
        self,
        step: int | None,
        run: str | None,
        group: str | None,
        words: str,
        outcome: PairFilter,
        hits: HitPage,
    ) -> Updates:
        """Return the page that is `step` pages further, or the nearest one; the first for None."""
        found = HitPage()
        if run and run != TINY and group:
            with errors_as_toasts(), Store.read(self.library.folder(run)) as store:
                if group in explore.list_groups(store):  # else it is one of the run chosen before
                    number = 0 if step is None else max(0, hits.number + step)
                    found = find_page(store, group, words, outcome, number)
        return {self.hits: found, self.listing: found.rows, self.title: found.title}

    def open_prompt(self, event: About, run: str, hits: HitPage) -> Updates:
        with errors_as_toasts():
            row = read_index(event)
        if not 0 <= row < len(hits.hits):
            return gr.skip()
        with errors_as_toasts(), Store.read(self.library.folder(run)) as store:
            history = explore.load_history(store, hits.hits[row].id)
        return {
            self.history: history,
            self.prompt: gr.update(value=history.prompt.text, visible=True),
            self.why: escape_markdown(history.why),
            self.inside: gr.update(visible=True),
            self.answers: answer_rows(history),
            self.judgments: judgment_rows(history, 0),
            self.result: battles_text(history),
            self.battles: battle_rows(history),
        }

    def open_answer(self, event: About, history: PromptHistory | None) -> Rows:
        with errors_as_toasts():
            return judgment_rows(history, read_index(event))

    def offer_groups(self, run: str | None, chosen: str | None, known: Choices | None) -> Updates:
        """Return the groups of prompts to choose from, and why there are none.

        The user's choice stays. A group that all models share, chosen by default, gives way to
        the first pairs.
        """
        now = list_groups(self.library, run)
        if now == known:
            return gr.skip()
        is_default = known and known.run == run and chosen == known.first
        replaced = chosen if is_default and chosen in (RANKED, HELD_OUT) else None
        return {
            self.groups: now,
            self.group: now.keep(chosen, replaced, now.first),
            self.empty: gr.update(value=now.problem or NO_PROMPTS, visible=not now.names),
            self.body: gr.update(visible=bool(now.names)),
        }
