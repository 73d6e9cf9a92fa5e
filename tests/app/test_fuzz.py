"""Whatever is sent to an event of the page, its sender gets one line, and nobody else notices.

Gradio calls a handler with what a caller sends; that the page itself never sends such a thing
protects nothing.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client
from hostile_text import HOSTILE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfreward_lite.app.library import TINY

CALLS = int(os.environ.get("CALLS", "0"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CALLS, reason="by hand, since its time is not known: CALLS=5000"),
]
CALLERS = 50
ROOT = Path(__file__).parents[2]
TOLD = ("Traceback", 'File "', "site-packages", "/proc/", str(ROOT), str(Path(sys.prefix)))

PLAUSIBLE = [
    *("mine", TINY, "base", "M0", "M1", "M9", "the same model", "tiny", "smol", "loss", "all"),
    *("", " ", "0", "-1", "nan", "1e9", "seed=1", "dpo.beta=x", "model.base=/etc/passwd"),
    *("../mine", "/etc/passwd", "mine/..", ".", "..", "\0", "a" * 300, "x" * 200_000, HOSTILE),
    *(0, 1, -1, 2**31, 2**70, 0.5, -0.0, 1e308),
    *(None, True, False, [], {}, [[]], [None], {"a": None}),
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
    {"url": "http://127.0.0.1:9/x", "meta": {"_type": "gradio.FileData"}},
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": [{"type": "text", "text": 1}]}],
    {"index": 0, "value": "Hello"},
    {"headers": ["a"], "data": [["b"]]},
]
VALUES = st.one_of(
    st.sampled_from(PLAUSIBLE),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["index", "value", "role", "content", "path", "url", "data"]),
                inner,
                max_size=3,
            )
        ),
        max_leaves=5,
    ),
)


class App:
    """The served app: calls any event by its number, as a browser does."""

    def __init__(self, runs: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log, self.runs = f"http://127.0.0.1:{port}", log, runs
        command = [sys.executable, ROOT / "tests/helpers/fuzzed_app.py", runs, str(port)]
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
        assert self.process.stdout is not None
        assert self.process.stdout.readline(), log.read_text()
        self.http = httpx.Client(base_url=self.url, timeout=60)
        config = self.http.get("/config").json()
        self.events = {
            one["id"]: (len(one["inputs"]), f"{one['targets']} {one['api_name']}")
            for one in config["dependencies"]
            if one["backend_fn"]
        }

    def call(self, event: int, data: list[Any], about: Any) -> str:
        """Everything that comes back, until the event has ended."""
        session = uuid.uuid4().hex
        body = {"fn_index": event, "data": data, "session_hash": session, "event_data": about}
        headers = {"Content-Type": "application/json"}
        joined = self.http.post("/gradio_api/queue/join", content=json.dumps(body), headers=headers)
        if joined.status_code != 200:
            return joined.text
        said = ""
        address = f"/gradio_api/queue/data?session_hash={session}"
        with self.http.stream("GET", address) as stream:
            for line in stream.iter_lines():
                said += line + "\n"
                if '"process_completed"' in line or '"unexpected_error"' in line:
                    return said
        return said


@pytest.fixture(scope="module")
def app(scripted_runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    shutil.copytree(scripted_runs, folder / "runs")
    served = App(folder / "runs", folder / "log")
    try:
        yield served
    finally:
        served.process.terminate()
        served.process.wait()


def find_faults(app: App) -> Counter[str]:
    """The last lines of errors that the app's own code did not foresee, and how often."""
    found: Counter[str] = Counter()
    for trace in app.log.read_text(errors="replace").split("Traceback (most recent")[1:]:
        frames = re.findall(r'File "\S*(selfreward_lite/\S+)", line (\d+)', trace)
        if frames:
            found[f"{frames[-1]} {trace.strip().splitlines()[-1][:150]}"] += 1
    return found


def test_whatever_is_sent_is_answered_in_one_line_and_ends_no_other_reply(app):
    alone = Client(app.url, verbose=False)
    asked = {"temperature": 0.0, "api_name": "/chat"}
    expected = alone.submit("Sort the letters c a b.", TINY, **asked).result(timeout=60)["text"]
    done, heard, lock = threading.Event(), Counter[str](), threading.Lock()

    def talk(client: Client) -> None:
        while not done.is_set():
            text = client.submit("Sort the letters c a b.", TINY, **asked).result(timeout=120)
            with lock:
                heard[text["text"]] += 1
            time.sleep(1)

    sent: Counter[str] = Counter()

    @settings(
        max_examples=CALLS, deadline=None, database=None, suppress_health_check=[*HealthCheck]
    )
    @given(
        st.sampled_from(sorted(app.events)).flatmap(
            lambda event: st.tuples(
                st.just(event),
                st.lists(VALUES, min_size=app.events[event][0], max_size=app.events[event][0])
                | st.lists(VALUES, max_size=3),
                VALUES,
            )
        )
    )
    def fuzz(call) -> None:
        event, data, about = call
        said = app.call(event, data, about)
        told = [one for one in (*TOLD, str(app.runs)) if one in said.replace(json.dumps(data), "")]
        assert not told, (app.events[event], data, said[:2000])
        sent[app.events[event][1]] += 1

    with ThreadPoolExecutor(CALLERS) as pool:
        talks = [pool.submit(talk, Client(app.url, verbose=False)) for _ in range(CALLERS)]
        try:
            fuzz()
        finally:
            done.set()
        for one in talks:
            one.result()
    print(f"{sum(sent.values())} calls, {heard.total()} replies beside them: {sent}")
    assert set(heard) == {expected}
    assert heard.total() >= CALLERS
    assert len(sent) > 0.5 * len({name for _, name in app.events.values()})
    assert not find_faults(app)
    assert app.process.poll() is None
