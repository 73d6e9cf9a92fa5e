"""The page: its tabs, its look, and how it is served: on this machine alone, unless somebody asks for more and gives a password.

Knows: gradio. Does not know: what a tab does. Nothing of the machine can be read through it: it runs in an empty folder, hands
out no file that a user names, and lets no text fetch a picture or send a form.
"""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read as gradio is imported

import gradio as gr

from selfreward_lite.errors import UserError
from selfreward_lite.talk import TINY, House
from selfreward_lite.ui.chat import tab as chat_tab

TITLE = "selfreward_lite"
SHUT = "img-src 'self' data: blob:; media-src 'none'; form-action 'none'; frame-src 'none'; object-src 'none'"
HEAD = f'<meta http-equiv="Content-Security-Policy" content="{SHUT}">'
CSS = "footer {display: none !important} .gradio-container {max-width: 1200px !important; margin: auto}"


def build(house: House) -> gr.Blocks:
    """Return the page for a folder of runs."""
    with gr.Blocks(title=TITLE, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# selfreward_lite\nA language model that judges its own answers, and learns from it.")
        with gr.Row():
            run = gr.Dropdown(label="Run", scale=2)
            words = gr.Markdown(elem_id="machine")
        with gr.Tab("Chat"):
            chat_tab(house, run, words)

        def look(chosen: str | None) -> tuple[object, str]:
            runs = house.runs()
            names = [*runs, TINY]
            return gr.update(choices=names, value=chosen if chosen in names else names[0]), house.words()

        page.load(look, run, [run, words])
    return page


def serve(runs_dir: Path, port: int | None, listen: bool, auth: tuple[str, str] | None) -> None:
    """Show the page until it is interrupted, to the network only if it is to `listen`; `auth` is user and password.

    Raises UserError where the port is taken.
    """
    house = House(runs_dir.absolute())
    with tempfile.TemporaryDirectory() as empty:
        package = str(Path(__file__).resolve().parents[2])  # which children find in the folder they start in, usually
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        os.chdir(empty)  # gradio hands out files of the folder it runs in
        threading.Thread(target=house.prepare, daemon=True).start()
        page = build(house)
        page.queue(max_size=64, default_concurrency_limit=8)
        try:
            _open(page, port, listen, auth)
            print(f"The app is at {page.local_url} (stop it with Ctrl-C).", flush=True)
            page.block_thread()
        finally:
            house.close()
            os.chdir("/")


def _open(page: gr.Blocks, port: int | None, listen: bool, auth: tuple[str, str] | None) -> None:
    try:
        # `share` is said: on Colab and Kaggle gradio would open the page to the world by itself.
        page.launch(
            server_name="0.0.0.0" if listen else "127.0.0.1", server_port=port, share=False, auth=auth, allowed_paths=[],
            max_file_size="5mb", show_error=False, quiet=True, head=HEAD, css=CSS, theme=gr.themes.Soft(), footer_links=[],
            run_history=False, enable_monitoring=False, ssr_mode=False, mcp_server=False, prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(f"no page could be opened ({error}); give another --port") from None
