"""What the tabs share: header, model choices, prompt box, sampling controls, tables, errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr
from pydantic import ValidationError

from selfreward_lite.app.escape import escape_markdown
from selfreward_lite.app.library import RunLibrary
from selfreward_lite.config.settings import Sampling
from selfreward_lite.config.wording import explain_fault
from selfreward_lite.system.errors import ConfigError, SelfRewardError, UserError

Options = dict[str, Any]  # of an event
# For events of the page itself, which are not part of the API for other programs.
OWN: Options = {"api_visibility": "private"}
QUIET: Options = {**OWN, "show_progress": "hidden"}  # … and too short for a spinner
# … and outside the queue, so that it never waits or makes others wait.
TICK: Options = {**QUIET, "queue": False}
# … for a change: where two things change at once, gradio's default ("always_last") never ends.
NEWS: Options = {**QUIET, "trigger_mode": "multiple"}
# … for replies, which wait for the engine and not for each other.
ASK: Options = {**QUIET, "concurrency_limit": None}

Values = dict[Any, Any]  # by component, what the page holds
Updates = dict[Any, Any]  # by component, its new value or gr.update(…)

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


@dataclass(frozen=True)
class Header:
    """The parts above the tabs. `news` is a hidden box whose text changes when the run does.

    `first_run` is the button that starts the tiny run where there is no run yet.
    """

    run: gr.Dropdown
    status: gr.Markdown
    news: gr.Textbox
    timer: gr.Timer
    first_run: gr.Button

    @property
    def changes(self) -> list[Any]:
        """The events after which a tab shows the run anew."""
        return [self.run.change, self.news.change]


@dataclass(frozen=True)
class Choices:
    """What a run offers to choose from, models or groups of prompts; or why there is nothing."""

    run: str | None
    names: tuple[str, ...] = ()
    is_tiny: bool = False
    problem: str = ""

    @property
    def first(self) -> str | None:
        return self.names[0] if self.names else None

    @property
    def last(self) -> str | None:
        return self.names[-1] if self.names else None

    def keep(self, chosen: str | None, replaced: str | None, default: str | None) -> Updates:
        """Return an update that keeps a user's choice; `replaced`, a default so far, is none."""
        stays = chosen in self.names and chosen != replaced
        return gr.update(choices=self.names, value=chosen if stays else default)


def list_models(library: RunLibrary, run: str | None) -> Choices:
    """Return the models that a run has now, the newest last."""
    if run is None:
        return Choices(None)
    try:
        models = library.models(run)
    except SelfRewardError as error:
        return Choices(run, problem=warn(error))
    return Choices(run, tuple(models.adapters), models.settings.model.base == "tiny")


class PromptBox:
    """A text box with Send and Stop, and examples that suit the run."""

    def __init__(self, placeholder: str, send: str, *, autofocus: bool = False) -> None:
        with gr.Row():
            self.text = gr.Textbox(
                show_label=False,
                placeholder=placeholder,
                scale=8,
                container=False,
                autofocus=autofocus,
            )
            self.stop = gr.Button("Stop", scale=1, min_width=80, visible=False)
            self.send = gr.Button(send, variant="primary", scale=1, min_width=80)
        self.examples = gr.Dataset(
            components=[self.text], samples=[], label="Examples", visible=False
        )
        self.examples.click(lambda row: row[0], self.examples, self.text, **QUIET)
        self.parts: list[Any] = [self.text, self.stop, self.send]

    def show_busy(self, busy: bool) -> Updates:
        """Return updates for while a model replies: text typed then would be lost."""
        return {
            self.text: gr.update(interactive=not busy),
            self.stop: gr.update(visible=busy),
            self.send: gr.update(visible=not busy),
        }

    def show_examples(self, choices: Choices) -> Updates:
        """Return updates that offer examples for the models of a run."""
        samples = [[text] for text in (TINY_EXAMPLES if choices.is_tiny else EXAMPLES)]
        return {self.examples: gr.update(samples=samples, visible=bool(choices.names))}


class DrawControls:
    """Controls for how tokens are drawn."""

    def __init__(self) -> None:
        self.parts: list[Any] = [
            gr.Slider(0, 2, 0.7, step=0.05, label="Temperature"),
            gr.Slider(0.05, 1, 0.95, step=0.05, label="Top-p"),
            gr.Slider(16, 2048, 256, step=16, label="Maximum tokens"),
            gr.Number(0, label="Random seed", precision=0, minimum=0, maximum=2**32 - 1),
        ]

    def read(self, values: Values) -> tuple[Sampling, int]:
        """Return how to draw, and the seed."""
        temperature, top_p, max_tokens, seed = (values[part] for part in self.parts)
        return parse_draw(temperature, top_p, max_tokens), int(seed or 0)


def parse_draw(temperature: float, top_p: float, max_tokens: float) -> Sampling:
    """Return sampling settings. Raises ConfigError for values that no control would give."""
    try:
        return Sampling(temperature=temperature, top_p=top_p, max_tokens=int(max_tokens))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(explain_fault(str(first["loc"][0]), first)) from None


class About(gr.EventData):
    """What an event is about: a message or a row, and its new text. None for what was not sent.

    Gradio's own classes end in a traceback where a field is missing.
    """

    def __init__(self, target: Any, _data: Any) -> None:
        super().__init__(target, _data)
        sent = _data if isinstance(_data, dict) else {}
        self.index: Any = sent.get("index")
        self.value: Any = sent.get("value")


def read_index(event: About) -> int:
    """Return the number of the message or row that an event is about.

    Raises UserError for none: gradio passes on whatever is sent.
    """
    match event.index:
        case bool():
            pass
        case int(index) | [int(index), *_]:
            return index
    raise UserError("that is not there any more; choose it again")


def warn(error: SelfRewardError) -> str:
    """Return an error as a line of Markdown."""
    return f"⚠ {escape_markdown(str(error))}"


@contextmanager
def errors_as_toasts() -> Iterator[None]:
    """Show an error as one line, on the page or to another program."""
    try:
        yield
    except SelfRewardError as error:
        # gradio shows it as HTML, and it may quote a model's text.
        raise gr.Error(str(error).replace("<", "&lt;"), print_exception=False) from None


def dynamic_dropdown(label: str, **more: Any) -> gr.Dropdown:
    """Return a dropdown whose options change at run time; its handlers check what is chosen."""
    # Gradio would refuse what was not among the first options.
    return gr.Dropdown(label=label, allow_custom_value=True, interactive=True, **more)


def text_table(
    head: list[str] | None, widths: str, label: str | None = None, *, height: int = 400, **more: Any
) -> gr.Dataframe:
    """Return a read-only table whose cells show their text and never markup. Widths in percent."""
    return gr.Dataframe(
        headers=head,
        datatype="str",
        interactive=False,
        wrap=True,
        elem_classes="wide",
        max_height=height,
        label=label,
        show_label=label is not None,
        column_widths=[f"{width}%" for width in widths.split()] or None,
        **more,
    )
