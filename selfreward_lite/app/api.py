"""Endpoints for other programs, through `gradio_client`: `runs`, `chat`, `judge`, `compare`.

Plain values in, plain values out. They use the same engine as the page; errors come as one line.
"""

import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from inspect import cleandoc

import gradio as gr

from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.talk import StreamedReply, Talk
from selfreward_lite.app.widgets import errors_as_toasts, parse_draw
from selfreward_lite.models.chat_template import Message, user
from selfreward_lite.report import status
from selfreward_lite.system.errors import SelfRewardError, UserError
from selfreward_lite.system.files import Json

# One caller's share of an engine that all callers use.
MAX_CHARACTERS = 100_000  # of a text
MAX_TOKENS = 4096  # of a reply


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
            talk, model = _open(library, run, model, message, system)
            messages = [
                *([Message(role="system", content=system)] if system.strip() else []),
                *_parse_history(history),
                *user(message),
            ]
            draw = parse_draw(temperature, top_p, min(max_tokens, MAX_TOKENS))
            with closing(talk.stream_reply(model, messages, draw, seed)) as replies:
                for reply in replies:
                    yield _to_plain(reply)

    def judge(prompt: str, response: str, run: str, model: str = "") -> Json:
        """Return a model's score for a response.

        Fields: score (mean), spread, expected, read (judgments) of wanted, forced (scores that the
        judge did not write), judgments.
        """
        with errors_as_toasts():
            talk, model = _open(library, run, model, prompt, response)
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
            talk, judge = _open(library, run, judge, prompt)
            draw = parse_draw(temperature, top_p, min(max_tokens, MAX_TOKENS))
            (*_, a) = talk.stream_reply(model_a, user(prompt), draw, seed)
            (*_, b) = talk.stream_reply(model_b, user(prompt), draw, seed)
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


def _open(library: RunLibrary, run: str, model: str, *texts: str) -> tuple[Talk, str]:
    """Access to a run's models, and the model that is meant: the newest unless one is named."""
    if any(len(text) > MAX_CHARACTERS for text in texts):
        raise UserError(f"a text has more than {MAX_CHARACTERS:,} characters: shorten it")
    talk = Talk(library, run, uuid.uuid4().hex)
    return talk, model or list(talk.models.adapters)[-1]


def _parse_history(turns: list[dict[str, str]] | None) -> list[Message]:
    found = []
    for turn in turns or []:
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


def _to_plain(reply: StreamedReply) -> Json:
    return {
        "text": reply.text,
        "tokens": reply.tokens,
        "finish": reply.finish,
        "first": reply.first,
        "tokens_per_second": None if reply.speed is None else round(reply.speed, 1),
    }
