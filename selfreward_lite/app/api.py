"""Endpoints for other programs, through `gradio_client`: `runs`, `chat`, `judge`, `compare`.

Plain values in, plain values out. They use the same engine as the page; errors come as one line.
"""

import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from inspect import cleandoc
from typing import Annotated, Any

import gradio as gr
from pydantic import Field, TypeAdapter, ValidationError

from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.talk import StreamedReply, Talk
from selfreward_lite.app.texts import refuse_half_characters
from selfreward_lite.app.widgets import errors_as_toasts, parse_draw
from selfreward_lite.config.wording import explain_fault
from selfreward_lite.models.chat_template import Message, user
from selfreward_lite.report import status
from selfreward_lite.system.errors import SelfRewardError, UserError
from selfreward_lite.system.files import Json

# One caller's share of an engine that all callers use.
MAX_CHARACTERS = 100_000  # of a text
MAX_TOKENS = 4096  # of a reply
# Gradio passes on what a caller sends, whatever the type. These are the arguments of all endpoints.
_TEXT = TypeAdapter(Annotated[str, Field(max_length=MAX_CHARACTERS)])
_NAME = TypeAdapter(Annotated[str, Field(max_length=255)])
ARGUMENTS: dict[str, TypeAdapter[Any]] = {
    **dict.fromkeys(("message", "system", "prompt", "response"), _TEXT),
    **dict.fromkeys(("run", "model", "model_a", "model_b", "judge"), _NAME),
    "temperature": TypeAdapter(Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]),
    "top_p": TypeAdapter(Annotated[float, Field(gt=0, le=1)]),
    "max_tokens": TypeAdapter(Annotated[int, Field(ge=1, le=MAX_TOKENS)]),
    "seed": TypeAdapter(Annotated[int, Field(ge=0, lt=2**32)]),
}


def define(library: RunLibrary) -> None:
    """Add the endpoints to the page under construction."""

    def runs() -> list[Json]:
        """Return all runs, the newest first: run, state, preset, models. Last: the tiny model."""
        found = [_describe(library, name) for name in library.runs()]
        return [*found, {"run": TINY, "state": "no run", "preset": "tiny", "models": ["base"]}]

    def chat(
        message: str,
        run: str,
        model: str = "",
        system: str = "",
        history: list[dict[str, str]] | None = None,
        temperature: float = 0.7,
        top_p: float = 0.95,
        max_tokens: int = 256,
        seed: int = 0,
    ) -> Iterator[Json]:
        """Yield a model's reply as it grows.

        Fields: text, tokens, finish (None until it ends), first (seconds), tokens_per_second.
        """
        with errors_as_toasts():
            check_arguments(message=message, run=run, model=model, system=system)
            check_arguments(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
            talk, model = _open(library, run, model)
            messages = [
                *([Message(role="system", content=system)] if system.strip() else []),
                *_parse_history(history),
                *user(message),
            ]
            draw = parse_draw(temperature, top_p, max_tokens)
            with closing(talk.stream_reply(model, messages, draw, seed)) as replies:
                for reply in replies:
                    _check_room(reply, talk, max_tokens)
                    yield _to_plain(reply)

    def judge(prompt: str, response: str, run: str, model: str = "") -> Json:
        """Return a model's score for a response.

        Fields: score (mean), spread, expected, read (judgments) of wanted, forced (scores that the
        judge did not write), judgments.
        """
        with errors_as_toasts():
            check_arguments(prompt=prompt, response=response, run=run, model=model)
            talk, model = _open(library, run, model)
            (*_, score) = talk.stream_score(model, user(prompt), response)
            return {
                "score": score.mean,
                "spread": score.spread,
                "expected": score.expected,
                "read": len(score.read),
                "wanted": score.wanted,
                "forced": score.forced,
                "judgments": [one.text for one in score.judgments],
            }

    def compare(
        prompt: str,
        run: str,
        model_a: str,
        model_b: str,
        judge: str = "",
        temperature: float = 0.7,
        top_p: float = 0.95,
        max_tokens: int = 256,
        seed: int = 0,
    ) -> Json:
        """Return two models' replies, a and b, with one seed, and a judge's verdict in both orders.

        The verdict is "a", "b", "tie", or None if the judge could not be asked.
        """
        with errors_as_toasts():
            check_arguments(prompt=prompt, run=run, judge=judge, model_a=model_a, model_b=model_b)
            check_arguments(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
            talk, judge = _open(library, run, judge)
            draw = parse_draw(temperature, top_p, max_tokens)
            (*_, a) = talk.stream_reply(model_a, user(prompt), draw, seed)
            (*_, b) = talk.stream_reply(model_b, user(prompt), draw, seed)
            for reply in (a, b):
                _check_room(reply, talk, max_tokens)
            (*_, verdict) = talk.stream_verdict(judge, prompt, (a.text, b.text))
            return {
                "a": {"model": model_a, **_to_plain(a)},
                "b": {"model": model_b, **_to_plain(b)},
                "judge": judge,
                "verdict": verdict.result,
                "judged_ab": verdict.judged_ab,
                "judged_ba": verdict.judged_ba,
            }

    for endpoint in (runs, chat, judge, compare):
        gr.api(endpoint, api_description=cleandoc(endpoint.__doc__ or ""), concurrency_limit=None)


def _describe(library: RunLibrary, run: str) -> Json:
    """A run's entry in the list; the state of one that cannot be read says why."""
    found: Json = {"run": run, "state": "", "preset": "", "models": []}
    try:
        view = status.read_status(library.folder(run))
        found |= {"state": view.state, "preset": view.preset}
        with suppress(UserError):  # no models yet, or pruned; its state says more
            found["models"] = list(library.models(run).adapters)
    except SelfRewardError as error:
        found["state"] = str(error)
    return found


def check_arguments(**given: object) -> None:
    """Raise UserError, with its name, for an argument of a wrong type or out of its range.

    >>> check_arguments(seed=1, top_p=1)
    >>> check_arguments(seed="abc")
    Traceback (most recent call last):
    selfreward_lite.system.errors.UserError: seed=abc: give a whole number
    """
    for name, value in given.items():
        refuse_half_characters(value, name)
        try:
            ARGUMENTS[name].validate_python(value, strict=True)
        except ValidationError as error:
            raise UserError(explain_fault(name, error.errors()[0])) from None


def _open(library: RunLibrary, run: str, model: str) -> tuple[Talk, str]:
    """Access to a run's models, and the model that is meant: the newest unless one is named."""
    talk = Talk(library, run, uuid.uuid4().hex)
    return talk, model or list(talk.models.adapters)[-1]


def _parse_history(turns: object) -> list[Message]:
    refuse_half_characters(turns, "history")
    found = []
    for turn in turns if isinstance(turns, list) else [] if turns is None else [turns]:
        match turn:
            case {"role": "user" | "assistant" as role, "content": str() as content}:
                found.append(Message(role=role, content=content))
            case _:
                raise UserError(
                    'history: a list of {"role": "user" or "assistant", "content": text}'
                )
    if sum(len(message["content"]) for message in found) > MAX_CHARACTERS:
        raise UserError(f"history has more than {MAX_CHARACTERS:,} characters: shorten it")
    return found


def _check_room(reply: StreamedReply, talk: Talk, max_tokens: int) -> None:
    """Raise UserError for a reply that was refused: a sequence has no room for it."""
    if reply.finish == "refused":
        raise UserError(
            f"max_tokens={max_tokens:,}: a sequence of this model has {talk.longest:,} tokens, "
            "with all that is said before; lower it, or shorten the conversation"
        )


def _to_plain(reply: StreamedReply) -> Json:
    return {
        "text": reply.text,
        "tokens": reply.tokens,
        "finish": reply.finish,
        "first": reply.first,
        "tokens_per_second": None if reply.speed is None else round(reply.speed, 1),
    }
