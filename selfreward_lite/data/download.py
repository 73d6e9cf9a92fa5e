"""One file downloaded: what is there of it already is kept, and only the rest is asked for."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx

Show = Callable[[str, int, int], None]  # a file, its bytes so far, its bytes in all
# Opens a request with these headers; raises httpx.HTTPError for an answer that refuses.
Ask = Callable[[dict[str, str]], AbstractContextManager[httpx.Response]]
SILENCE = httpx.Timeout(60.0)  # seconds without a byte until a connection counts as broken
ATTEMPTS, PAUSE = 5, 0.5  # attempts in a row without progress; seconds between, doubled each time
BUSY = (429, 500, 502, 503, 504)  # status codes after which another attempt is made
LONGEST_WAIT = 300.0  # seconds, even if the server asks for more


def receive(ask: Ask, part: Path, name: str, size: int | None, show: Show) -> None:
    """Append what is missing of a file to `part`; retries as long as there is some progress.

    Raises the httpx.HTTPError of the last attempt.
    """
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _stream(ask, part, name, size, show)
        except httpx.HTTPError as error:
            failures = 1 if part.stat().st_size > before else failures + 1
            wait = PAUSE * 2**failures
            response = getattr(error, "response", None)
            if response is not None:
                if response.status_code not in BUSY:
                    raise
                asked = response.headers.get("Retry-After", "")
                wait = max(wait, min(float(asked), LONGEST_WAIT) if asked.isdecimal() else 0.0)
            elif not isinstance(error, httpx.TransportError):
                raise
            if failures == ATTEMPTS:
                raise
            time.sleep(wait)


def describe_error(error: Exception) -> str:
    """Return the class and the first line of an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _stream(ask: Ask, part: Path, name: str, size: int | None, show: Show) -> None:
    """Append what is missing of a file, in one request."""
    with part.open("ab") as out:
        done = out.tell()
        if size is not None and done >= size:
            return  # complete, or too long, which its digest will show
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
        with ask(headers) as response:
            if done and response.status_code == 200:  # the server ignored the range
                out.truncate(0)
                done = 0
            for piece in response.iter_bytes():  # a chunk size would keep back what has arrived
                out.write(piece)
                done += len(piece)
                show(name, done, size or done)
