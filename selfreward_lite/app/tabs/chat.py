"""The chat tab: talk to a model, and see how a judge scores each reply."""

import html
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from selfreward_lite.app.api import check_arguments
from selfreward_lite.app.conversation import (
    Turn,
    as_jsonl,
    as_markdown,
    find_turn,
    mark_stopped,
    messages,
    render,
)
from selfreward_lite.app.escape import escape_markdown
from selfreward_lite.app.library import RunLibrary
from selfreward_lite.app.talk import Talk
from selfreward_lite.app.widgets import (
    ASK,
    NEWS,
    QUIET,
    About,
    Choices,
    DrawControls,
    Header,
    PromptBox,
    Updates,
    Values,
    dynamic_dropdown,
    errors_as_toasts,
    list_models,
    read_index,
)
from selfreward_lite.system.errors import SelfRewardError

SELF = "the same model"
HOW_JUDGED = (
    "The judge reads the run's own judging prompt, with the run's number of judgments and sampling "
    "settings. In a conversation of several turns it reads all of them as the request."
)


def repeat_from(turns: list[Turn], index: int, text: str = "") -> list[Turn]:
    """Return the turns up to message `index`, its question asked again, or `text` if given."""
    number = find_turn(turns, index)
    turn = turns[number]
    return [*turns[:number], Turn(text.strip() or turn.said, turn.speaker)]


class ChatTab:
    """The parts of the tab, and what happens at a click."""

    def __init__(self, library: RunLibrary, header: Header) -> None:
        self.library, self.header = library, header
        self.turns, self.choices = gr.State([]), gr.State(None)
        with gr.Row():
            with gr.Column(min_width=240):
                self.model = dynamic_dropdown(
                    "Model",
                    info="base: untrained; M0: after the seed stage; M1, M2, …: after iterations",
                )
                self.judge = dynamic_dropdown("Judge", choices=[SELF], value=SELF)
                self.problem = gr.Markdown(visible=False)
                with gr.Accordion("Settings", open=False):
                    self.system = gr.Textbox("", label="System prompt", lines=2)
                    self.draw = DrawControls()
                    gr.Markdown(HOW_JUDGED)
            with gr.Column(scale=3):
                self.chatbot = chatbot = gr.Chatbot(
                    show_label=False,
                    height="55vh",
                    latex_delimiters=[],
                    allow_tags=False,
                    buttons=["copy"],
                    editable="user",
                    placeholder="Write a message, or choose an example below.",
                    elem_id="talk",
                )
                self.prompt = prompt = PromptBox("Write a message", "Send", autofocus=True)
                with gr.Row():
                    clear = gr.Button("New conversation", size="sm")
                    self.jsonl = gr.DownloadButton("Download as JSON lines", size="sm")
                    self.markdown = gr.DownloadButton("Download as Markdown", size="sm")
        outputs = [self.turns, chatbot, *prompt.parts, header.status, self.jsonl, self.markdown]
        chosen: list[Any] = [header.run, self.model, self.judge, self.system, *self.draw.parts]
        inputs: set[Any] = {self.turns, prompt.text, *chosen}
        started = [
            gr.on([prompt.text.submit, prompt.send.click], self.send, inputs, outputs, **ASK),
            chatbot.retry(self.retry, inputs, outputs, **ASK),
            chatbot.edit(self.edit, inputs, outputs, **ASK),
        ]
        stop: dict[str, Any] = {"outputs": outputs, "cancels": started, **QUIET}
        ended = [
            *started,
            prompt.stop.click(lambda turns: self.show(mark_stopped(turns)), self.turns, **stop),
            gr.on([clear.click, chatbot.clear], lambda: self.show([]), **stop),
            chatbot.undo(self.undo, self.turns, outputs, **QUIET),
        ]
        for event in ended:
            event.then(self.show_idle, self.turns, outputs, **QUIET)
            event.failure(self.show_idle, self.turns, outputs, **QUIET)  # `then` does not run
        known = [header.run, self.model, self.judge, self.choices]
        offers = [self.model, self.judge, self.choices, prompt.examples, self.problem]
        gr.on(header.changes, self.offer_models, known, offers, **NEWS)

    def show(self, turns: list[Turn]) -> Updates:
        return {self.turns: turns, self.chatbot: render(turns)}

    def answer(self, turns: list[Turn], values: Values, request: gr.Request) -> Iterator[Updates]:
        """Have the last turn answered, then judged; yields the conversation as it grows."""
        yield self.show(turns) | self.prompt.show_busy(True)
        *earlier, last = turns
        with errors_as_toasts():
            run, speaker = self.choose_model(values)
            judge = speaker if values[self.judge] in (None, SELF) else values[self.judge]
            last = Turn(last.said, speaker, judge=judge)
            asked = messages([*earlier, last], values[self.system])
            draw, seed = self.draw.read(values)
            try:
                talk = Talk(self.library, run, request.session_hash or "")
                with closing(talk.stream_reply(speaker, asked, draw, seed)) as replies:
                    for reply in replies:
                        last = replace(last, reply=reply)
                        yield self.show([*earlier, last])
                if last.reply is None or not last.reply.text:
                    return
                with closing(talk.stream_score(judge, asked, last.reply.text)) as scores:
                    for score in scores:
                        last = replace(last, score=score)
                        yield self.show([*earlier, last])
            except SelfRewardError:
                yield self.show(mark_stopped([*earlier, last]))
                raise

    def choose_model(self, values: Values) -> tuple[str, str]:
        """Return the run and the model that were chosen.

        What the page does not show yet is what it is about to show: the newest. Raises UserError
        without a model.
        """
        run = values[self.header.run] or self.library.choices()[0]
        if values[self.model]:
            return run, values[self.model]
        return run, list(self.library.models(run).adapters)[-1]

    def send(self, values: Values, request: gr.Request) -> Iterator[Updates]:
        text = values[self.prompt.text].strip()
        if text:
            turns = [*values[self.turns], Turn(text, values[self.model] or "")]
            replies = self.answer(turns, values, request)
            # What was written is deleted here alone: a retry must keep it.
            yield next(replies) | {self.prompt.text: gr.update(value="", interactive=False)}
            yield from replies

    def retry(self, event: About, values: Values, request: gr.Request) -> Iterator[Updates]:
        with errors_as_toasts():
            turns = repeat_from(values[self.turns], read_index(event))
        yield from self.answer(turns, values, request)

    def edit(self, event: About, values: Values, request: gr.Request) -> Iterator[Updates]:
        with errors_as_toasts():
            check_arguments(message=event.value)
            text = html.unescape(event.value)
            turns = repeat_from(values[self.turns], read_index(event), text)
        yield from self.answer(turns, values, request)

    def undo(self, turns: list[Turn], event: About) -> Updates:
        with errors_as_toasts():
            number = find_turn(turns, read_index(event))
        return self.show(turns[:number]) | {self.prompt.text: turns[number].said}

    def show_idle(self, turns: list[Turn]) -> Updates:
        """Return everything beside the conversation as it looks while no model replies."""
        jsonl, markdown = write_files(turns)
        return self.prompt.show_busy(False) | {
            self.header.status: escape_markdown(self.library.engine_status()),
            self.jsonl: jsonl,
            self.markdown: markdown,
        }

    def offer_models(
        self, run: str | None, model: str | None, judge: str | None, known: Choices | None
    ) -> Updates:
        """Return the models of a run to choose from.

        If the newest was chosen, the choice moves to a newer one; any other choice stays.
        Choices that are `known` are not sent again: the page would take it for a change.
        """
        now, before = list_models(self.library, run), known or Choices(None)
        if now == known:
            return gr.skip()
        return {
            self.model: now.keep(model, before.last, now.last),
            self.judge: gr.update(
                choices=[SELF, *now.names], value=judge if judge in now.names else SELF
            ),
            self.choices: now,
            self.problem: gr.update(value=now.problem, visible=bool(now.problem)),
        } | self.prompt.show_examples(now)


def write_files(turns: list[Turn]) -> tuple[str | None, str | None]:
    """Write the conversation as JSON lines and as Markdown; returns the paths."""
    if not turns:
        return None, None
    folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
    jsonl, markdown = folder / "conversation.jsonl", folder / "conversation.md"
    jsonl.write_text(as_jsonl(turns), encoding="utf-8")
    markdown.write_text(as_markdown(turns), encoding="utf-8")
    return str(jsonl), str(markdown)
