"""What the parts of the page take. Gradio passes on whatever is sent: any type, number or size.

The page itself sends nothing of what is refused here. Each refusal is one line that names the part.
"""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from selfreward_lite.app.api import MAX_CHARACTERS
from selfreward_lite.app.texts import refuse_half_characters
from selfreward_lite.app.widgets import errors_as_toasts
from selfreward_lite.system.errors import UserError

MAX_NAME = 255  # characters of a choice


class CheckedPage(gr.Blocks):
    """A page whose handlers get only what its own parts would give."""

    async def process_api(
        self, block_fn: Any, inputs: list[Any], state: Any = None, *more: Any, **options: Any
    ) -> dict[str, Any]:
        if options.get("iterator") is None:  # else the handler runs already
            with errors_as_toasts():
                event = options.get("event_data")
                refuse_files(inputs, "inputs")
                refuse_files(event and event._data, "event_data")
                inputs = read_inputs(block_fn.inputs, inputs, state)
        return await super().process_api(block_fn, inputs, state, *more, **options)


def refuse_files(given: Any, place: str) -> None:
    """Raise UserError where a value names a file or an address, which gradio would fetch."""
    match given:
        case {"meta": _} | {"path": str()}:  # as gradio tells files, in inputs and in events
            raise UserError(f"{place}: the page takes no files")
        case dict():
            for one in given.values():
                refuse_files(one, place)
        case list():
            for one in given:
                refuse_files(one, place)


def read_inputs(parts: Sequence[Any], given: Sequence[Any], state: Any) -> list[Any]:
    """Return what was sent for the inputs of an event; an empty text for a missing one.

    `state` holds the parts as a visitor's page shows them, where they differ from the first ones.
    Raises UserError, with a part's name, for what that part would never send.
    """
    if len(given) != len(parts):
        raise UserError(f"inputs: {len(parts)} are needed, not {len(given)}")
    return [
        _read(state[part._id] if state and _is_shown(part, state) else part, one)
        for part, one in zip(parts, given, strict=True)
    ]


def _is_shown(part: Any, state: Any) -> bool:
    return not isinstance(part, gr.State) and part._id in state


def _read(part: Any, given: Any) -> Any:
    """A part's value; that of a state, or of an endpoint, which checks by itself, as it is."""
    name = part.label or getattr(part, "placeholder", None) or part.get_block_name()
    match part:
        case gr.Textbox():
            return "" if given is None else _read_text(name, given, part.max_length)
        case gr.Dropdown(allow_custom_value=True):  # its handlers check what is chosen
            return None if given is None else _read_text(name, given, MAX_NAME)
        case gr.Dropdown() | gr.Radio():
            return _read_choice(name, given, [value for _, value in part.choices])
        case gr.Dataset():
            return _read_choice(name, given, range(len(part.samples or ())))
        case gr.Checkbox():
            return _read_choice(name, given, (False, True))
        case gr.Slider():
            return _read_number(name, given, part)
        case gr.Number():
            return None if given is None else _read_number(name, given, part)
    return given


def _read_text(name: str, given: Any, longest: int | None) -> str:
    longest = longest or MAX_CHARACTERS
    if not isinstance(given, str):
        raise UserError(f"{name}: give a text")
    if len(given) > longest:
        raise UserError(f"{name}: at most {longest:,} characters")
    refuse_half_characters(given, name)
    return given


def _read_choice(name: str, given: Any, choices: Sequence[Any]) -> Any:
    # The type is compared too, since True equals 1, and 1.0 as well.
    if any(type(one) is type(given) and one == given for one in choices):
        return given
    raise UserError(f"{name}: choose what the page offers")


def _read_number(name: str, given: Any, part: Any) -> int | float:
    least, most = part.minimum, part.maximum
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if is_number and least <= given <= most:  # which no NaN is
        return given
    raise UserError(f"{name}: give a number from {least:g} to {most:g}")
