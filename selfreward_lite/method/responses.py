"""K responses to each prompt, from the model as actor.

Knows: how a prompt is asked, which responses are kept. Does not know: scores.
"""

from __future__ import annotations

from selfreward_lite.data.records import Drop, Outcome, Prompt, Response, make_id
from selfreward_lite.method.roles import NO_TEXT_REASONS, AskGenerator, Role


def ask_for_responses(prompt: Prompt, role: Role, count: int) -> AskGenerator:
    """Sample `count` responses to `prompt`; equal ones are kept once (arXiv 2407.19594, section 3.1), empty ones not."""
    ids = [
        make_id(role.id_namespace, Response, role.iteration, role.model, prompt.id, index)
        for index in range(count)
    ]
    (completions,) = yield [
        role.make_request(prompt.text, ids[0], [f"{prompt.id}:{index}" for index in range(count)])
    ]
    kept: dict[str, Response] = {}
    drops = []
    for index, completion in enumerate(completions):
        text = completion.text.strip()
        if completion.finish in NO_TEXT_REASONS:
            drops.append(Drop(NO_TEXT_REASONS[completion.finish]))
        elif not text:
            drops.append(Drop("empty"))
        elif text in kept:
            drops.append(Drop("equal to another"))
        else:
            kept[text] = Response(
                ids[index],
                role.iteration,
                role.model,
                prompt.id,
                index,
                text,
                completion.finish,
                len(completion.tokens),
            )
    return Outcome(tuple(kept.values()), tuple(drops))
