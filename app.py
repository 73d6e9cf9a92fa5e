"""The app: chat with every model of your runs in a browser, and see how each judges itself.

python app.py [--runs-dir DIR] [--port N] [--listen --auth USER:PASSWORD]

With --auth, OpenAI's API at /v1 needs a key in the environment variable SELFREWARD_KEY.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path

from selfreward_lite.__main__ import explain_imports

with explain_imports():
    from selfreward_lite.app.escape import check_auth
    from selfreward_lite.app.library import RunLibrary
    from selfreward_lite.app.openai_api import check_key
    from selfreward_lite.system.arguments import check_runs_dir, expand_homes, refuse_empty
    from selfreward_lite.system.errors import SelfRewardError, UserError
    from selfreward_lite.system.proxies import without_proxies
    from selfreward_lite.system.surroundings import check_surroundings


def main() -> None:
    """Read the arguments and show the page."""
    parser = argparse.ArgumentParser(description="Chat with the models of your runs, in a browser.")
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), help="folder that holds all runs"
    )
    parser.add_argument("--port", type=int, help="by default the first free one, from 7860 on")
    parser.add_argument(
        "--listen", action="store_true", help="let others on the network in; needs --auth"
    )
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="who may log in")
    try:
        refuse_empty(sys.argv[1:])
        given = parser.parse_args(expand_homes(sys.argv[1:]))
        check_surroundings()
        if given.port is not None and not 0 < given.port < 2**16:
            raise UserError(f"--port {given.port}: give a number from 1 to 65535")
        auth = check_auth(given.listen, given.auth)
        key = check_key(False, os.environ.get("SELFREWARD_KEY"))
        library = RunLibrary(check_runs_dir(given.runs_dir).absolute())
        # Importing gradio takes as long as loading the model, so both happen at once.
        threading.Thread(target=library.load_tiny_model, daemon=True).start()
        with explain_imports(), without_proxies():  # gradio looks at them when it is imported
            from selfreward_lite.app.page import serve

        serve(library, given.port, given.listen, auth, key)
    except KeyboardInterrupt:  # before the page was there; it ends in order by itself
        sys.exit(130)
    except SelfRewardError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
