"""The app as users start it: endpoints through gradio's client, access, what stays private."""

import http.client
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from selfreward_lite.app import guard
from selfreward_lite.app.library import TINY
from selfreward_lite.bench import app as app_bench

pytestmark = pytest.mark.slow  # half a minute, most of it the start of real processes
JSON = {"content-type": "application/json"}
ASKED = "Sort the letters c a b."


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The app, started where the environment names proxies that do not answer."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"):
                patch.setenv(name, "socks5://127.0.0.1:9")
            patch.setenv("GRADIO_ALLOWED_PATHS", "/etc")
            patch.setenv("SSL_CERT_FILE", "/nowhere")
            runs = tmp_path_factory.mktemp("served") / "runs"
            client, process, _ = stack.enter_context(app_bench.running(runs))
        yield client, process


@pytest.fixture
def client(served) -> Client:
    return served[0]


def last(client: Client, *arguments, **more):
    return client.submit(*arguments, **more).result(timeout=60)


def test_the_endpoints_are_those_that_the_docs_list(client):
    found = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {
        name: [one["parameter_name"] for one in spec["parameters"]] for name, spec in found.items()
    } == {
        "/runs": [],
        "/chat": [
            "message",
            "run",
            "model",
            "system",
            "history",
            "temperature",
            "top_p",
            "max_tokens",
            "seed",
        ],
        "/judge": ["prompt", "response", "run", "model"],
        "/compare": [
            "prompt",
            "run",
            "model_a",
            "model_b",
            "judge",
            "temperature",
            "top_p",
            "max_tokens",
            "seed",
        ],
    }
    types = {
        one["parameter_name"]: one["python_type"]["type"] for one in found["/chat"]["parameters"]
    }
    assert (types["message"], types["temperature"], types["max_tokens"]) == ("str", "float", "int")
    documented = (Path(__file__).parents[2] / "docs" / "app.md").read_text(encoding="utf-8")
    for name in found:
        assert f"`{name}`" in documented


def test_runs_are_listed_and_the_tiny_model_is_always_there(client):
    assert client.predict(api_name="/runs") == [
        {"run": TINY, "state": "no run", "preset": "tiny", "models": ["base"]}
    ]


def test_a_reply_has_its_numbers_and_repeats_with_its_seed(client):
    first, again = (last(client, ASKED, TINY, seed=3, api_name="/chat") for _ in range(2))
    assert first["text"] == again["text"] != ""
    assert first["finish"] == "stop"
    assert first["tokens"] > 3
    assert 0 < first["first"] < 60


def test_what_was_said_before_is_read(client):
    history = [
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": "The answer is a b c."},
    ]
    with_it = [
        last(client, ASKED, TINY, history=history, seed=seed, api_name="/chat")["text"]
        for seed in range(4)
    ]
    without = [last(client, ASKED, TINY, seed=seed, api_name="/chat")["text"] for seed in range(4)]
    assert with_it != without


def test_a_response_is_judged(client):
    found = last(client, ASKED, "The answer is a b c.", TINY, api_name="/judge")
    assert found["wanted"] == 3
    assert found["read"] <= len(found["judgments"]) == 3
    assert found["score"] is None or 0 <= found["score"] <= 5


def test_two_models_are_compared_and_a_third_judges(client):
    found = last(client, ASKED, TINY, "base", "base", seed=5, api_name="/compare")
    assert found["a"]["text"] == found["b"]["text"]
    assert found["verdict"] in ("a", "b", "tie")
    assert found["judge"] == "base"
    assert found["judged_ab"]


@pytest.mark.parametrize(
    ("arguments", "endpoint", "says"),
    [
        ((ASKED, "nothing"), "/chat", "no run 'nothing'"),
        ((ASKED, "../../etc"), "/chat", "no run '../../etc'"),
        ((ASKED, TINY, "M9"), "/chat", "has no model 'M9'"),
        ((ASKED * 10_000, TINY), "/chat", "message: give at most 100000 characters"),
        ((None, TINY), "/chat", "message=null: give a text"),
        ((ASKED, TINY, "base", ["x"]), "/chat", "system: give a text"),
        ((ASKED, TINY, "base", "", None, "hot"), "/chat", "temperature=hot: give a number"),
        ((ASKED, TINY, "base", "", None, -1), "/chat", "temperature=-1: give a number of at le"),
        ((ASKED, TINY, "base", "", None, 0.7, None), "/chat", "top_p=null: give a number"),
        (
            (ASKED, TINY, "base", "", None, 0.7, 0.9, 5000),
            "/chat",
            "max_tokens=5000: give a number",
        ),
        (
            (ASKED, TINY, "base", "", None, 0.7, 0.9, 2000),
            "/chat",
            "max_tokens=2,000: a sequence of this model has 1,024 tokens",
        ),
        (
            (ASKED, TINY, "base", "base", "", 0.7, 0.9, 2000),
            "/compare",
            "max_tokens=2,000: a sequence of this model has 1,024 tokens",
        ),
        (
            (ASKED, TINY, "base", "", None, 0.7, 0.9, 24, "abc"),
            "/chat",
            "seed=abc: give a whole number",
        ),
        ((ASKED, TINY, "base", "", "before"), "/chat", "history: a list of"),
        (
            (ASKED, TINY, "base", "", [{"role": "user", "content": [{"type": "text"}]}]),
            "/chat",
            "history: a list of",
        ),
        ((ASKED, 5, TINY), "/judge", "response=5: give a text"),
        ((ASKED, TINY, 1, "base"), "/compare", "model_a=1: give a text"),
        (
            (ASKED, TINY, "base", "", [{"role": "system", "content": "x"}]),
            "/chat",
            "history: a list of",
        ),
        ((ASKED, "x", TINY, "M9"), "/judge", "has no model 'M9'"),
        ((ASKED, TINY, "base", "M9"), "/compare", "has no model 'M9'"),
    ],
)
def test_a_mistake_comes_back_as_one_line(client, arguments, endpoint, says):
    with pytest.raises(AppError, match=says.replace("[", "\\[")) as said:
        last(client, *arguments, api_name=endpoint)
    assert "Traceback" not in str(said.value)


@pytest.mark.parametrize(
    ("arguments", "endpoint", "says"),
    [
        (("a\ud83d b", TINY), "/chat", "message holds half a character: leave it out"),
        (
            (ASKED, TINY, "base", "", [{"role": "user", "content": "\ud83d"}]),
            "/chat",
            "history[0].content holds half a character",
        ),
        ((ASKED, "a\ud83d b", TINY), "/judge", "response holds half a character"),
    ],
)
def test_half_a_character_comes_back_as_one_line(client, arguments, endpoint, says):
    """A browser sends it as a JSON escape; gradio's own client for Python cannot."""
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"][endpoint]
    given = [one["parameter_default"] for one in named["parameters"]]
    given[: len(arguments)] = arguments
    address = f"{client.src}gradio_api/call{endpoint}"
    sent = httpx.post(address, content=json.dumps({"data": given}), headers=JSON)
    said = httpx.get(f"{address}/{sent.json()['event_id']}", timeout=60).text
    assert said.startswith("event: error") and says in said and "Traceback" not in said


def test_bad_calls_end_no_other_reply(client):
    """One caller's `seed="abc"` once ended the replies of everybody else."""
    good = [client.submit(ASKED, TINY, seed=seed, api_name="/chat") for seed in range(30)]
    bad = [client.submit(ASKED, TINY, seed="abc", api_name="/chat") for _ in range(20)]
    assert [job.result(timeout=120)["finish"] for job in good] == ["stop"] * 30
    for job in bad:
        with pytest.raises(AppError, match="seed=abc: "):
            job.result(timeout=120)


def test_a_caller_who_leaves_frees_the_engine(client):
    left = 0  # the tiny model's replies are short: some end before they are left
    for seed in range(20):
        job = client.submit("Repeat a b c.", TINY, temperature=2.0, seed=seed, api_name="/chat")
        while not job.outputs() and not job.done():
            time.sleep(0.001)
        left += not job.done()
        job.cancel()
    assert left
    assert last(client, ASKED, TINY, api_name="/chat")["finish"] == "stop"


def test_a_dead_engine_is_started_again_and_the_page_says_so(served):
    client, process = served
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = [
        pid
        for pid in children
        if b"selfreward_lite.engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(int(found[0]), 9)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if last(client, ASKED, TINY, api_name="/chat")["finish"] == "stop":
            return
    pytest.fail("no reply came after the engine had died")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "app.py",
        "../../etc/passwd",
        "/proc/self/environ",
        "http://127.0.0.1:9/",
        str(Path(__file__).resolve()),
        "runs/.tiny/base.gguf",
    ],
)
def test_no_file_gets_out(client, path):
    with pytest.raises(urllib.error.HTTPError) as said:
        urllib.request.urlopen(f"{client.src.rstrip('/')}/gradio_api/file={path}")
    assert said.value.code in (403, 404)


def test_nobody_comes_in_without_the_password(tmp_path):
    command = [
        sys.executable,
        app_bench.APP,
        "--runs-dir",
        tmp_path / "runs",
        "--port",
        "7931",
        "--auth",
        "me:secret",
    ]
    app = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert "7931" in app.stdout.readline()
        for route in (
            "config",
            "gradio_api/info",
            "gradio_api/queue/data?session_hash=x",
            "gradio_api/file=x",
        ):
            with pytest.raises(urllib.error.HTTPError) as said:
                urllib.request.urlopen(f"http://127.0.0.1:7931/{route}")
            assert said.value.code == 401, route
        inside = Client("http://127.0.0.1:7931", auth=("me", "secret"), verbose=False)
        assert inside.predict(api_name="/runs")[-1]["run"] == TINY
        assert [log_in("guess") for _ in range(6)] == [400] * 5 + [429]
        assert log_in("secret") == 429
        assert inside.predict(api_name="/runs")[-1]["run"] == TINY, "who is in stays in"
    finally:
        app.terminate()
        app.wait()


def log_in(password: str) -> int:
    form = urllib.parse.urlencode({"username": "me", "password": password}).encode()
    try:
        with urllib.request.urlopen("http://127.0.0.1:7931/login", form) as answer:
            return answer.status
    except urllib.error.HTTPError as said:
        return said.code


def test_every_answer_protects_the_page_and_other_names_are_refused(client):
    for path in ("", "config", "gradio_api/info", "gradio_api/file=x", "v1/models", "nothing"):
        address = client.src.rstrip("/") + "/" + path
        with _open_anyway(urllib.request.Request(address)) as answer:
            for name, value in guard.HEADERS.items():
                assert answer.headers[name] == value, (path, name)
        elsewhere = urllib.request.Request(address, headers={"Host": "elsewhere.example"})
        with _open_anyway(elsewhere) as answer:
            assert answer.status == 421, path


def test_a_call_that_is_too_large_is_refused_and_nobody_is_lost(client):
    for path in ("gradio_api/queue/join", "gradio_api/call/chat", "gradio_api/upload"):
        call = http.client.HTTPConnection(client.src.removeprefix("http://").rstrip("/"))
        call.putrequest("POST", f"/{path}")
        call.putheader("Content-Length", str(guard.MAX_BYTES + 1))
        call.endheaders(b"refused before the rest is sent")
        assert call.getresponse().status == 413, path
        call.close()
    assert last(client, ASKED, TINY, api_name="/chat")["finish"] == "stop"


def _open_anyway(request):
    """The answer, whatever its status."""
    try:
        return urllib.request.urlopen(request)
    except urllib.error.HTTPError as said:
        return said


def test_fifty_talk_at_once_and_nobody_hears_another(served):
    client, _ = served
    calm = {"temperature": 0.0, "api_name": "/chat"}
    asked = {
        number: f"Sort the letters {app_bench.LETTERS[7 * number + 31]}." for number in range(50)
    }
    alone = {number: last(client, text, TINY, **calm)["text"] for number, text in asked.items()}
    users = app_bench.open_clients(client, 50)
    heard: dict[int, list[str]] = {number: [] for number in asked}
    gate = threading.Barrier(50)

    def user(number: int) -> None:
        gate.wait()
        for _ in range(2):
            heard[number].append(last(users[number], asked[number], TINY, **calm)["text"])

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(user, asked))
    assert len(set(alone.values())) > 25, "answers that could be told apart"
    assert heard == {number: [text, text] for number, text in alone.items()}


def test_a_crowd_is_answered_or_told_to_wait_and_nobody_is_lost(served):
    client, _ = served
    heard = Counter(
        one if isinstance(one, str) and not app_bench.is_refusal(one) else type(one)
        for one in app_bench.ask_crowd(client)
    )
    assert heard.keys() <= {app_bench.Reply, str}, "every other error is lost"
    assert heard[app_bench.Reply] and heard.total() == app_bench.CROWD
    assert last(client, ASKED, TINY, api_name="/chat")["finish"] == "stop"
