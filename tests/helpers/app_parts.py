"""Parts of the app's page, for tests of one tab alone."""

import gradio as gr

from selfreward_lite.app.widgets import Header


def make_header() -> Header:
    """The parts above the tabs; call it inside `gr.Blocks`."""
    return Header(gr.Dropdown(), gr.Markdown(), gr.Textbox(), gr.Timer(active=False), gr.Button())
