"""The tab in which two models answer the same prompt with the same seed, and one says which answer is better.

Knows: gradio's parts, what happens at a click. Does not know: engines, stores. No judge is heard before the vote: an agreement
with what was shown would say nothing. A vote is kept before the judge reads anything.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gradio as gr

from selfreward_lite.app.conversation import numbers
from selfreward_lite.app.escape import escape_markdown, markdown
from selfreward_lite.app.library import RunLibrary
from selfreward_lite.app.tabs.chat import EXAMPLES, TINY_EXAMPLES, models
from selfreward_lite.app.talk import Reply, Verdict
from selfreward_lite.app.widgets import (
    NEWS,
    QUIET,
    Shell,
    draw_controls,
    draw_of,
    dynamic_dropdown,
    errors_as_toasts,
)
from selfreward_lite.config.settings import Draw
from selfreward_lite.data import votes
from selfreward_lite.method import metrics
from selfreward_lite.method.statistics import Share
from selfreward_lite.models.chat_format import user
from selfreward_lite.system.errors import SelfRewardError, UserError

CHOICES: dict[str, votes.Side | None] = {
    "Left is better": "a",
    "As good as each other": "tie",
    "Right is better": "b",
    "Skip": None,
}
HOW = (
    "Both models are the same base with another adapter. They read the same prompt and draw with the same seed, so what differs "
    "is what they learnt. The judge reads both answers in both orders; a verdict that flips with the order is a tie."
)
NOTHING = "There is only one model here: two are needed. **Start a run on the Run tab**; M0 appears after the seed stage."
READY = "Ask something; then vote. Votes are kept in the run's folder."


@dataclass(frozen=True)
class SideBySide:
    """A prompt and what two models made of it: `models` and `replies` left and right, `voted` once it is over."""

    run: str
    prompt: str
    seed: int
    draw: Draw
    models: tuple[str, str]
    judge: str
    blind: bool
    caller: str
    replies: tuple[Reply | None, Reply | None] = (None, None)
    voted: bool = False
    choice: votes.Side | None = None
    verdict: Verdict | None = None
    waits: str = ""  # for what the judge does
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def busy(self) -> bool:
        """Whether somebody still has to say something."""
        return not self.over or (self.voted and self.verdict is None)

    @property
    def over(self) -> bool:
        """Whether both have said all they will."""
        return all(reply is not None and reply.finish is not None for reply in self.replies)


def answer(library: RunLibrary, bout: SideBySide) -> Iterator[SideBySide]:
    """Have both models answer, the left one first; yields the bout as it grows."""
    place = library.place(bout.run)
    for side in (0, 1):
        with closing(
            library.reply(
                place, bout.models[side], user(bout.prompt), bout.draw, bout.seed, bout.caller
            )
        ) as growing:
            for reply in growing:
                bout = replace(
                    bout, replies=(reply, None) if side == 0 else (bout.replies[0], reply)
                )
                yield bout


def vote(
    library: RunLibrary, bout: SideBySide, choice: votes.Side | None, judge: str
) -> Iterator[SideBySide]:
    """Take a vote (None is none) and keep it at once; then have the judge compare, and keep what it says beside the vote."""
    if bout.voted or not bout.over:
        raise UserError("there is nothing to vote on: ask both models first")
    left, right = (reply.text for reply in bout.replies if reply is not None)
    bout = replace(bout, voted=True, choice=choice, judge=judge)
    folder = library.folder(bout.run)
    if choice is not None:
        votes.add(folder, _vote(bout, choice, left, right))
    yield bout
    try:
        with closing(
            library.verdict(library.place(bout.run), judge, bout.prompt, (left, right), bout.caller)
        ) as reading:
            for found in reading:
                bout = replace(bout, waits=found if isinstance(found, str) else "")
                bout = replace(bout, verdict=found) if isinstance(found, Verdict) else bout
                if choice is not None and bout.verdict is not None:
                    votes.decide(folder, _vote(bout, choice, left, right))
                yield bout
    except SelfRewardError:
        yield replace(bout, verdict=Verdict(judge, None, "", ""))
        raise


def _vote(bout: SideBySide, choice: votes.Side, left: str, right: str) -> votes.Vote:
    said = bout.verdict or Verdict(bout.judge, None, "", "")
    return votes.Vote(
        bout.id,
        bout.at,
        bout.prompt,
        bout.seed,
        *bout.models,
        left,
        right,
        choice,
        bout.blind,
        bout.judge,
        said.result,
        said.judged_ab,
        said.judged_ba,
    )


def heading(bout: SideBySide | None, side: int) -> str:
    """Return the name over an answer; which side it stands on while that is hidden."""
    if bout is None or (bout.blind and not bout.voted):
        return f"#### {('Left', 'Right')[side]}"
    return f"#### {('Left', 'Right')[side]}: {escape_markdown(bout.models[side])}"


def reply_of(bout: SideBySide | None, side: int) -> tuple[str, str]:
    """Return an answer as it is shown, and its numbers; how fast it came says nothing of whose it is."""
    reply = bout.replies[side] if bout is not None else None
    if reply is None:
        return "…" if bout is not None else "", ""
    return markdown(reply.text) or (
        escape_markdown(f"waits: {reply.waits}") if reply.waits else "…"
    ), numbers(reply)


def verdict_of(bout: SideBySide | None) -> tuple[str, str, str]:
    """Return what is said under both answers, and the judge's words in both orders."""
    if bout is None or not bout.over:
        return READY if bout is None else "", "", ""
    if not bout.voted:
        return "Which is better? What the judge thinks is told after your vote.", "", ""
    if bout.verdict is None:
        said = f"waits: {bout.waits}" if bout.waits else "reads both answers …"
        return escape_markdown(f"{bout.judge} {said}"), "", ""
    left, right, judge = map(escape_markdown, (*bout.models, bout.judge))
    mine = {
        None: "You skipped it",
        "tie": "You: as good as each other",
        "a": f"You: {left} is better",
        "b": f"You: {right} is better",
    }
    judged = {
        None: "could not be asked",
        "tie": "says: a tie (or its verdict flipped with the order)",
        "a": f"says: {left} is better",
        "b": f"says: {right} is better",
    }
    return (
        f"{mine[bout.choice]}. {judge} {judged[bout.verdict.result]}.",
        bout.verdict.judged_ab,
        bout.verdict.judged_ba,
    )


def standing(folder: Path, model: str | None, rival: str | None, judge: str | None) -> str:
    """Return how two models fared so far, by the people's votes, and how often a judge agreed with them."""
    if not model or not rival or not judge or model == rival:
        return ""
    found = metrics.tally_votes(votes.all_votes(folder), model, rival, judge)
    model, rival, judge = escape_markdown(model), escape_markdown(rival), escape_markdown(judge)
    if not found.win_rate.count:
        return f"No votes yet on {model} against {rival}."
    words = f"**{model} against {rival}**: {found.won} won, {found.tied} tied, {found.lost} lost; win rate {_share(found.win_rate)}. "
    if found.open:
        words += f"{found.open} of these were given with the names shown. "
    if not found.agreement.count:
        return words + f"No vote yet that both you and {judge} decided."
    return (
        words
        + f"You and {judge} agree in {_share(found.agreement)} of the votes that both decided."
    )


def _share(share: Share) -> str:
    return (
        f"{share.value:.0%} (95 % interval {share.low:.0%} to {share.high:.0%}, n = {share.count})"
    )


# -- how it is laid out ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Parts:
    """What stands on the tab."""

    pair: list[gr.Dropdown]
    judge: gr.Dropdown
    blind: gr.Checkbox
    box: gr.Textbox
    draw: list[Any]
    ask: gr.Button
    stop: gr.Button
    heads: list[gr.Markdown]
    texts: list[gr.Markdown]
    numbers: list[gr.Markdown]
    buttons: list[gr.Button]
    words: gr.Markdown
    judged: list[gr.Textbox]
    standing: gr.Markdown
    empty: gr.Markdown
    body: gr.Column
    tiny: gr.Column
    other: gr.Column


def tab(library: RunLibrary, shell: Shell) -> None:
    """Lay the tab out."""
    empty = gr.Markdown(NOTHING, visible=False)
    with gr.Column() as body:
        with gr.Row():
            pair = [
                dynamic_dropdown("One model", min_width=120),
                dynamic_dropdown("The other", min_width=120),
            ]
            judge = dynamic_dropdown("Judged by", min_width=120)
            blind = gr.Checkbox(
                True, label="Blind", info="names hidden until you vote", min_width=120
            )
        with gr.Row():
            box = gr.Textbox(
                show_label=False, placeholder="What both are asked", scale=8, container=False
            )
            stop = gr.Button("Stop", scale=1, min_width=80, visible=False)
            ask = gr.Button("Ask both", variant="primary", scale=1, min_width=80)
        with gr.Column(visible=False) as tiny:
            gr.Examples(
                TINY_EXAMPLES, box, label="What the tiny model knows", api_visibility="private"
            )
        with gr.Column(visible=False) as other:
            gr.Examples(EXAMPLES, box, label="For a start", api_visibility="private")
        heads, texts, figures = [], [], []
        with gr.Row():
            for side in (0, 1):
                with gr.Column(min_width=280):
                    heads.append(gr.Markdown(heading(None, side)))
                    texts.append(
                        gr.Markdown(
                            "",
                            container=True,
                            min_height=110,
                            latex_delimiters=[],
                            elem_classes="answer",
                        )
                    )
                    figures.append(gr.Markdown("", elem_classes="fine"))
        with gr.Row():
            buttons = [gr.Button(name, interactive=False, min_width=120) for name in CHOICES]
        words = gr.Markdown(READY, elem_id="verdict")
        score = gr.Markdown("", elem_id="standing")
        with gr.Accordion("The judge's words, and how tokens are drawn", open=False):
            with gr.Row():
                judged = [
                    gr.Textbox(label=f"Judged {how}", lines=5, interactive=False)
                    for how in ("left first", "right first")
                ]
            draw = draw_controls("Seed of both")
            gr.Markdown(HOW)
    _wire(
        library,
        shell,
        _Parts(
            pair,
            judge,
            blind,
            box,
            draw,
            ask,
            stop,
            heads,
            texts,
            figures,
            buttons,
            words,
            judged,
            score,
            empty,
            body,
            tiny,
            other,
        ),
    )


def _wire(library: RunLibrary, shell: Shell, parts: _Parts) -> None:
    """Say what every click does."""
    bout, known = gr.State(None), gr.State([])
    looks = [
        bout,
        *parts.heads,
        *parts.texts,
        *parts.numbers,
        *parts.buttons,
        parts.words,
        *parts.judged,
        parts.standing,
        parts.ask,
        parts.stop,
    ]

    def ask(request: gr.Request, run: str, text: str, *chosen: Any) -> Iterator[tuple[Any, ...]]:
        one, two, judge, blind, *draw, seed = chosen
        if not text.strip():
            return
        sides = (two, one) if blind and random.random() < 0.5 else (one, two)
        now = SideBySide(
            run,
            text.strip(),
            int(seed or 0),
            draw_of(*draw),
            sides,
            judge,
            blind,
            request.session_hash or "",
        )
        yield _looks(library, now)
        yield from _told(library, answer(library, now))

    def voted(
        now: SideBySide | None, judge: str, side: votes.Side | None
    ) -> Iterator[tuple[Any, ...]]:
        if now is not None:
            yield from _told(library, vote(library, now, side, judge))

    def halted() -> tuple[Any, ...]:
        return _looks(library, None)

    begun = gr.on(
        [parts.box.submit, parts.ask.click],
        ask,
        [shell.run, parts.box, *parts.pair, parts.judge, parts.blind, *parts.draw],
        looks,
        concurrency_limit=None,
        **QUIET,
    )
    begun.failure(halted, None, looks, **QUIET)
    voting = [
        button.click(
            lambda now, judge, side=side: (yield from voted(now, judge, side)),
            [bout, parts.judge],
            looks,
            concurrency_limit=None,
            **QUIET,
        )
        for button, side in zip(parts.buttons, CHOICES.values(), strict=True)
    ]
    parts.stop.click(halted, None, looks, cancels=[begun, *voting], **QUIET)
    gr.on(
        [shell.run.change, shell.pulse.change],
        lambda run, *chosen: _offer(library, run, *chosen),
        [shell.run, *parts.pair, parts.judge, known],
        [*parts.pair, parts.judge, known, parts.empty, parts.body, parts.tiny, parts.other],
        **NEWS,
    )

    def so_far(run: str | None, one: str | None, two: str | None, judge: str | None) -> str:
        with errors_as_toasts():
            return standing(library.folder(run), *_newer_first(one, two), judge) if run else ""

    shown = [*parts.pair, parts.judge]
    gr.on(
        [one.change for one in (shell.run, *shown)],
        so_far,
        [shell.run, *shown],
        parts.standing,
        **NEWS,
    )


def _told(library: RunLibrary, growing: Iterator[SideBySide]) -> Iterator[tuple[Any, ...]]:
    with errors_as_toasts():
        for now in growing:
            yield _looks(library, now)


def _looks(library: RunLibrary, bout: SideBySide | None) -> tuple[Any, ...]:
    """The bout, and everything on the tab as it looks now."""
    speaking = bout is not None and bout.busy
    texts, figures = zip(*(reply_of(bout, side) for side in (0, 1)), strict=True)
    may_vote = bout is not None and bout.over and not bout.voted
    words, *judged = verdict_of(bout)
    score = gr.skip()
    if bout is not None and bout.voted:
        score = standing(library.folder(bout.run), *_newer_first(*bout.models), bout.judge)
    return (
        bout,
        *(heading(bout, side) for side in (0, 1)),
        *texts,
        *figures,
        *(gr.update(interactive=may_vote) for _ in CHOICES),
        words,
        *judged,
        score,
        gr.update(visible=not speaking),
        gr.update(visible=speaking),
    )


def _offer(
    library: RunLibrary,
    run: str | None,
    one: str | None,
    two: str | None,
    judge: str | None,
    known: list[str | None],
) -> tuple[Any, ...]:
    """The models to choose from: M0 and the newest, judged by the newest, until somebody chooses otherwise."""
    names, suits_tiny, why = models(library, run)
    if [run, why, *names] == known:
        return tuple(gr.skip() for _ in range(8))
    now, before = _defaults(names), _defaults(known[2:])

    def kept(chosen: str | None, place: int) -> str | None:
        return chosen if chosen in names and chosen != before[place] else now[place]

    return (
        gr.update(choices=names, value=kept(one, 0)),
        gr.update(choices=names, value=kept(two, 1)),
        gr.update(choices=names, value=kept(judge, 1)),
        [run, why, *names],
        gr.update(value=why or NOTHING, visible=len(names) < 2),
        gr.update(visible=len(names) >= 2),
        gr.update(visible=suits_tiny),
        gr.update(visible=not suits_tiny),
    )


def _defaults(names: list[str | None]) -> tuple[str | None, str | None]:
    """Who stands against whom: what came of the seed stage, or of nothing while there is no more, against the newest."""
    return ("M0" if "M0" in names[:-1] else names[0], names[-1]) if names else (None, None)


def _newer_first(one: str | None, two: str | None) -> tuple[str | None, str | None]:
    """Two models in the order in which their record reads best: the later one against the earlier."""

    def age(name: str | None) -> int:
        return int(name[1:]) if name and name[1:].isdigit() else -1

    return (one, two) if age(one) >= age(two) else (two, one)
