"""What the parts of the page take, and what they refuse, by name."""

import gradio as gr
import pytest

from selfreward_lite.app import page
from selfreward_lite.app.inputs import read_inputs, refuse_files
from selfreward_lite.app.library import RunLibrary
from selfreward_lite.app.widgets import About, dynamic_dropdown, read_index
from selfreward_lite.system.errors import UserError


@pytest.fixture(scope="module")
def parts():
    with gr.Blocks():
        return {
            "text": gr.Textbox(label="text"),
            "short": gr.Textbox(label="short", max_length=3),
            "name": dynamic_dropdown("name"),
            "choice": gr.Dropdown(["a", "b"], label="choice"),
            "radio": gr.Radio([("A", "a")], label="radio"),
            "switch": gr.Checkbox(label="switch"),
            "slider": gr.Slider(0, 2, label="slider"),
            "number": gr.Number(label="number", minimum=0, maximum=9),
            "example": gr.Dataset(components=["textbox"], samples=[["x"]], label="example"),
        }


@pytest.mark.parametrize(
    ("part", "given", "read"),
    [
        *(("text", "x", "x"), ("text", None, ""), ("name", "x", "x"), ("name", None, None)),
        *(("choice", "b", "b"), ("radio", "a", "a"), ("switch", True, True)),
        *(("slider", 2, 2), ("slider", 0.5, 0.5), ("number", 9, 9), ("number", None, None)),
        ("example", 0, 0),
    ],
)
def test_what_the_page_sends_is_taken(parts, part, given, read):
    assert read_inputs([parts[part]], [given], None) == [read]


@pytest.mark.parametrize(
    ("part", "refused"),
    [
        ("text", [1, ["x"], {}, "x" * 100_001, "\ud800"]),
        ("short", ["long"]),
        ("name", [1, [], "x" * 256, "\ud800"]),
        ("choice", [None, "c", ["a"], [], {}, 0]),
        ("radio", [None, "A", [], True]),
        ("switch", [None, 0, 1, "x", []]),
        ("slider", [None, -1, 10**400, float("nan"), float("inf"), True, "1", []]),
        ("number", [-1, 10, 2**70, 10**400, float("nan"), float("inf"), False, "1", [1]]),
        ("example", [None, True, -1, 1, 10**30, 0.0, "x", []]),
    ],
)
def test_what_it_would_not_send_is_refused_by_name(parts, part, refused):
    for given in refused:
        with pytest.raises(UserError, match=f"^{part}(: | holds half a character)") as said:
            read_inputs([parts[part]], [given], None)
        assert len(str(said.value)) < 100


def test_each_input_comes_once(parts):
    for given in ([], ["x", "y"]):
        with pytest.raises(UserError, match="inputs: 1 are needed"):
            read_inputs([parts["text"]], given, None)


def test_no_file_is_named():
    refuse_files([{"path": 1}, None, 1, "meta", "path"], "inputs")
    for file in ({"meta": {}}, {"path": "x"}, {"path": "/etc/passwd", "meta": {}}):
        with pytest.raises(UserError, match="inputs: the page takes no files"):
            refuse_files([{"a": [file]}], "inputs")


@pytest.mark.parametrize("sent", [None, 1, "index", [], {}, {"index": True}, {"index": ["x"]}])
def test_an_event_about_nothing_is_refused(sent):
    with pytest.raises(UserError, match="choose it again"):
        read_index(About(None, sent))
    assert About(None, sent).value is None


def test_all_that_a_visitor_can_send_is_checked(tmp_path):
    """A part of another kind would let everything pass; a number without bounds, NaN and more."""
    checked = (gr.Textbox, gr.Dropdown, gr.Radio, gr.Dataset, gr.Checkbox, gr.Slider, gr.Number)
    built = page.build(RunLibrary(tmp_path))
    endpoints = ("runs", "chat", "judge", "compare")
    events = [one for one in built.fns.values() if one.api_name not in endpoints]
    sent = [part for one in events for part in one.inputs if not isinstance(part, gr.State)]
    assert {type(part) for part in sent} == set(checked)
    for part in sent:
        if isinstance(part, gr.Slider | gr.Number):
            assert None not in (part.minimum, part.maximum), part.label
