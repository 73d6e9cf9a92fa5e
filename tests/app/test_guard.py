"""Who may call, how often a password is tried, how much is sent, and what every answer says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from selfreward_lite.app import guard
from selfreward_lite.app.guard import Guard, Tries

HERE = "http://127.0.0.1"


class Clock:
    """A clock that stands still until it is told to go on."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


async def echo(request: Request):
    return PlainTextResponse(str(len(await request.body())))


async def login(request: Request):
    right = await request.body() == b"right"
    return PlainTextResponse("in" if right else "wrong", 200 if right else 400)


async def stream(_: Request):
    return StreamingResponse(iter(["one", "two"]))


def make_client(names=guard.NAMES, clock=None) -> TestClient:
    routes = [
        Route("/echo", echo, methods=["POST"]),
        Route("/login", login, methods=["POST"]),
        Route("/stream", stream),
    ]
    middleware = [Middleware(Guard, names=names, tries=Tries(clock or Clock()))]
    return TestClient(Starlette(routes=routes, middleware=middleware), base_url=HERE)


def test_every_answer_has_the_headers_and_a_stream_stays_whole():
    client = make_client()
    answers = [
        client.get("/stream"),
        client.get("/nothing"),
        client.post("/echo", content=b"abc"),
        client.get("/stream", headers={"host": "elsewhere.example"}),
    ]
    assert [one.status_code for one in answers] == [200, 404, 200, 421]
    for answer in answers:
        for name, value in guard.HEADERS.items():
            assert answer.headers[name] == value
    assert (answers[0].text, answers[2].text) == ("onetwo", "3")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200),
        ("LOCALHOST:7860", 200),
        ("elsewhere.example:7860", 421),
        ("127.0.0.1.elsewhere.example", 421),
        ("", 421),
    ],
)
def test_without_a_password_only_this_machines_names_are_answered(host, status):
    answer = make_client().get("/stream", headers={"host": host})
    assert answer.status_code == status
    assert status == 200 or answer.text.startswith("this page answers to 127.0.0.1 and localhost")
    assert make_client(names=None).get("/stream", headers={"host": host}).status_code == 200


def test_the_sixth_wrong_password_within_a_minute_is_not_looked_at():
    clock = Clock()
    client = make_client(clock=clock)
    said = [client.post("/login", content=b"guess").status_code for _ in range(guard.TRIES)]
    assert said == [400] * guard.TRIES
    for path in ("/login", "/login/"):
        answer = client.post(path, content=b"right", follow_redirects=False)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "61")
        assert answer.text == "too many wrong passwords: wait 61 seconds"
    assert client.get("/stream").status_code == 200, "who is in stays in"
    clock.now += guard.PERIOD
    assert client.post("/login", content=b"right").text == "in"


def test_right_passwords_are_not_counted():
    client = make_client()
    for _ in range(3 * guard.TRIES):
        assert client.post("/login", content=b"right").status_code == 200


def test_one_address_does_not_shut_out_another(monkeypatch):
    monkeypatch.setattr(guard, "ADDRESSES", 3)
    tries = Tries(Clock())
    for number in range(5):
        for _ in range(guard.TRIES):
            tries.add(f"10.0.0.{number}")
    assert [tries.wait_for(f"10.0.0.{number}") for number in range(5)] == [0, 0, 61, 61, 61]
    assert tries.wait_for("10.0.0.9") == 0


@given(st.lists(st.floats(0, 3 * guard.PERIOD), max_size=40))
def test_no_more_than_five_wrong_passwords_pass_in_any_minute(pauses):
    clock, passed = Clock(), []
    tries = Tries(clock)
    for pause in pauses:
        clock.now += pause
        if not tries.wait_for("a"):
            tries.add("a")
            passed.append(clock.now)
    for first, last in zip(passed, passed[guard.TRIES :], strict=False):
        assert last - first >= guard.PERIOD * (1 - 1e-9)


def test_a_call_may_not_be_too_large_whatever_it_says_of_its_size(monkeypatch):
    monkeypatch.setattr(guard, "MAX_BYTES", 1000)
    client = make_client()

    def parts(size: int):
        yield from (b"x" * 100 for _ in range(size // 100))

    assert client.post("/echo", content=b"x" * 1000).text == "1000"
    assert client.post("/echo", content=parts(1000)).text == "1000"
    for content in (b"x" * 1001, parts(1100)):
        answer = client.post("/echo", content=content)
        assert (answer.status_code, answer.text) == (
            413,
            "a call may have 8,000,000 bytes: send less",
        )
    for size in ("-1", "many", "1e3"):
        answer = client.post("/echo", content=b"", headers={"content-length": size})
        assert answer.status_code == 413
