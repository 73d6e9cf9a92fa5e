"""The compare tab: two models answer one prompt; the user votes, then a judge gives its verdict.

The judge's verdict is shown only after the vote, so that it cannot influence it. A vote is stored
before the judge starts to read.
"""

import random
import re
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from selfreward_lite.app.conversation import numbers
from selfreward_lite.app.escape import escape_markdown, markdown
from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.talk import PairVerdict, StreamedReply, Talk
from selfreward_lite.app.widgets import (
    ASK,
    NEWS,
    QUIET,
    Choices,
    DrawControls,
    Header,
    PromptBox,
    Updates,
    Values,
    dynamic_dropdown,
    errors_as_toasts,
    list_models,
)
from selfreward_lite.config.settings import Sampling
from selfreward_lite.data import votes
from selfreward_lite.method import metrics
from selfreward_lite.method.statistics import Share
from selfreward_lite.models.chat_template import user
from selfreward_lite.system.errors import SelfRewardError, UserError

VOTES: dict[str, votes.Side | None] = {
    "Left is better": "a",
    "Equally good": "tie",
    "Right is better": "b",
    "Skip": None,
}
HOW_COMPARED = (
    "Both models are the same base with different adapters. They read the same prompt and draw "
    "with the same seed, so all differences come from training. The judge reads both answers in "
    "both orders; a verdict that changes with the order counts as a tie."
)
ONE_MODEL = (
    "This run has only one model, and a comparison needs two. Start a run on the Run tab: M0 "
    "appears after the seed stage."
)
READY = "Write a prompt, then vote on the two answers. Votes are stored in the run's folder."


@dataclass(frozen=True)
class SideBySide:
    """A prompt, the answers of two models (left and right), the vote and the verdict."""

    id: str
    at: str
    run: str
    prompt: str
    seed: int
    draw: Sampling
    models: tuple[str, str]
    judge: str
    blind: bool
    caller: str
    replies: tuple[StreamedReply | None, StreamedReply | None] = (None, None)
    voted: bool = False
    choice: votes.Side | None = None
    verdict: PairVerdict = PairVerdict(is_final=False)

    @property
    def is_answered(self) -> bool:
        """Whether both answers have ended."""
        return all(reply is not None and reply.finish for reply in self.replies)

    @property
    def texts(self) -> tuple[str, str]:
        """The texts of both answers so far."""
        left, right = (reply.text if reply is not None else "" for reply in self.replies)
        return left, right

    @property
    def is_busy(self) -> bool:
        """Whether a model is answering or judging."""
        return not self.is_answered or (self.voted and not self.verdict.is_final)

    def to_vote(self, choice: votes.Side) -> votes.Vote:
        """Return the vote to be stored, with the judge's verdict if there is one already."""
        return votes.Vote(
            self.id,
            self.at,
            self.prompt,
            self.seed,
            *self.models,
            *self.texts,
            choice,
            self.blind,
            self.judge,
            self.verdict.result,
            self.verdict.judged_ab,
            self.verdict.judged_ba,
        )


def show_answer(pair: SideBySide | None, side: int) -> tuple[str, str, str]:
    """Return an answer's heading, its text so far, and its length and speed.

    The heading has the model's name unless that is hidden; length and speed do not tell it.
    """
    title = f"#### {('Left', 'Right')[side]} answer"
    if pair is None:
        return title, "", ""
    if pair.voted or not pair.blind:
        title += f": {escape_markdown(pair.models[side])}"
    reply = pair.replies[side]
    if reply is None:
        return title, "…", ""
    waiting = f"waiting: {escape_markdown(reply.waits_for)}" if reply.waits_for else "…"
    return title, markdown(reply.text) or waiting, numbers(reply)


def verdict_text(pair: SideBySide | None) -> str:
    """Return the line under both answers: what to do next, or the vote and the verdict."""
    if pair is None:
        return READY
    if not pair.is_answered:
        return ""
    if not pair.voted:
        return "Which answer is better? The judge's verdict is shown after your vote."
    left, right, judge = map(escape_markdown, (*pair.models, pair.judge))
    if not pair.verdict.is_final:
        if pair.verdict.waits_for:
            return f"{judge} is waiting: {escape_markdown(pair.verdict.waits_for)}"
        return f"{judge} is reading both answers …"
    voted = {
        None: "You skipped the vote",
        "tie": "You: equally good",
        "a": f"You: {left} is better",
        "b": f"You: {right} is better",
    }
    judged = {
        None: "could not be asked",
        "tie": "says: a tie (or its verdict changed with the order)",
        "a": f"says: {left} is better",
        "b": f"says: {right} is better",
    }
    return f"{voted[pair.choice]}. {judge} {judged[pair.verdict.result]}."


def tally_text(folder: Path, model: str | None, rival: str | None, judge: str | None) -> str:
    """Return the win rate of two models by votes so far, and how often a judge agreed."""
    if not model or not rival or not judge or model == rival:
        return ""
    found = metrics.tally_votes(votes.load_votes(folder), model, rival, judge)
    model, rival, judge = map(escape_markdown, (model, rival, judge))
    if not found.win_rate.count:
        return f"No votes on {model} against {rival} yet."
    not_blind = f" {found.open} of these votes were not blind." if found.open else ""
    agreement = f"No vote yet in which both you and {judge} chose a side."
    if found.agreement.count:
        agreement = (
            f"You and {judge} agree on {_format_share(found.agreement)} of the votes without a "
            f"tie; you preferred the longer answer in {_format_share(found.longer)} of them."
        )
    return (
        f"**{model} against {rival}**: {found.won} won, {found.tied} tied, {found.lost} lost; "
        f"win rate {_format_share(found.win_rate)}.{not_blind} {agreement}"
    )


def _format_share(share: Share) -> str:
    interval = f"95% interval {share.low:.0%} to {share.high:.0%}"
    return f"{share.value:.0%} ({interval}, n = {share.count})"


def _number(model: str | None) -> int:
    """The number of M0, M1, …; -1 for the base."""
    return int(model[1:]) if model and re.fullmatch(r"M[0-9]+", model) else -1


def _default_rival(choices: Choices) -> str | None:
    """M0, if it is not the newest; else the first model."""
    return "M0" if "M0" in choices.names[:-1] else choices.first


class CompareTab:
    """The parts of the tab, and what happens at a click."""

    def __init__(self, library: RunLibrary, header: Header) -> None:
        self.library, self.header = library, header
        self.pair, self.choices = gr.State(None), gr.State(None)
        self.problem = gr.Markdown(ONE_MODEL, visible=False)
        with gr.Column() as self.body:
            with gr.Row():
                self.model_a = dynamic_dropdown("Model A", min_width=120)
                self.model_b = dynamic_dropdown("Model B", min_width=120)
                self.judge = dynamic_dropdown("Judge", min_width=120)
                self.blind = gr.Checkbox(
                    True,
                    label="Blind",
                    info="names hidden, sides shuffled, until you vote",
                    min_width=120,
                )
            self.prompt = prompt = PromptBox("Write a prompt for both models", "Ask both")
            self.answers: list[list[Any]] = []  # left and right: heading, text, length and speed
            with gr.Row():
                for side in (0, 1):
                    with gr.Column(min_width=280):
                        self.answers.append(
                            [
                                gr.Markdown(show_answer(None, side)[0]),
                                gr.Markdown(
                                    container=True,
                                    min_height=110,
                                    latex_delimiters=[],
                                    elem_classes="answer",
                                ),
                                gr.Markdown(elem_classes="fine"),
                            ]
                        )
            with gr.Row():
                self.buttons = {
                    gr.Button(name, interactive=False, min_width=120): choice
                    for name, choice in VOTES.items()
                }
            self.verdict = gr.Markdown(READY, elem_id="verdict")
            self.tally = gr.Markdown(elem_id="standing")
            with gr.Accordion("Judge's texts and settings", open=False):
                with gr.Row():
                    self.judged_ab, self.judged_ba = (
                        gr.Textbox(label=f"Judgment, {order}", lines=5, interactive=False)
                        for order in ("left answer first", "right answer first")
                    )
                self.draw = DrawControls()
                gr.Markdown(HOW_COMPARED)
        chosen: list[Any] = [self.model_a, self.model_b, self.judge]
        outputs = [
            self.pair,
            *(part for parts in self.answers for part in parts),
            *self.buttons,
            self.verdict,
            self.judged_ab,
            self.judged_ba,
            self.tally,
            *prompt.parts,
        ]
        inputs: set[Any] = {header.run, prompt.text, *chosen, self.blind, *self.draw.parts}
        asked = gr.on([prompt.text.submit, prompt.send.click], self.ask, inputs, outputs, **ASK)
        asked.failure(self.show, None, outputs, **QUIET)
        voted = [
            button.click(partial(self.vote, choice), [self.pair, self.judge], outputs, **ASK)
            for button, choice in self.buttons.items()
        ]
        prompt.stop.click(self.show, None, outputs, cancels=[asked, *voted], **QUIET)
        offers = [*chosen, self.choices, self.problem, self.body, prompt.examples]
        tallied = [header.run, *chosen]
        gr.on(header.changes, self.offer_models, [*tallied, self.choices], offers, **NEWS)
        gr.on([one.change for one in tallied], self.show_tally, tallied, self.tally, **NEWS)

    def ask(self, values: Values, request: gr.Request) -> Iterator[Updates]:
        text = values[self.prompt.text].strip()
        if not text:
            return
        with errors_as_toasts():
            run, judge, models = self.choose_models(values)
            if blind := values[self.blind]:
                random.shuffle(models)
            draw, seed = self.draw.read(values)
            pair = SideBySide(
                uuid.uuid4().hex,
                datetime.now(UTC).isoformat(timespec="seconds"),
                run,
                text,
                seed,
                draw,
                (models[0], models[1]),
                judge,
                blind,
                request.session_hash or "",
            )
            yield from self.answer(pair)

    def choose_models(self, values: Values) -> tuple[str, str, list[str]]:
        """Return the run, the judge and both models that were chosen.

        What the page does not show yet is what it is about to show. Raises UserError where there
        are not two.
        """
        run = values[self.header.run] or self.library.choices()[0]
        *others, newest = names = tuple(self.library.models(run).adapters)
        if not others:
            raise UserError(ONE_MODEL)
        model_a = values[self.model_a] or _default_rival(Choices(run, names)) or newest
        return run, values[self.judge] or newest, [model_a, values[self.model_b] or newest]

    def answer(self, pair: SideBySide) -> Iterator[Updates]:
        """Have both models answer, the left one first; yields the comparison as it grows."""
        yield self.show(pair)
        talk = Talk(self.library, pair.run, pair.caller)
        for side in (0, 1):
            asked = pair.models[side], user(pair.prompt), pair.draw, pair.seed
            with closing(talk.stream_reply(*asked)) as replies:
                for reply in replies:
                    both = (pair.replies[0], reply) if side else (reply, None)
                    pair = replace(pair, replies=both)
                    yield self.show(pair)

    def vote(
        self, choice: votes.Side | None, pair: SideBySide | None, judge: str | None
    ) -> Iterator[Updates]:
        """Store a vote (None: skipped), then have the judge compare, and store its verdict too."""
        if pair is None:
            return
        with errors_as_toasts():
            if pair.voted or not pair.is_answered:
                raise UserError("there is nothing to vote on: ask both models first")
            pair = replace(pair, voted=True, choice=choice, judge=judge or pair.judge)
            folder = self.library.folder(pair.run)
            if choice is not None:
                votes.add_vote(folder, pair.to_vote(choice))
            yield self.show(pair)
            try:
                talk = Talk(self.library, pair.run, pair.caller)
                with closing(talk.stream_verdict(pair.judge, pair.prompt, pair.texts)) as verdicts:
                    for verdict in verdicts:
                        pair = replace(pair, verdict=verdict)
                        if choice is not None and verdict.is_final:
                            votes.add_verdict(folder, pair.to_vote(choice))
                        yield self.show(pair)
            except SelfRewardError:
                yield self.show(replace(pair, verdict=PairVerdict()))
                raise

    def show(self, pair: SideBySide | None = None) -> Updates:
        """Return everything on the tab about a comparison as it is now."""
        updates: Updates = {self.pair: pair, self.verdict: verdict_text(pair)}
        for side, parts in enumerate(self.answers):
            updates |= zip(parts, show_answer(pair, side), strict=True)
        may_vote = bool(pair and pair.is_answered and not pair.voted)
        updates |= {button: gr.update(interactive=may_vote) for button in self.buttons}
        verdict = pair.verdict if pair else PairVerdict()
        updates |= {self.judged_ab: verdict.judged_ab, self.judged_ba: verdict.judged_ba}
        if pair and pair.voted:
            updates[self.tally] = self.show_tally(pair.run, *pair.models, pair.judge)
        return updates | self.prompt.show_busy(bool(pair and pair.is_busy))

    def show_tally(
        self, run: str | None, one: str | None, two: str | None, judge: str | None
    ) -> str:
        with errors_as_toasts():
            if not run or run == TINY:
                return ""
            # The win rate of the later model over the earlier one is shown.
            later, earlier = sorted([one, two], key=_number, reverse=True)
            return tally_text(self.library.folder(run), later, earlier, judge)

    def offer_models(
        self,
        run: str | None,
        model_a: str | None,
        model_b: str | None,
        judge: str | None,
        known: Choices | None,
    ) -> Updates:
        """Return models to choose from; by default M0 and the newest, judged by the newest."""
        now, before = list_models(self.library, run), known or Choices(None)
        if now == known:
            return gr.skip()
        enough = len(now.names) > 1
        return {
            self.model_a: now.keep(model_a, _default_rival(before), _default_rival(now)),
            self.model_b: now.keep(model_b, before.last, now.last),
            self.judge: now.keep(judge, before.last, now.last),
            self.choices: now,
            self.problem: gr.update(value=now.problem or ONE_MODEL, visible=not enough),
            self.body: gr.update(visible=enough),
        } | self.prompt.show_examples(now)
