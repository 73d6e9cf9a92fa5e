"""Prompts, responses and judgments with ids, and completions for asking stages."""

import pytest

from selfreward_lite.data.records import (
    Judgment,
    Outcome,
    Prompt,
    Response,
    make_id,
)
from selfreward_lite.engine.api import Completion

RUN = "seed 0"


def make_completions(request, texts, finish="stop", probe=None):
    return [
        Completion(
            request.key, sample, tuple(range(len(text))), text, finish, len(request.tokens), probe
        )
        for sample, text in enumerate(texts)
    ]


def finish_asking(asking, replies) -> Outcome:
    """Send the answers to an item that asks once."""
    with pytest.raises(StopIteration) as stop:
        asking.send(replies)
    return stop.value.value


def make_prompt(text="Sort the letters c a b.", index=0) -> Prompt:
    return Prompt(make_id(RUN, Prompt, 1, "generated", index), 1, "generated", index, text)


def make_response(text="a b c", prompt=None, index=0, finish="stop") -> Response:
    prompt = prompt or make_prompt()
    return Response(
        make_id(RUN, Response, 1, "M0", prompt.id, index),
        1,
        "M0",
        prompt.id,
        index,
        text,
        finish,
        3,
    )


def make_judgment(index, score, text=None, response="r", expected=None) -> Judgment:
    text = f"because {index}\nScore: {score}" if text is None else text
    return Judgment(
        make_id(RUN, Judgment, 1, "M0", response, index),
        1,
        "M0",
        response,
        index,
        text,
        "stop",
        5,
        score,
        expected,
    )
