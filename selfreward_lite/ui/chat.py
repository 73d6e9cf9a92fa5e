"""The tab in which one talks to a model, and sees what it thinks of its own reply.

Knows: gradio's parts, what happens at a click. Does not know: engines, stores: `talk` does, and `conversation` how turns look.
Handlers are plain functions of what stands on the page, so that tests call them as a page does.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from selfreward_lite.config import Draw
from selfreward_lite.errors import SelfRewardError
from selfreward_lite.talk import House
from selfreward_lite.ui.conversation import Turn, as_jsonl, as_markdown, messages, shown, stopped, turn_of
from selfreward_lite.ui.safe import said

SELF = "the same model"
EXAMPLES = ["Sort the letters c a b.", "Reverse the letters d o h k.", "Swap the ends of x y z."]
HOW_JUDGED = (
    "A reply is judged with the run's own question, number of judgments and draw. In a conversation of several turns the judge "
    "reads all of them, written out, as the request."
)
Shown = tuple[list[Turn], list[dict[str, Any]]]


@dataclass(frozen=True)
class Wish:
    """Who is to reply and how: a run, its model that speaks, the one that judges (SELF for the same), and the draw."""

    run: str
    speaker: str
    judge: str
    system: str
    draw: Draw
    seed: int
    caller: str


# -- what happens at a click ----------------------------------------------------------------------------------------------


def talk(house: House, turns: list[Turn], wish: Wish) -> Iterator[Shown]:
    """Have the last turn answered, then judged; yields the turns and how they look, again and again."""
    judge = wish.speaker if wish.judge == SELF else wish.judge
    last = replace(turns[-1], speaker=wish.speaker, judge=judge, reply=None, score=None)
    try:
        place = house.place(wish.run)
        asked = messages(turns, wish.system)
        with closing(house.reply(place, wish.speaker, asked, wish.draw, wish.seed, wish.caller)) as growing:
            for reply in growing:
                last = replace(last, reply=reply)
                yield _now(turns, last)
        if last.reply is None or not last.reply.text:
            return
        with closing(house.score(place, judge, asked, last.reply.text, wish.caller)) as arriving:
            for score in arriving:
                last = replace(last, score=score)
                yield _now(turns, last)
    except SelfRewardError as error:
        yield _now(turns, stopped([last])[0])
        raise gr.Error(str(error), print_exception=False) from None


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
    return [*turns[:number], Turn(turn.said if text is None else text.strip() or turn.said, turn.speaker)]


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
    jsonl: gr.DownloadButton
    page: gr.DownloadButton


def tab(house: House, run: gr.Dropdown, words: gr.Markdown) -> None:
    """Lay the tab out. `run` is the page's choice of a run, `words` where it says what it runs on."""
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            speaker = gr.Dropdown(label="Model", info="base, then M0 after the seed stage, then one each iteration")
            judge = gr.Dropdown(label="Judged by", choices=[SELF], value=SELF)
            with gr.Accordion("More", open=False):
                draw = [
                    gr.Textbox("", label="System prompt", lines=2),
                    gr.Slider(0, 2, 0.7, step=0.05, label="Temperature"),
                    gr.Slider(0.05, 1, 0.95, step=0.05, label="Top-p"),
                    gr.Slider(16, 2048, 256, step=16, label="Tokens at most"),
                    gr.Number(0, label="Seed", precision=0),
                ]
                gr.Markdown(HOW_JUDGED)
        with gr.Column(scale=3):
            chatbot = gr.Chatbot(
                show_label=False, height="55vh", latex_delimiters=[], allow_tags=False, buttons=["copy"], editable="user",
                placeholder="Say something, or take an example below.", elem_id="talk",
            )
            with gr.Row():
                box = gr.Textbox(show_label=False, placeholder="Say something", scale=8, autofocus=True, container=False)
                stop = gr.Button("Stop", scale=1, min_width=80, visible=False)
                send = gr.Button("Send", variant="primary", scale=1, min_width=80)
            gr.Examples(EXAMPLES, box, label="For the tiny model")
            with gr.Row():
                clear = gr.Button("New conversation", size="sm")
                jsonl, page = gr.DownloadButton("JSON lines", size="sm"), gr.DownloadButton("Markdown", size="sm")
    parts = _Parts(speaker, judge, draw, chatbot, box, stop, send, clear, jsonl, page)
    _wire(house, run, words, parts)
    run.change(lambda run, chosen: _offer(house, run, chosen), [run, speaker], [speaker, judge])


def _wire(house: House, run: gr.Dropdown, words: gr.Markdown, parts: _Parts) -> None:
    """Say what every click does."""
    turns, caller = gr.State([]), gr.State(lambda: uuid.uuid4().hex)
    chatbot, box, buttons = parts.chatbot, parts.box, [parts.stop, parts.send, parts.box]
    files = [parts.jsonl, parts.page]

    def answer(turns: list[Turn], caller: str, *chosen: Any) -> Iterator[Shown]:
        run, speaker, judge, system, temperature, top_p, length, seed = chosen
        if turns and turns[-1].reply is None:
            draw = Draw(temperature=temperature, top_p=top_p, max_tokens=length)
            yield from talk(house, turns, Wish(run, speaker, judge, system, draw, int(seed or 0), caller))

    def then_answer(event: Any) -> Any:
        begun = event.then(shown, turns, chatbot).then(lambda: _buttons(speaking=True), None, buttons)
        given = [turns, caller, run, parts.speaker, parts.judge, *parts.draw]
        speaking = begun.then(answer, given, [turns, chatbot], concurrency_limit=None)
        speaking.then(lambda: _buttons(speaking=False), None, buttons).then(house.words, None, words).then(_files, turns, files)
        return speaking

    def again(turns: list[Turn], event: gr.RetryData) -> list[Turn]:
        return from_here(turns, _place(event.index))

    def edited(turns: list[Turn], event: gr.EditData) -> list[Turn]:
        return from_here(turns, _place(event.index), said(event.value))

    def undone(turns: list[Turn], event: gr.UndoData) -> tuple[list[Turn], str]:
        return without(turns, _place(event.index))

    started = [
        then_answer(gr.on([box.submit, parts.send.click], ask, [turns, box, parts.speaker], [turns, box])),
        then_answer(chatbot.retry(again, turns, turns)),
        then_answer(chatbot.edit(edited, turns, turns)),
    ]
    chatbot.undo(undone, turns, [turns, box]).then(shown, turns, chatbot).then(_files, turns, files)
    ended = [
        parts.stop.click(stopped, turns, turns, cancels=started).then(shown, turns, chatbot),
        gr.on([parts.clear.click, chatbot.clear], lambda: ([], []), None, [turns, chatbot], cancels=started),
    ]
    for event in ended:
        event.then(lambda: _buttons(speaking=False), None, buttons).then(_files, turns, files)


def _offer(house: House, run: str, chosen: str | None) -> tuple[Any, Any]:
    """The models of a run to choose from, the newest first chosen."""
    try:
        names = list(house.place(run).adapters)
    except SelfRewardError as error:
        gr.Warning(str(error))
        names = []
    kept = chosen if chosen in names else names[-1] if names else None
    return gr.update(choices=names, value=kept), gr.update(choices=[SELF, *names], value=SELF)


def _buttons(*, speaking: bool) -> tuple[Any, Any, Any]:
    """Stop while it speaks, else Send; what is typed meanwhile would be lost, so nothing can be."""
    return gr.update(visible=speaking), gr.update(visible=not speaking), gr.update(interactive=not speaking)


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
