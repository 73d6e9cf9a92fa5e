"""What all tabs share: the choice of a run, what the page says of the machine, and the pulse by which tabs learn of news.

Knows: gradio's parts that stand above the tabs. Does not know: tabs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr
from pydantic import ValidationError

from selfreward_lite.config.settings import Draw
from selfreward_lite.system.errors import ConfigError, SelfRewardError

# Of every event that is the page's own: no part of the API that others may call.
OWN: dict[str, Any] = {"api_visibility": "private"}
QUIET: dict[str, Any] = {**OWN, "show_progress": "hidden"}  # … and too short for a spinner
TICK: dict[str, Any] = {**QUIET, "queue": False}  # … and never in anybody's way

# … of something that changed: where two things change at once, gradio's own way ("always_last") goes round for ever.
NEWS: dict[str, Any] = {**QUIET, "trigger_mode": "multiple"}


@dataclass(frozen=True)
class Shell:
    """The run that is chosen, what the machine does in words, and what changes when there is something new in the run: a box
    that nobody sees."""

    run: gr.Dropdown
    words: gr.Markdown
    pulse: gr.Textbox
    timer: gr.Timer


def toast(error: SelfRewardError) -> gr.Error:
    """Return an error of ours as its one line. gradio shows such a line as HTML, and it may quote anybody's words."""
    return gr.Error(str(error).replace("<", "&lt;"), print_exception=False)


@contextmanager
def errors_as_toasts() -> Iterator[None]:
    """Show an error of ours as its one line, to a person or to a program."""
    try:
        yield
    except SelfRewardError as error:
        raise toast(error) from None


def dynamic_dropdown(label: str, **more: Any) -> gr.Dropdown:
    """Lay out a choice among names that come and go. gradio refuses a value it has not heard of yet, so it is told to take any;
    whoever is asked for something that is not there says so."""
    return gr.Dropdown(label=label, allow_custom_value=True, interactive=True, **more)


def table(
    head: list[str] | None, widths: str, label: str | None = None, *, height: int = 400, **more: Any
) -> gr.Dataframe:
    """Lay out a table to read. Its cells show letters, whatever is in them: anybody's text may stand there. `widths` are in
    percent; on a narrow screen it scrolls."""
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


def draw_controls(seed: str = "Seed") -> list[Any]:
    """Lay out how tokens are to be drawn: temperature, top-p, tokens at most, seed."""
    return [
        gr.Slider(0, 2, 0.7, step=0.05, label="Temperature"),
        gr.Slider(0.05, 1, 0.95, step=0.05, label="Top-p"),
        gr.Slider(16, 2048, 256, step=16, label="Tokens at most"),
        gr.Number(0, label=seed, precision=0, minimum=0),
    ]


def draw_of(temperature: float, top_p: float, length: float) -> Draw:
    """Return what the controls say. Raises ConfigError where a program says what no control could."""
    try:
        return Draw(temperature=temperature, top_p=top_p, max_tokens=int(length))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{first['loc'][0]}: {first['msg']}") from None
