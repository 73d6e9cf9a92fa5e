"""What stands before the page: who may call, how often a password is tried, how much is sent.

Gradio has no limit to logins, none to the size of a call that is not an upload, and sends no
headers of protection. `Guard` adds them to every answer, whatever route gives it.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NAMES = ("127.0.0.1", "localhost")  # by which a browser on this machine may call
MAX_BYTES = 8_000_000  # of a call; an upload may have five million, and gradio counts those
TRIES, PERIOD = 5, 60.0  # wrong passwords from one address within so many seconds
ADDRESSES = 10_000  # of which wrong passwords are remembered
# Texts of models are shown: no picture from elsewhere, no form, no frame. Gradio needs inline
# scripts, so scripts are not limited here; no text reaches the page as HTML (app/escape.py).
POLICY = (
    "img-src 'self' data: blob:; media-src 'none'; form-action 'none'; frame-src 'none'; "
    "object-src 'none'; base-uri 'self'; frame-ancestors 'self'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class _TooLarge(Exception):
    """A call sends more than it may."""


class Tries:
    """The wrong passwords of every address within the last PERIOD seconds of `clock`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: dict[str, deque[float]] = {}

    def wait_for(self, address: str) -> int:
        """Return the seconds until an address may try again, 0 if it may now."""
        failed = self._failed.get(address, deque())
        while failed and failed[0] <= self._clock() - PERIOD:
            failed.popleft()
        return 0 if len(failed) < TRIES else 1 + int(failed[0] + PERIOD - self._clock())

    def add(self, address: str) -> None:
        """Count a wrong password; beyond ADDRESSES, the address that began first is forgotten."""
        self._failed.setdefault(address, deque(maxlen=TRIES)).append(self._clock())
        if len(self._failed) > ADDRESSES:
            del self._failed[next(iter(self._failed))]


class Guard:
    """Passes on to `app` what may be answered, as an ASGI middleware.

    `names` are the host names that are answered, None for every name: a page without a password
    answers only to this machine's own, so that no other site can rename itself and read it.
    """

    def __init__(
        self, app: ASGIApp, names: Sequence[str] | None, tries: Tries | None = None
    ) -> None:
        self._app, self._names, self._tries = app, names, tries or Tries()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        address = (scope.get("client") or ("unknown",))[0]
        is_login = scope["method"] == "POST" and scope["path"].rstrip("/") == "/login"
        has_begun = False

        async def answer(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                MutableHeaders(scope=message).update(HEADERS)
                if is_login and message["status"] == 400:
                    self._tries.add(address)
            await send(message)

        refused = self._refuse(scope, address, is_login)
        if refused is None:
            try:
                await self._app(scope, _count(receive), answer)
                return
            except _TooLarge:
                if has_begun:
                    raise
                refused = _TOO_LARGE
        await refused(scope, receive, answer)

    def _refuse(self, scope: Scope, address: str, is_login: bool) -> Response | None:
        """The answer to a call that is not passed on."""
        headers = Headers(scope=scope)
        name = headers.get("host", "").partition(":")[0].lower()
        if self._names is not None and name not in self._names:
            return PlainTextResponse(
                f"this page answers to {' and '.join(self._names)} alone; for another name, start "
                "the app with --auth USER:PASSWORD",
                421,
            )
        size = headers.get("content-length", "0")
        if not size.isdecimal() or int(size) > MAX_BYTES:
            return _TOO_LARGE
        if is_login and (wait := self._tries.wait_for(address)):
            line = f"too many wrong passwords: wait {wait} seconds"
            return PlainTextResponse(line, 429, {"Retry-After": f"{wait}"})
        return None


_TOO_LARGE = PlainTextResponse(f"a call may have {MAX_BYTES:,} bytes: send less", 413)


def _count(receive: Receive) -> Receive:
    """The same messages, ended by _TooLarge where they have more bytes than a call may have."""
    read = 0

    async def counted() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > MAX_BYTES:
            raise _TooLarge
        return message

    return counted
