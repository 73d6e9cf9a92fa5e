"""OpenAI's chat API, with which other programs talk to every model of the runs.

`GET /v1/models` and `POST /v1/chat/completions`, answered by the app's own engine. A model is named
RUN/MODEL, as in tiny/M3. What would change a reply and is not supported is refused by its name,
never ignored.
"""

import json
import secrets
import socket
import time
import uuid
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass, replace

import anyio
import uvicorn
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from selfreward_lite.app.guard import NAMES
from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.openai_request import Asked, Refused, errors_as_refusals, read_request
from selfreward_lite.app.talk import StreamedReply, Talk
from selfreward_lite.config.settings import Sampling
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import Json

MAX_BYTES = 2_000_000  # of a request
MAX_TOKENS = 4096  # of a reply
TOKENS = 1024  # of a reply by default, or as many as fit
TEMPERATURE, TOP_P = 0.7, 0.95  # by default, as on the page
REPLIES = 200  # at once; each holds a thread while the engine is silent
GRACE = 5  # seconds that replies under way may take when the server is stopped
SHORTER, TOO_LONG = "shorten it", "context_length_exceeded"
TINY_ID = "tiny-model"  # the name of the tiny model here, where names are parts of addresses


@dataclass(frozen=True)
class Reply:
    """A reply that is under way: `steps` are its growing texts, of which the last one ends it."""

    id: str
    model: str
    created: int
    prompt_tokens: int
    steps: Generator[StreamedReply, None, None]

    def head(self, kind: str) -> Json:
        """The fields that an answer and each chunk of it begin with."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def usage(self, tokens: int) -> Json:
        """The tokens of question and reply."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        }


def build_api(library: RunLibrary, key: str | None = None, run: str | None = None) -> Starlette:
    """Return the application, to be served alone or mounted at "/v1".

    `run` shows the models of one run only. With a `key`, every call must carry it; without one,
    only calls to this machine's own names are answered, so that no page from elsewhere can make a
    browser ask.
    """
    api = _Api(library, run)
    guard = (
        Middleware(_KeyGuard, key=key)
        if key
        else Middleware(TrustedHostMiddleware, allowed_hosts=list(NAMES), www_redirect=False)
    )
    return Starlette(
        routes=[
            Route("/models", api.list_models),
            Route("/models/{id:path}", api.show_model),
            Route("/chat/completions", api.complete, methods=["POST"]),
        ],
        middleware=[guard],
        exception_handlers={
            Refused: _answer_refused,
            HTTPException: _answer_http_error,
            Exception: _answer_bug,
        },
    )


def build_server(library: RunLibrary, key: str | None, run: str | None) -> Starlette:
    """Return the application with its paths below /v1, to be served alone."""
    return Starlette(
        routes=[Mount("/v1", build_api(library, key, run))],
        exception_handlers={HTTPException: _answer_http_error},
    )


def run_server(server: Starlette, library: RunLibrary, port: int, listen: bool) -> None:
    """Serve until interrupted. Raises UserError where the port is taken."""
    try:
        place = socket.create_server(("0.0.0.0" if listen else "127.0.0.1", port))
    except OSError as error:
        raise UserError(f"port {port}: {error.strerror}; choose another --port") from None
    config = uvicorn.Config(server, log_level="warning", timeout_graceful_shutdown=GRACE)
    try:
        with suppress(KeyboardInterrupt):  # uvicorn ends in order, and then raises it again
            uvicorn.Server(config).run(sockets=[place])
    finally:
        library.engine.close()
        place.close()


def check_key(listen: bool, key: str | None) -> str | None:
    """Return the key, if any. Raises UserError for --listen without one, or for a key too short."""
    if listen and not key:
        raise UserError(
            "--listen lets others on the network in: give a key in the environment variable "
            "SELFREWARD_KEY"
        )
    if key and (len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key):
        raise UserError("SELFREWARD_KEY: give at least 8 letters, digits or signs, without spaces")
    return key or None


class _Api:
    """The answers to each address."""

    def __init__(self, library: RunLibrary, run: str | None) -> None:
        self._library, self._run = library, run
        self._threads = anyio.CapacityLimiter(REPLIES)

    async def list_models(self, _: Request) -> Response:
        found = await to_thread.run_sync(self._find_models, limiter=self._threads)
        return JSONResponse({"object": "list", "data": list(found.values())})

    async def show_model(self, request: Request) -> Response:
        found = await to_thread.run_sync(self._find_models, limiter=self._threads)
        wanted = request.path_params["id"]
        if wanted not in found:
            raise _no_such_model(wanted)
        return JSONResponse(found[wanted])

    async def complete(self, request: Request) -> Response:
        asked = read_request(await _read_body(request))
        reply = await to_thread.run_sync(self._begin, asked, limiter=self._threads)
        if asked.stream:
            with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
            return _Stream(
                _write_chunks(reply, self._walk(reply.steps), with_usage),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-cache"},
            )
        last = StreamedReply("")
        async with aclosing(self._walk(reply.steps)) as steps:
            async for step in steps:
                last = step
                if await request.is_disconnected():
                    raise ClientDisconnect
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": last.text, "refusal": None},
            "logprobs": None,
            "finish_reason": _name_finish(last),
        }
        return JSONResponse(
            {
                **reply.head("chat.completion"),
                "choices": [choice],
                "usage": reply.usage(last.tokens),
            }
        )

    def _find_models(self) -> dict[str, Json]:
        """Every model that can be asked, by its id; the newest of a run stands last."""
        found: dict[str, Json] = {}
        runs = [self._run] if self._run else self._library.choices()
        for run in runs:
            try:
                models = self._library.models(run)
            except UserError:
                if self._run:
                    raise Refused(404, f"{run} has no model that can be asked yet") from None
                continue  # it has no base yet, or none any more
            name = TINY_ID if run == TINY else run
            written = int(models.base.stat().st_mtime)
            for model in models.adapters:
                found[f"{name}/{model}"] = {
                    "id": f"{name}/{model}",
                    "object": "model",
                    "created": written,
                    "owned_by": "selfreward_lite",
                }
        return found

    def _begin(self, asked: Asked) -> Reply:
        """A reply that nobody has asked the engine for yet. Raises Refused."""
        run, _, model = asked.model.rpartition("/")
        run = TINY if run == TINY_ID else run
        if run not in ([self._run] if self._run else self._library.choices()):
            raise _no_such_model(asked.model)
        with errors_as_refusals():
            talk = Talk(self._library, run, uuid.uuid4().hex)
            if model not in talk.models.adapters:
                raise _no_such_model(asked.model)
            messages = asked.conversation
            prompt_tokens = talk.count_tokens(model, messages)
            limit = _fit(asked.limit, prompt_tokens, talk.longest)
            draw = Sampling(
                temperature=TEMPERATURE if asked.temperature is None else asked.temperature,
                top_p=TOP_P if asked.top_p is None else asked.top_p,
                top_k=asked.top_k or 0,
                max_tokens=limit,
            )
        seed = secrets.randbits(31) if asked.seed is None else asked.seed
        steps = talk.stream_reply(model, messages, draw, seed)
        return Reply(
            f"chatcmpl-{uuid.uuid4().hex}",
            asked.model,
            int(time.time()),
            prompt_tokens,
            _cut_at(steps, asked.stops),
        )

    async def _walk(
        self, steps: Generator[StreamedReply, None, None]
    ) -> AsyncGenerator[StreamedReply]:
        """Take every step in a thread; closing this stops the reply.

        A step is never left half done, since a generator that runs cannot be closed; it lasts a
        second at most.
        """
        try:
            while True:
                with anyio.CancelScope(shield=True):
                    step = await to_thread.run_sync(_take_step, steps, limiter=self._threads)
                await anyio.lowlevel.checkpoint()
                if step is None:
                    return
                yield step
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(steps.close, limiter=self._threads)


# -- what is asked ---------------------------------------------------------------------------------


async def _read_body(request: Request) -> bytes:
    """The body, if it is JSON and not too long: a form could be sent by any page."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "send JSON, with the header Content-Type: application/json")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BYTES:
            raise Refused(413, f"the request has more than {MAX_BYTES:,} bytes: shorten it")
    return bytes(body)


def _fit(limit: int | None, prompt: int, longest: int) -> int:
    """How many tokens a reply may have, of a sequence that has `longest` with its prompt.

    Raises Refused where the conversation, or what is asked for, is too long.
    """
    room = longest - prompt
    if room >= 1 and limit is None:
        return min(TOKENS, room)
    if limit is not None and limit <= min(room, MAX_TOKENS):
        return limit
    if limit is not None and room > MAX_TOKENS:
        raise Refused(400, f"max_tokens={limit:,}: give {MAX_TOKENS:,} or fewer")
    advice = SHORTER if room < 1 else f"{SHORTER}, or give max_tokens of {room:,} or fewer"
    raise Refused(
        400,
        f"the conversation has {prompt:,} tokens, and a sequence of this model may have "
        f"{longest:,} with the reply: {advice}",
        TOO_LONG,
    )


# -- the reply -------------------------------------------------------------------------------------


def _cut_at(
    steps: Generator[StreamedReply, None, None], stops: tuple[str, ...]
) -> Generator[StreamedReply, None, None]:
    """The steps of a reply, cut before the first of the texts that end it.

    The beginning of such a text is held back until it is clear that it is none.
    """
    with closing(steps):
        for step in steps:
            places = [place for stop in stops if (place := step.text.find(stop)) >= 0]
            if places:
                yield replace(step, text=step.text[: min(places)], finish="stop")
                return
            if step.finish is None:
                held = max((_overlap(step.text, stop) for stop in stops), default=0)
                yield replace(step, text=step.text[: len(step.text) - held])
            else:
                yield step


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of `stop`.

    >>> _overlap("one\\nUs", "\\nUser:"), _overlap("one", "\\nUser:")
    (3, 0)
    """
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)


def _take_step(steps: Generator[StreamedReply, None, None]) -> StreamedReply | None:
    """The next step of a reply, None at its end. Raises Refused for a reply that cannot be made."""
    with errors_as_refusals():
        step = next(steps, None)
    if step is not None and step.finish == "refused":
        raise Refused(
            400, "conversation and reply do not fit the context: lower max_tokens", TOO_LONG
        )
    if step is not None and step.finish == "failed":
        raise Refused(503, "the engine crashed and was restarted: ask again")
    return step


async def _write_chunks(
    reply: Reply, steps: AsyncGenerator[StreamedReply], with_usage: bool
) -> AsyncGenerator[str]:
    """A reply as server-sent events; an error ends it with a line of its own."""
    head = reply.head("chat.completion.chunk") | ({"usage": None} if with_usage else {})

    def write(delta: Json, finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _write_event({**head, "choices": [choice]})

    yield write({"role": "assistant", "content": ""})
    sent = 0
    async with aclosing(steps):
        try:
            async for step in steps:
                if new := step.text[sent:]:
                    sent = len(step.text)
                    yield write({"content": new})
                elif step.finish is None:
                    yield ": waiting\n\n"  # a comment; it shows that somebody is there
                if step.finish:
                    yield write({}, _name_finish(step))
                    if with_usage:
                        usage = reply.usage(step.tokens)
                        yield _write_event({**head, "choices": [], "usage": usage})
        except Refused as refused:
            yield _write_event(refused.to_json())
    yield "data: [DONE]\n\n"


class _Stream(StreamingResponse):
    """A stream whose source is closed at once when the caller has gone."""

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self.body_iterator):  # type: ignore[type-var]
            await super().stream_response(send)


def _write_event(document: Json) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def _name_finish(reply: StreamedReply) -> str:
    return "length" if reply.finish == "length" else "stop"


# -- errors and access -----------------------------------------------------------------------------


class _KeyGuard:
    """Lets a call pass that carries the key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(given, self._expected):
                refused = Refused(401, "the key is missing or wrong", "invalid_api_key")
                await JSONResponse(refused.to_json(), 401)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _no_such_model(name: str) -> Refused:
    return Refused(
        404, f"no model {name[:200]!r} here; GET /v1/models lists them", "model_not_found"
    )


async def _answer_refused(_: Request, refused: Exception) -> Response:
    assert isinstance(refused, Refused)
    return JSONResponse(refused.to_json(), refused.status)


async def _answer_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refused = Refused(error.status_code, error.detail)
    return JSONResponse(refused.to_json(), error.status_code, error.headers)


async def _answer_bug(_: Request, __: Exception) -> Response:
    """An error that nobody foresaw; the server's own output has it in full."""
    return JSONResponse(Refused(500, "a bug: the server's output has the error").to_json(), 500)
