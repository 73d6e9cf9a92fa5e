"""Whatever is sent to an event of the page, its sender gets one line, and nobody else notices.

Gradio calls a handler with what a caller sends; that the page itself never sends such a thing
protects nothing. CALLS in the environment says how many calls:
`CALLS=5000 python -m pytest -m slow -n 0 -s tests/app/test_fuzz.py`.
"""

import itertools
import json
import os
import random
import shutil
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fuzzed_app import ABOUT, ENDPOINTS, ROOT, App, new_session
from hostile_text import HOSTILE
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.gguf_export import adapter_to_gguf
from selfreward_lite.models.random_models import write_adapter
from selfreward_lite.system.files import write_manifest

pytestmark = pytest.mark.slow  # a minute
CALLS = int(os.environ.get("CALLS", "600"))
CALLERS, PAUSE = 50, 5.0  # beside them, each with so many seconds between two questions
EACH = 5  # calls of an event in a row, the first of which the page itself would send
LONGEST = 3000  # characters of a refusal, which may quote what it refuses
TOLD = ("Traceback", 'File "', "site-packages", "/proc/", str(ROOT), str(Path(sys.prefix)))

PLAUSIBLE = [
    *("mine", TINY, "base", "M0", "M1", "M9", "M²", "the same model", "tiny", "smol", "loss"),
    *("", " ", "0", "-1", "nan", "1e9", "9" * 20, "seed=1", "dpo.beta=x", "model.base=/etc/passwd"),
    *("iterations=9" + "9" * 400, "schedule." + "9" * 1900 + ".rho=1", "gave a pair", "all"),
    *("../mine", "/etc/passwd", "mine/..", ".", "..", "\0", "\ud800", "a " * 60, HOSTILE),
    *("x" * 90_000, "x" * 1_000_000),
    *(0, 1, -1, 2**31, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *(None, True, False, [], {}, [[]], [None], {"a": None}),
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
    {"url": "http://127.0.0.1:9/x", "meta": {"_type": "gradio.FileData"}},
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": [{"type": "text", "text": 1}]}],
    {"index": 0, "value": "Hello"},
    {"headers": ["a"], "data": [["b"]]},
]
# By number, since hypothesis would write out the million characters.
VALUES = st.sampled_from(range(len(PLAUSIBLE))).map(PLAUSIBLE.__getitem__) | st.recursive(
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
)


def changed(good: list[Any]) -> st.SearchStrategy[list[Any]]:
    """What the page would send, with up to two values changed; or something else altogether."""
    if not good:
        return st.just([])
    changes = st.dictionaries(st.integers(0, len(good) - 1), VALUES, max_size=2)
    few = changes.map(lambda new: [new.get(place, one) for place, one in enumerate(good)])
    other = st.lists(VALUES, max_size=len(good) + 1)
    return st.integers(0, 9).flatmap(lambda number: other if number == 9 else few)


def often(count: int):
    """Settings of hypothesis. An input that fails is shown as it is: one may take minutes."""
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )


@pytest.fixture(scope="module")
def app(scripted_runs, tmp_path_factory):
    """The app with a run whose models are random adapters on the tiny base."""
    folder = tmp_path_factory.mktemp("fuzzed")
    mine = Path(shutil.copytree(scripted_runs, folder / "runs")) / "mine"
    shutil.copyfile(RunLibrary(folder / "runs").models(TINY).base, mine / "base" / "base.gguf")
    write_manifest(mine / "base", {})
    write_adapter(TINY_MODEL, folder / "random")
    for number in range(3):
        adapter_to_gguf(folder / "random", TINY_MODEL, mine / f"M{number}" / "adapter.gguf")
        write_manifest(mine / f"M{number}", {})
    served = App(folder / "runs", folder / "log")
    yield served
    served.close()


def check(app: App, said: dict[str, Any], asked: object) -> str:
    """What kind of answer it was; it has no path, and a refusal is one line."""
    text = json.dumps(said)
    assert not [one for one in (*TOLD, str(app.log.parent)) if one in text], (asked, text[:2000])
    if said["success"]:
        return "done"
    line = said["error"]
    assert line, (asked, said)
    assert len(line.splitlines()) == 1, (asked, said)
    assert len(line) <= LONGEST, (asked, len(line), line[:200])
    return line.partition(":")[0][:30]


def test_whatever_is_sent_is_answered_in_one_line_and_ends_no_other_reply(app):
    chat = next(event for event, name in app.names.items() if name.startswith("chat of"))
    question = [*ENDPOINTS["chat"][:5], 0.0, *ENDPOINTS["chat"][6:]]
    expected = app.call(new_session(), chat, question)["data"]
    done, heard, lock = threading.Event(), Counter[str](), threading.Lock()

    def talk(number: int) -> None:
        session, pauses = new_session(), random.Random(number)
        while not done.wait(pauses.uniform(0, 2 * PAUSE)):
            reply = app.call(session, chat, question)
            with lock:
                heard[reply["data"][0]["text"] if reply["success"] else str(reply)] += 1

    def fuzz(event: int, session: str) -> None:
        # The first call is what the page sends, so that there is something to retry or to vote on.
        calls = itertools.count()

        @often(EACH)
        @given(changed(app.good[event]), st.just(ABOUT) | VALUES)
        def call(data, about) -> None:
            if next(calls) == 0:
                data, about = app.good[event], ABOUT
            began = time.monotonic()
            said = app.call(session, event, data, about)
            took.append((time.monotonic() - began, app.names[event]))
            kinds[check(app, said, (app.names[event], data, about))] += 1
            sent[event] += 1

        call()

    sent, kinds, took = Counter[int](), Counter[str](), list[tuple[float, str]]()
    began = time.monotonic()
    with ThreadPoolExecutor(CALLERS) as pool:
        talks = [pool.submit(talk, number) for number in range(CALLERS)]
        try:
            for number in range(-(-CALLS // (EACH * len(app.names)))):
                events, session = list(app.names), new_session()
                random.Random(number).shuffle(events)
                for event in events:
                    fuzz(event, session)
        finally:
            done.set()
        for one in talks:
            one.result()
    print(
        f"{sent.total()} calls of {len(sent)} events, each {min(sent.values())} times or more, in "
        f"{time.monotonic() - began:.0f} s; {heard.total()} replies to {CALLERS} callers beside "
        f"them; slowest {max(took)}; {kinds.most_common()}"
    )
    assert set(heard) == {expected[0]["text"]}
    assert heard.total() >= CALLERS
    assert set(sent) == set(app.names)
    assert "Traceback" not in app.log.read_text(errors="replace")
    assert app.process.poll() is None


BODY = {
    "model": "mine/M1",
    "messages": [{"role": "user", "content": "Sort the letters c a b."}],
    "max_tokens": 8,
    "seed": 1,
    "stream": False,
    "stop": None,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 3,
    "n": 1,
}


def test_whatever_is_sent_to_the_api_of_openai_is_answered_in_one_line(app):
    statuses: Counter[int] = Counter()

    @often(max(50, CALLS // 6))
    @given(st.dictionaries(st.sampled_from([*BODY]), VALUES, max_size=2), VALUES, st.booleans())
    def fuzz(fields, other, whole) -> None:
        body = {**BODY, **fields} if whole else other
        sent = json.dumps(body)
        headers = {"Content-Type": "application/json"}
        answer = app.http.post("/v1/chat/completions", content=sent, headers=headers)
        assert answer.status_code in (200, 400, 404, 413), (body, answer.text[:500])
        assert not [one for one in (*TOLD, str(app.log.parent)) if one in answer.text], body
        if answer.status_code != 200:
            assert len(answer.json()["error"]["message"].splitlines()) == 1, body
        statuses[answer.status_code] += 1

    fuzz()
    print(f"{statuses.total()} calls: {statuses.most_common()}")
    assert statuses[200] and statuses[400]
    assert "Traceback" not in app.log.read_text(errors="replace")
