"""What other programs may ask of the app, with `gradio_client`: `runs`, `chat`, `judge`, `compare`.

Knows: plain values in, plain values out; one engine serves these and the page alike. Does not know: the page. An error of a
caller's comes back as its one line.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import gradio as gr

from selfreward_lite.app.library import TINY, RunLibrary, RunModels
from selfreward_lite.app.talk import Reply, Score, Verdict
from selfreward_lite.app.widgets import draw_of, errors_as_toasts
from selfreward_lite.models.chat_format import Message, user
from selfreward_lite.report import status
from selfreward_lite.system.errors import SelfRewardError, UserError

LONGEST, MOST = (
    100_000,
    4096,
)  # characters of a text, tokens of a reply: what one caller may ask of all the others' engine


def define(library: RunLibrary) -> None:
    """Add the endpoints to the page that is being built."""

    def runs() -> list[dict[str, Any]]:
        """Return the runs, the newest first: name, state, models, the preset; and the tiny model, which needs none."""
        found = [_described(library, name) for name in library.runs()]
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
    ) -> Iterator[dict[str, Any]]:
        """Yield a model's reply as it grows: text, tokens, finish (None until it ends), first (seconds), tokens_per_second."""
        with errors_as_toasts():
            place, model = _asked(library, run, model, message, system)
            messages = [
                *([Message(role="system", content=system)] if system.strip() else []),
                *_history(history),
                *user(message),
            ]
            draw = draw_of(temperature, top_p, min(max_tokens, MOST))
            with closing(
                library.reply(place, model, messages, draw, seed, uuid.uuid4().hex)
            ) as growing:
                for reply in growing:
                    yield _reply(reply)

    def judge(prompt: str, response: str, run: str, model: str = "") -> dict[str, Any]:
        """Return what a model gives a response, as judge: score (mean), spread, expected, read, wanted, judgments."""
        with errors_as_toasts():
            place, model = _asked(library, run, model, prompt, response)
            (*_, found) = library.score(place, model, user(prompt), response, uuid.uuid4().hex)
            return _score(found)

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
    ) -> dict[str, Any]:
        """Return what two models reply to a prompt with one seed, and a judge's verdict of both orders: "a", "b", "tie", None."""
        with errors_as_toasts():
            place, judge = _asked(library, run, judge, prompt)
            draw, caller, texts, said = (
                draw_of(temperature, top_p, min(max_tokens, MOST)),
                uuid.uuid4().hex,
                [],
                {},
            )
            for name, model in (("a", model_a), ("b", model_b)):
                (*_, reply) = library.reply(place, model, user(prompt), draw, seed, caller)
                texts.append(reply.text)
                said[name] = {"model": model, **_reply(reply)}
            (*_, verdict) = library.verdict(place, judge, prompt, (texts[0], texts[1]), caller)
            assert isinstance(verdict, Verdict)
            return {
                **said,
                "judge": judge,
                "verdict": verdict.result,
                "judged_ab": verdict.judged_ab,
                "judged_ba": verdict.judged_ba,
            }

    for endpoint in (runs, chat, judge, compare):
        gr.api(
            endpoint,
            api_name=endpoint.__name__,
            api_description=endpoint.__doc__,
            concurrency_limit=None,
        )


def _described(library: RunLibrary, name: str) -> dict[str, Any]:
    """A run that cannot be read is in the list all the same, and says why."""
    try:
        view = status.view(library.folder(name))
        models: list[str] = []
        with suppress(UserError):  # nothing to talk to yet, or pruned; its state says more
            models = list(library.place(name).adapters)
        return {"run": name, "state": view.state, "preset": view.preset, "models": models}
    except SelfRewardError as error:
        return {"run": name, "state": str(error), "preset": "", "models": []}


def _asked(library: RunLibrary, run: str, model: str, *texts: str) -> tuple[RunModels, str]:
    """Where a run's models are and which is meant, the newest if none is named. Raises UserError for what cannot be."""
    if any(len(text) > LONGEST for text in texts):
        raise UserError(f"a text has more than {LONGEST:,} characters: shorten it")
    place = library.place(run)
    return place, model or list(place.adapters)[-1]


def _history(turns: list[dict[str, str]] | None) -> list[Message]:
    found = []
    for turn in turns or []:
        role, content = (
            (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        )
        if role not in ("user", "assistant") or not isinstance(content, str):
            raise UserError('history: a list of {"role": "user" or "assistant", "content": text}')
        found.append(Message(role=role, content=content))
    if sum(len(message["content"]) for message in found) > LONGEST:
        raise UserError(f"history has more than {LONGEST:,} characters: shorten it")
    return found


def _reply(reply: Reply) -> dict[str, Any]:
    return {
        "text": reply.text,
        "tokens": reply.tokens,
        "finish": reply.finish,
        "first": reply.first,
        "tokens_per_second": None if reply.speed is None else round(reply.speed, 1),
    }


def _score(score: Score) -> dict[str, Any]:
    return {
        "score": score.mean,
        "spread": score.spread,
        "expected": score.expected,
        "read": len(score.read),
        "wanted": score.wanted,
        "judgments": [one.text for one in score.judgments],
    }
