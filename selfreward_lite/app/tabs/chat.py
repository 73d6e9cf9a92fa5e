"""The tab in which one talks to a model, and sees what it thinks of its own reply.

Knows: gradio's parts, what happens at a click. Does not know: engines, stores: `talk` does, and `conversation` how turns look.
Handlers are plain functions of what stands on the page, so that tests call them as a page does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from selfreward_lite.app.conversation import (
    Turn,
    as_jsonl,
    as_markdown,
    messages,
    shown,
    stopped,
    turn_of,
)
from selfreward_lite.app.escape import escape_markdown, unescape
from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.widgets import (
    NEWS,
    QUIET,
    Shell,
    draw_controls,
    draw_of,
    dynamic_dropdown,
    toast,
)
from selfreward_lite.config.settings import Draw
from selfreward_lite.system.errors import SelfRewardError

SELF = "the same model"
TINY_EXAMPLES = [
    "Sort the letters c a b.",
    "Reverse the letters d o h k.",
    "Swap the ends of x y z.",
]
EXAMPLES = [
    "Explain to a ten-year-old why the sky is blue.",
    "Write three titles for a talk about bees.",
    "My bread does not rise. What should I check first?",
]
HOW_JUDGED = (
    "A reply is judged with the run's own question, number of judgments and draw. In a conversation of several turns the judge "
    "reads all of them, written out, as the request."
)
Shown = tuple[list[Turn], list[dict[str, Any]]]


@dataclass(frozen=True)
class ChatRequest:
    """Who is to reply and how: a run, its model that speaks, the one that judges (SELF for the same), and the draw."""

    run: str
    speaker: str
    judge: str
    system: str
    draw: Draw
    seed: int
    caller: str


# -- what happens at a click ----------------------------------------------------------------------------------------------


def talk(library: RunLibrary, turns: list[Turn], wish: ChatRequest) -> Iterator[Shown]:
    """Have the last turn answered, then judged; yields the turns and how they look, again and again."""
    judge = wish.speaker if wish.judge == SELF else wish.judge
    last = replace(turns[-1], speaker=wish.speaker, judge=judge, reply=None, score=None)
    try:
        place = library.place(wish.run)
        asked = messages(turns, wish.system)
        with closing(
            library.reply(place, wish.speaker, asked, wish.draw, wish.seed, wish.caller)
        ) as growing:
            for reply in growing:
                last = replace(last, reply=reply)
                yield _now(turns, last)
        if last.reply is None or not last.reply.text:
            return
        with closing(library.score(place, judge, asked, last.reply.text, wish.caller)) as arriving:
            for score in arriving:
                last = replace(last, score=score)
                yield _now(turns, last)
    except SelfRewardError as error:
        yield _now(turns, stopped([last])[0])
        raise toast(error) from None


def _now(turns: list[Turn], last: Turn) -> Shown:
    now = [*turns[:-1], last]
    return now, shown(now)


def ask(turns: list[Turn], text: str, speaker: str) -> tuple[list[Turn], str]:
    """Add what the user said; an empty line is nothing. Returns the turns and an empty box."""
    return ([*turns, Turn(text.strip(), speaker)] if text.strip() else turns), ""


def from_here(turns: list[Turn], place: int, text: str | None = None) -> list[Turn]:
    """Return the turns up to that of the message at `place`, whose question is put again, or as `text` says it now."""
    number = turn_of(turns, place)
    turn = turns[number]
    return [
        *turns[:number],
        Turn(turn.said if text is None else text.strip() or turn.said, turn.speaker),
    ]


def without(turns: list[Turn], place: int) -> tuple[list[Turn], str]:
    """Return the turns before that of the message at `place`, and what was asked there, to be said otherwise."""
    number = turn_of(turns, place)
    return turns[:number], turns[number].said


# -- how it is laid out ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Parts:
    """What stands on the tab."""

    speaker: gr.Dropdown
    judge: gr.Dropdown
    draw: list[Any]  # system prompt, temperature, top-p, tokens at most, seed
    chatbot: gr.Chatbot
    box: gr.Textbox
    stop: gr.Button
    send: gr.Button
    clear: gr.Button
    files: list[Any]
    tiny: gr.Column
    other: gr.Column


def tab(library: RunLibrary, shell: Shell) -> None:
    """Lay the tab out."""
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            speaker = dynamic_dropdown(
                "Model", info="base, then M0 after the seed stage, then one each iteration"
            )
            judge = dynamic_dropdown("Judged by", choices=[SELF], value=SELF)
            why = gr.Markdown("", visible=False, elem_id="why-none")
            with gr.Accordion("More", open=False):
                draw = [gr.Textbox("", label="System prompt", lines=2), *draw_controls()]
                gr.Markdown(HOW_JUDGED)
        with gr.Column(scale=3):
            chatbot = gr.Chatbot(
                show_label=False,
                height="55vh",
                latex_delimiters=[],
                allow_tags=False,
                buttons=["copy"],
                editable="user",
                placeholder="Say something, or take an example below.",
                elem_id="talk",
            )
            with gr.Row():
                box = gr.Textbox(
                    show_label=False,
                    placeholder="Say something",
                    scale=8,
                    autofocus=True,
                    container=False,
                )
                stop = gr.Button("Stop", scale=1, min_width=80, visible=False)
                send = gr.Button("Send", variant="primary", scale=1, min_width=80)
            with gr.Column(visible=False) as tiny:
                gr.Examples(
                    TINY_EXAMPLES, box, label="What the tiny model knows", api_visibility="private"
                )
            with gr.Column(visible=False) as other:
                gr.Examples(EXAMPLES, box, label="For a start", api_visibility="private")
            with gr.Row():
                clear = gr.Button("New conversation", size="sm")
                files = [
                    gr.DownloadButton("JSON lines", size="sm"),
                    gr.DownloadButton("Markdown", size="sm"),
                ]
    parts = _Parts(speaker, judge, draw, chatbot, box, stop, send, clear, files, tiny, other)
    _wire(library, shell, parts)
    known = gr.State([])
    gr.on(
        [shell.run.change, shell.pulse.change],
        lambda run, *chosen: offer(library, run, *chosen),
        [shell.run, speaker, judge, known],
        [speaker, judge, known, tiny, other, why],
        **NEWS,
    )


def _wire(library: RunLibrary, shell: Shell, parts: _Parts) -> None:
    """Say what every click does."""
    turns = gr.State([])
    chatbot, box = parts.chatbot, parts.box
    looks = [turns, chatbot, box, parts.stop, parts.send]
    given = [turns, box, shell.run, parts.speaker, parts.judge, *parts.draw]

    def answer(turns: list[Turn], request: gr.Request, *chosen: Any) -> Iterator[tuple[Any, ...]]:
        run, speaker, judge, system, temperature, top_p, length, seed = chosen
        yield turns, shown(turns), *_buttons(speaking=True)
        wish = ChatRequest(
            run,
            speaker,
            judge,
            system,
            draw_of(temperature, top_p, length),
            int(seed or 0),
            request.session_hash or "",
        )
        for now, looks in talk(library, turns, wish):
            yield now, looks, gr.skip(), gr.skip(), gr.skip()

    def said_now(
        request: gr.Request, turns: list[Turn], text: str, *chosen: Any
    ) -> Iterator[tuple[Any, ...]]:
        now, _ = ask(turns, text, chosen[1])
        if now != turns:
            yield from answer(now, request, *chosen)

    def again(
        event: gr.RetryData, request: gr.Request, turns: list[Turn], _: str, *chosen: Any
    ) -> Iterator[tuple[Any, ...]]:
        yield from answer(from_here(turns, _place(event.index)), request, *chosen)

    def edited(
        event: gr.EditData, request: gr.Request, turns: list[Turn], _: str, *chosen: Any
    ) -> Iterator[tuple[Any, ...]]:
        yield from answer(
            from_here(turns, _place(event.index), unescape(event.value)), request, *chosen
        )

    def undone(turns: list[Turn], event: gr.UndoData) -> tuple[Any, ...]:
        left, text = without(turns, _place(event.index))
        return left, shown(left), text

    asked = {**QUIET, "concurrency_limit": None}
    started = [
        gr.on([box.submit, parts.send.click], said_now, given, looks, **asked),
        chatbot.retry(again, given, looks, **asked),
        chatbot.edit(edited, given, looks, **asked),
    ]
    ended = [
        *started,
        parts.stop.click(_stopped, turns, [turns, chatbot], cancels=started, **QUIET),
        gr.on(
            [parts.clear.click, chatbot.clear],
            lambda: ([], []),
            None,
            [turns, chatbot],
            cancels=started,
            **QUIET,
        ),
        chatbot.undo(undone, turns, [turns, chatbot, box], **QUIET),
    ]
    rest = [parts.stop, parts.send, box, shell.words, *parts.files]
    for event in ended:
        event.then(lambda turns: _at_rest(library, turns), turns, rest, **QUIET)


def offer(
    library: RunLibrary,
    run: str | None,
    chosen: str | None,
    judge: str | None,
    known: list[str | None],
) -> tuple[Any, ...]:
    """Return the models of a run to choose from, what is `known` from now on, examples that suit it, and why there are no models.

    Whoever had chosen the newest gets the newest when there is a newer one; any other choice stays. Nothing is said twice: a page
    that is told what it shows takes it for a change.
    """
    names, suits_tiny, why = models(library, run)
    if [run, why, *names] == known:
        return tuple(gr.skip() for _ in range(6))
    stays = chosen in names and chosen != (known[-1] if known[2:] else None)
    return (
        gr.update(choices=names, value=chosen if stays else names[-1] if names else None),
        gr.update(choices=[SELF, *names], value=judge if judge in names else SELF),
        [run, why, *names],
        gr.update(visible=suits_tiny),
        gr.update(visible=bool(names) and not suits_tiny),
        gr.update(value=why, visible=bool(why)),
    )


def models(library: RunLibrary, run: str | None) -> tuple[list[str], bool, str]:
    """Return the models of a run, the newest last; whether they are of the tiny world; why they cannot be talked to."""
    if run is None:
        return [], False, ""
    try:
        place = library.place(run)
    except SelfRewardError as error:
        return [], False, f"⚠ {escape_markdown(str(error))}"
    return list(place.adapters), run == TINY or place.settings.model.base == "tiny", ""


def _stopped(turns: list[Turn]) -> Shown:
    now = stopped(turns)
    return now, shown(now)


def _buttons(*, speaking: bool) -> tuple[Any, Any, Any]:
    """The box, Stop and Send: what is typed while it speaks would be lost, so nothing can be."""
    box = gr.update(value="", interactive=False) if speaking else gr.update(interactive=True)
    return box, gr.update(visible=speaking), gr.update(visible=not speaking)


def _at_rest(library: RunLibrary, turns: list[Turn]) -> tuple[Any, ...]:
    """How everything beside the conversation looks while nobody speaks."""
    box, *buttons = _buttons(speaking=False)
    return (*buttons, box, escape_markdown(library.words()), *_files(turns))


def _place(index: Any) -> int:
    return index[0] if isinstance(index, list | tuple) else index


def _files(turns: list[Turn]) -> tuple[str | None, str | None]:
    """The conversation as files to take away, under names that are ours, in a folder that goes when the app does."""
    if not turns:
        return None, None
    folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
    (folder / "conversation.jsonl").write_text(as_jsonl(turns), encoding="utf-8")
    (folder / "conversation.md").write_text(as_markdown(turns), encoding="utf-8")
    return str(folder / "conversation.jsonl"), str(folder / "conversation.md")
