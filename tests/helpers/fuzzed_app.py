"""The app as users start it, but for its runs: a click that would start one ends in one line.

python fuzzed_app.py RUNS_DIR PORT
`App` starts it, and calls its events as a browser does.
"""

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any, NoReturn

import httpx

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds for one call, on a machine that does much else
ENDS = ('"process_completed"', '"unexpected_error"')
PARTS = {
    "Run": "mine",
    "Preset": "tiny",
    "Prompts": "M1",
    "Maximum tokens": 16,
    **dict.fromkeys(("Model", "Model A", "Judge"), "M1"),
    "Model B": "M0",
    **dict.fromkeys((None, "textbox"), "Sort the letters c a b."),
}
ENDPOINTS = {
    "runs": [],
    "chat": ["Sort the letters c a b.", "mine", "M1", "", [], 0.7, 0.95, 8, 0],
    "judge": ["Sort the letters c a b.", "a b c", "mine", "M1"],
    "compare": ["Sort the letters c a b.", "mine", "M0", "M1", "M1", 0.7, 0.95, 8, 0],
}
ABOUT = {"index": 0, "value": "Sort the letters d o.", "previous_value": "", "selected": True}


class App:
    """The served app: calls any event by its number, as a browser does."""

    def __init__(self, runs: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        url, self.log = f"http://127.0.0.1:{port}", log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, __file__, runs, str(port)],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
        assert self.process.stdout is not None
        assert self.process.stdout.readline(), log.read_text()
        unlimited = httpx.Limits(max_connections=None)
        self.http = httpx.Client(base_url=url, timeout=PATIENCE, limits=unlimited)
        config = self.http.get("/config").json()
        parts = {one["id"]: one for one in config["components"]}
        called = [one for one in config["dependencies"] if one["backend_fn"]]
        self.names = {one["id"]: f"{one['api_name']} of {one['targets'][:1]}" for one in called}
        # By event: what the page would send.
        self.good = {
            one["id"]: ENDPOINTS.get(one["api_name"], [_fill_in(parts[i]) for i in one["inputs"]])
            for one in called
        }

    def call(self, session: str, event: int, data: list[Any], about: Any = None) -> dict[str, Any]:
        """The output of an event, with its `success`, once it and its stream have ended.

        Raises TimeoutError, with its name, for an event that does not end.
        """
        body = {"fn_index": event, "data": data, "session_hash": session, "event_data": about}
        headers = {"Content-Type": "application/json"}
        deadline = time.monotonic() + PATIENCE
        joined = self.http.post("/gradio_api/queue/join", content=json.dumps(body), headers=headers)
        assert joined.status_code == 200, (self.names[event], joined.status_code, joined.text)
        found: dict[str, Any] = {}
        stream = self.http.stream("GET", f"/gradio_api/queue/data?session_hash={session}")
        with stream as answer:
            for line in answer.iter_lines():
                if any(end in line for end in ENDS):
                    said = json.loads(line.removeprefix("data: "))
                    found = {"success": said["success"], **(said.get("output") or {})}
                if time.monotonic() > deadline:  # a stream is kept alive without end
                    break
        if not found:
            raise TimeoutError(f"{self.names[event]} has not ended after {PATIENCE:.0f} s: {body}")
        return found

    def close(self) -> None:
        """End it."""
        self.http.close()
        self.process.terminate()
        self.process.wait()


def new_session() -> str:
    """The name of a visitor."""
    return uuid.uuid4().hex


def _fill_in(part: dict[str, Any]) -> Any:
    """What the page sends for a part that a user has filled in."""
    label, value = part["props"].get("label"), part["props"].get("value")
    if part["type"] == "dataset":
        return 0
    return PARTS.get(label, value) if part["type"] in ("dropdown", "textbox", "slider") else value


def refuse(*_: Any, **__: Any) -> NoReturn:
    """Stand for what would start a process."""
    from selfreward_lite.system.errors import UserError

    raise UserError("a run would start here")


if __name__ == "__main__":
    from selfreward_lite.app import jobs, page
    from selfreward_lite.app.library import RunLibrary

    jobs.start_module = jobs.run_module = refuse
    page.serve(RunLibrary(Path(sys.argv[1])), int(sys.argv[2]), False, None)
