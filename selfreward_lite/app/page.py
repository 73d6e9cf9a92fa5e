"""The page: its tabs, its style, and how it is served.

It is served to this machine alone, unless the user asks for more and gives a password. Nothing of
the machine can be read through it: it runs in an empty folder, hands out no file that a visitor
names, and lets no text load a picture or send a form (`guard`).
"""

import errno
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import httpx
from starlette.middleware import Middleware

from selfreward_lite.app import api
from selfreward_lite.app.escape import escape_markdown
from selfreward_lite.app.guard import NAMES, PERIOD, TRIES, Guard
from selfreward_lite.app.inputs import CheckedPage
from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.news import describe_news
from selfreward_lite.app.openai_api import build_api
from selfreward_lite.app.tabs import chat, compare, explore, progress
from selfreward_lite.app.tabs import run as run_tab
from selfreward_lite.app.widgets import QUIET, TICK, Header, Updates, dynamic_dropdown
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.proxies import without_proxies

TITLE = "selfreward_lite"
CSS = """
footer {display: none !important}
.gradio-container {max-width: 1200px !important; margin: auto}
#head {align-items: end}
#machine p, .fine p {font-size: var(--text-sm); color: var(--body-text-color-subdued)}
#first {align-items: center; padding: var(--spacing-lg); border-radius: var(--radius-lg)}
#first {background: var(--color-accent-soft)}
.stage progress {display: block; width: 100%; height: 10px; accent-color: var(--color-accent)}
.answer {overflow-wrap: anywhere}
.wide {max-width: calc(100vw - 4rem); overflow-x: auto !important}
.wide .table-wrap {min-width: 760px}
#log textarea {font-family: var(--font-mono); font-size: var(--text-xs)}
"""
POLL = 2.0  # seconds between two checks of the runs
QUEUE = 64  # events that may wait; more are refused with a message
THREADS = 200  # a reply holds one while the engine is silent, up to a quarter of a second
VISITS = 1000  # whose conversations are kept, each with gradio's copy of the page
WELCOME = (
    "**No run yet.** You can chat with the tiny model at once. A tiny run shows the complete loop: "
    "the model answers, judges its answers, judges its judgments, and is trained on both, three "
    "times. It takes some minutes on a CPU and downloads nothing."
)
TABS: dict[str, Callable[[RunLibrary, Header], object]] = {
    "Chat": chat.ChatTab,
    "Compare": compare.CompareTab,
    "Run": run_tab.RunTab,
    "Explore": explore.ExploreTab,
    "Progress": progress.ProgressTab,
}


def build(library: RunLibrary) -> gr.Blocks:
    """Return the page for a folder of runs."""
    with CheckedPage(title=TITLE, delete_cache=(3600, 3600)) as page:
        with gr.Row(elem_id="head"):
            with gr.Column(min_width=300):
                gr.Markdown(
                    f"# {TITLE}\nA language model that judges its own answers and learns from it."
                )
            with gr.Column(min_width=300):
                run = dynamic_dropdown("Run", container=False)
                engine = gr.Markdown(elem_id="machine")
                on_cpu = gr.Checkbox(
                    label="Answer on the CPU: slower, but leaves the GPU to runs",
                    visible=bool(library.gpus),
                    container=False,
                )
        with gr.Row(visible=False, elem_id="first") as welcome:
            gr.Markdown(WELCOME)
            first = gr.Button("Start a tiny run", variant="primary", scale=0, min_width=180)
        header = Header(run, engine, gr.Textbox("", visible="hidden"), gr.Timer(POLL), first)
        with gr.Tabs() as tabs:
            for name, build_tab in TABS.items():
                with gr.Tab(name, id=name):
                    build_tab(library, header)
        on_cpu.input(lambda wanted: setattr(library, "on_cpu", wanted), on_cpu, None, **QUIET)
        first.click(lambda: gr.update(selected="Run"), None, tabs, **QUIET)
        api.define(library)
        known = gr.State([])

        def refresh(chosen: str | None, before: list[object]) -> Updates:
            """Update what has changed; the page takes a value sent again for a change."""
            choices = library.choices()
            now = chosen if chosen in choices else choices[0]
            status = escape_markdown(library.engine_status())
            shown = [*choices, now, library.on_cpu, status, describe_news(library, now)]
            if shown == before:
                return gr.skip()
            # Sending the run that is chosen already would undo a choice made in the meantime.
            value = {} if now == chosen else {"value": now}
            return {
                run: gr.update(choices=choices) | value,
                known: shown,
                welcome: gr.update(visible=choices == [TINY]),
                on_cpu: library.on_cpu,
                engine: status,
                header.news: shown[-1],
            }

        outputs = [run, known, welcome, on_cpu, engine, header.news]
        page.load(refresh, [run, known], outputs, **QUIET)
        header.timer.tick(refresh, [run, known], outputs, **TICK)
    return page


def serve(
    library: RunLibrary,
    port: int | None,
    listen: bool,
    auth: tuple[str, str] | None,
    key: str | None = None,
) -> None:
    """Serve the page until interrupted; to the network only with `listen`. `auth`: user, password.

    OpenAI's API is served at /v1 where it asks for a `key`, or the page for no password. Raises
    UserError where the port is taken.
    """
    with _make_scratch() as scratch:
        empty, files = (Path(scratch, name) for name in ("empty", "files"))
        empty.mkdir()
        os.chdir(empty)  # gradio hands out files of the folder it runs in
        # Else it would be one folder of the machine, which the first user of gradio owns.
        os.environ["GRADIO_TEMP_DIR"] = str(files)
        page = build(library)
        page.queue(max_size=QUEUE, default_concurrency_limit=8)
        try:
            with without_proxies():  # gradio asks its own server whether it is there
                _launch(page, port, listen, auth)
            if key or not auth:
                page.app.mount("/v1", build_api(library, key))
            print(f"The app is at {page.local_url} (stop it with Ctrl-C).", flush=True)
            page.block_thread()
        finally:
            library.engine.close()
            os.chdir("/")


def _explain_port(port: int | None, listen: bool) -> str:
    """Why a port cannot be had: it is in use, or this user may not have it, as with 80."""
    if port is None:
        return "in use: from 7860 on"
    try:
        socket.create_server(("0.0.0.0" if listen else "127.0.0.1", port)).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return f"{port}: {os.strerror(error.errno or 0)}"
    return f"in use: {port}"


def _make_scratch() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory()
    except OSError as error:
        raise UserError(
            f"no temporary folder ({error.strerror}); set TMPDIR to a folder that can be written"
        ) from None


def _launch(page: gr.Blocks, port: int | None, listen: bool, auth: tuple[str, str] | None) -> None:
    try:
        # On Colab and Kaggle, gradio opens a public link unless `share` is False.
        page.launch(
            server_name="0.0.0.0" if listen else "127.0.0.1",
            server_port=port,
            share=False,
            auth=auth,
            allowed_paths=[],
            max_file_size="5mb",
            quiet=True,
            auth_message=f"After {TRIES} wrong passwords, wait {PERIOD:.0f} seconds."
            if auth
            else None,
            app_kwargs={"middleware": [Middleware(Guard, names=None if auth else NAMES)]},
            css=CSS,
            # The machine's own fonts: nothing is downloaded.
            theme=gr.themes.Soft(
                font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            prevent_thread_lock=True,
            max_threads=THREADS,
            state_session_capacity=VISITS,
        )
    except OSError as error:
        # Gradio's own error, that all ports are taken, has no number, and advice for programmers.
        why = str(error) if error.errno else _explain_port(port, listen)
        raise UserError(f"the page could not be opened ({why}); choose another --port") from None
    except httpx.TransportError as error:
        raise UserError(
            f"the page does not reach itself at 127.0.0.1 ({error}): this machine, or its "
            "container, needs a network device for itself (`ip link set lo up`)"
        ) from None
