"""Asks one server over HTTP, and tells what goes wrong by what helps against it.

Answers are bounded, redirects are not followed, and what a server writes is shown as one short
line. A key comes from the environment, goes into one header, and is in no text of this file.
"""

import json
import os
import time
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from selfreward_lite.system.errors import EngineError
from selfreward_lite.system.files import Json

KEY = "SELFREWARD_SERVER_KEY"
LONGEST = 64 * 2**20  # bytes of an answer; the log-probabilities of 128,000 tokens take 10 MB
SHOWN = 200  # characters of a server's own words
ASK_AGAIN = (408, 425, 429)  # what a server answers that is too busy
T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """Seconds: to connect, for a whole answer, after a first failure, at most, between checks."""

    connect: float = 5.0
    answer: float = 600.0
    rest: float = 0.5
    longest_rest: float = 30.0
    check: float = 10.0


class ServerFault(Exception):
    """A server gave no whole answer; the same request may be asked again.

    `began`: it may have been at work on the request. `unreachable`: nobody listens there, so it may
    be another server when it is back.
    """

    def __init__(self, line: str, *, began: bool = True, unreachable: bool = False) -> None:
        super().__init__(line)
        self.began = began
        self.unreachable = unreachable


class ServerUnfit(EngineError):
    """A server cannot serve the run as it is started, or answers what no such server would.

    Asking it again does not help; another server may do.
    """


class NotJson(ServerFault):
    """A whole answer that is no JSON."""


class Refusal(Exception):
    """A server refuses a request, with a status from 400 to 499 and its own words."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(f"{status}: {line}")
        self.status = status
        self.line = line


class Client:
    """Asks the server at `url`. Raises ServerFault, Refusal or ServerUnfit, each one line."""

    def __init__(self, url: str, timing: Timing) -> None:
        self.url = url
        self._timing = timing
        self._key = read_key()
        # llama-server's router lost 1 to 3 in 100 answers on connections that were kept.
        headers = {"Accept-Encoding": "identity", "Connection": "close"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._http = httpx.Client(
            base_url=url,
            headers=headers,
            follow_redirects=False,
            timeout=httpx.Timeout(timing.answer, connect=timing.connect, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,  # no proxy, and no password of a .netrc
        )

    def ask(self, path: str, kind: type[T], body: Json | None = None) -> T:
        """GET a path, or POST a body to it; returns the answer as `kind`.

        Raises ServerUnfit, naming the field, for JSON of another form.
        """
        try:
            return TypeAdapter(kind).validate_python(self.ask_json(path, body))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the answer"
            raise ServerUnfit(
                f"{self.url}{path} answered in a form that is not known ({self._show(field)}: "
                f"{self._show(first['msg'])}); check its version and what it serves"
            ) from None

    def ask_json(self, path: str, body: Json | None = None) -> Any:
        """The answer, parsed; NotJson for one that is no JSON."""
        text = self.ask_text(path, body)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            start = f", but {self._show(text)!r}" if text.strip() else ", but nothing"
            raise NotJson(f"{self.url}{path} answered no JSON{start}") from None

    def ask_text(self, path: str, body: Json | None = None) -> str:
        """The answer as it is."""
        try:
            status, data = self._read(path, body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ServerFault(
                f"{self.url} cannot be reached ({self._show(str(error)) or 'no answer'})",
                began=False,
                unreachable=True,
            ) from None
        except httpx.HTTPError as error:
            why = self._show(str(error)) or type(error).__name__
            raise ServerFault(f"{self.url}{path} broke off ({why})") from None
        text = data.decode("utf-8", errors="replace")
        if status < 300:
            return text
        said = self._show(_find_message(text))
        if status < 400:
            raise ServerUnfit(
                f"{self.url}{path} redirects to another address ({status}), which is not followed; "
                "name the server itself in engine.servers"
            )
        if status >= 500 or status in ASK_AGAIN:
            raise ServerFault(f"{self.url}{path} answered {status}: {said}", began=status >= 500)
        raise Refusal(status, said)

    def close(self) -> None:
        self._http.close()

    def _read(self, path: str, body: Json | None) -> tuple[int, bytes]:
        """Status and data of an answer, which must be whole in time and not too long."""
        deadline = time.monotonic() + self._timing.answer
        data = bytearray()
        method = "GET" if body is None else "POST"
        with self._http.stream(method, path, json=body) as response:
            # As it comes: a short answer that was packed may be gigabytes, and none was asked for.
            for chunk in response.iter_raw():
                data += chunk
                if len(data) > LONGEST:
                    raise ServerUnfit(
                        f"{self.url}{path} answered with more than {LONGEST // 2**20} MB; it is no "
                        "server of a known kind: check engine.servers"
                    )
                if time.monotonic() > deadline:  # a time-out of httpx is for one piece
                    raise httpx.ReadTimeout(f"not whole after {self._timing.answer:g} s")
            return response.status_code, bytes(data)

    def _show(self, text: str) -> str:
        return show(text.replace(self._key, "***") if self._key else text)


def read_key() -> str | None:
    """The key for servers; raises EngineError for one that no header can hold."""
    key = os.environ.get(KEY)
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise EngineError(f"{KEY} holds spaces or other characters that no key has; set it again")
    return key or None


def show(text: str) -> str:
    """A server's own words as one short line."""
    line = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]} …"


def _find_message(text: str) -> str:
    """The message in an error's JSON, in the forms of vLLM, FastAPI and llama.cpp; else the text.

    >>> _find_message('{"error": {"message": "no such model"}}'), _find_message("proxy error")
    ('no such model', 'proxy error')
    """
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for key in ("error", "message", "detail"):
        if isinstance(parsed, dict) and key in parsed:
            parsed = parsed[key]
    return parsed if isinstance(parsed, str) else text
