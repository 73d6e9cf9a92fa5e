"""The page: its tabs, its look, and how it is served: on this machine alone, unless somebody asks for more and gives a password.

Knows: gradio. Does not know: what a tab does. Nothing of the machine can be read through it: it runs in an empty folder, hands
out no file that a user names, and lets no text fetch a picture or send a form.
"""

from __future__ import annotations

import os
import tempfile

import gradio as gr

from selfreward_lite.app import api
from selfreward_lite.app.escape import escape_markdown
from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.tabs import chat, compare, explore, progress
from selfreward_lite.app.tabs import run as run_tab
from selfreward_lite.app.widgets import QUIET, TICK, Shell, dynamic_dropdown
from selfreward_lite.report import status
from selfreward_lite.system.errors import SelfRewardError, UserError

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read as gradio is imported
TITLE = "selfreward_lite"
SHUT = "img-src 'self' data: blob:; media-src 'none'; form-action 'none'; frame-src 'none'; object-src 'none'"
HEAD = f'<meta http-equiv="Content-Security-Policy" content="{SHUT}">'
CSS = """
footer {display: none !important}
.gradio-container {max-width: 1200px !important; margin: auto}
#head {align-items: end}
#machine p, .fine p {font-size: var(--text-sm); color: var(--body-text-color-subdued)}
#first {align-items: center; padding: var(--spacing-lg); border-radius: var(--radius-lg); background: var(--color-accent-soft)}
.stage progress {display: block; width: 100%; height: 10px; accent-color: var(--color-accent)}
.answer {overflow-wrap: anywhere}
.wide {max-width: calc(100vw - 4rem); overflow-x: auto !important}
.wide .table-wrap {min-width: 760px}
#log textarea {font-family: var(--font-mono); font-size: var(--text-xs)}
"""
FONTS = {
    "font": ["system-ui", "sans-serif"],
    "font_mono": ["ui-monospace", "monospace"],
}  # of the machine: nothing is fetched

# Stages after which there is something to see; small ones end many times a second.
LANDMARKS = (
    "ranked",
    "prompts",
    "judgments",
    "response_pairs",
    "judgment_pairs",
    "training",
    "evaluation",
    "gates",
)
ON_CPU = "Talk on the CPU: slower, and the card is left to a run"
PULSE = 2.0  # seconds between two looks at the runs
QUEUE = 64  # events that wait, and requests of the engine: beyond that the page says so
THREADS = 200  # a reply under way has one for as long as nothing is said, a quarter of a second
WELCOME = (
    "**No run yet.** You can talk to the tiny model at once. A tiny run shows the whole loop: the model answers, judges its "
    "answers, judges its judgments, and is trained on both, three times; some minutes on a CPU, no download."
)


def build(library: RunLibrary) -> gr.Blocks:
    """Return the page for a folder of runs."""
    with gr.Blocks(title=TITLE, delete_cache=(3600, 3600)) as page:
        with gr.Row(elem_id="head"):
            with gr.Column(min_width=300):
                gr.Markdown(
                    "# selfreward_lite\nA language model that judges its own answers, and learns from it."
                )
            with gr.Column(min_width=300):
                run = dynamic_dropdown("Run", container=False, elem_id="run")
                words = gr.Markdown(elem_id="machine")
                on_cpu = gr.Checkbox(label=ON_CPU, visible=bool(library.cards), container=False)
        with gr.Row(visible=False, elem_id="first") as welcome:
            gr.Markdown(WELCOME)
            first = gr.Button("Start a tiny run", variant="primary", scale=0, min_width=180)
        shell = Shell(run, words, gr.Textbox("", visible="hidden"), gr.Timer(PULSE))
        with gr.Tabs() as tabs:
            with gr.Tab("Chat", id="chat"):
                chat.tab(library, shell)
            with gr.Tab("Compare", id="compare"):
                compare.tab(library, shell)
            with gr.Tab("Run", id="run"):
                run_tab.tab(library, shell, first)
            with gr.Tab("Explore", id="explore"):
                explore.tab(library, shell)
            with gr.Tab("Progress", id="progress"):
                progress.tab(library, shell)
        on_cpu.input(lambda wanted: setattr(library, "on_cpu", wanted), on_cpu, None, **QUIET)
        first.click(lambda: gr.update(selected="run"), None, tabs, **QUIET)
        api.define(library)

        def look(chosen: str | None, known: list[str]) -> tuple[object, ...]:
            runs = library.runs()
            now = chosen if chosen in (*runs, TINY) else runs[0] if runs else TINY
            told = [
                *runs,
                now,
                library.on_cpu,
                escape_markdown(library.words()),
                news(library, now),
            ]
            if told == known:  # a page that is told what it shows takes it for a change
                return tuple(gr.skip() for _ in seen)
            value = (
                {} if now == chosen else {"value": now}
            )  # else a choice made meanwhile would be undone
            return (
                gr.update(choices=[*runs, TINY], **value),
                told,
                gr.update(visible=not runs),
                *told[-3:],
            )

        known = gr.State([])
        parts, seen = [run, known], [run, known, welcome, on_cpu, words, shell.pulse]
        page.load(look, parts, seen, **QUIET)
        shell.timer.tick(look, parts, seen, **TICK)
    return page


def news(library: RunLibrary, run: str) -> str:
    """Return words that change when a run has ended a stage, or has a new model, or begins or ends to work."""
    if run == TINY:
        return run
    try:
        view = status.view(library.folder(run))
    except SelfRewardError as error:
        return f"{run}: {error}"
    ended = [
        f"{stage.model} {stage.name}"
        for stage in view.stages
        if stage.ended and stage.name in LANDMARKS
    ]
    return f"{run} {view.birth}: {view.state}, {view.newest}, {', '.join(ended[-1:])}"


def serve(
    library: RunLibrary, port: int | None, listen: bool, auth: tuple[str, str] | None
) -> None:
    """Show the page until it is interrupted, to the network only if it is to `listen`; `auth` is user and password.

    Raises UserError where the port is taken.
    """
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)  # gradio hands out files of the folder it runs in
        page = build(library)
        page.queue(max_size=QUEUE, default_concurrency_limit=8)
        try:
            _open(page, port, listen, auth)
            print(f"The app is at {page.local_url} (stop it with Ctrl-C).", flush=True)
            page.block_thread()
        finally:
            library.close()
            os.chdir("/")


def _open(page: gr.Blocks, port: int | None, listen: bool, auth: tuple[str, str] | None) -> None:
    try:
        # `share` is said: on Colab and Kaggle gradio would open the page to the world by itself.
        page.launch(
            server_name="0.0.0.0" if listen else "127.0.0.1",
            server_port=port,
            share=False,
            auth=auth,
            allowed_paths=[],
            max_file_size="5mb",
            show_error=False,
            quiet=True,
            head=HEAD,
            css=CSS,
            theme=gr.themes.Soft(**FONTS),
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            prevent_thread_lock=True,
            max_threads=THREADS,
        )
    except OSError as error:
        raise UserError(f"no page could be opened ({error}); give another --port") from None
