"""K responses to each prompt, from the model as actor."""

from collections import Counter

from selfreward_lite.data.records import Outcome, Prompt, Response
from selfreward_lite.method.roles import NO_TEXT_REASONS, AskGenerator, Role

EMPTY = "empty"  # why a response is dropped that has no text


def ask_for_responses(prompt: Prompt, role: Role, count: int) -> AskGenerator:
    """Sample `count` responses; drop empty and repeated ones (arXiv 2407.19594, section 3.1)."""
    key = role.make_id(Response, prompt.id, 0)
    seed_keys = [f"{prompt.id}:{index}" for index in range(count)]
    (completions,) = yield [role.make_request(prompt.text, key, seed_keys)]
    kept: dict[str, Response] = {}
    drops = Counter[str]()
    for index, completion in enumerate(completions):
        text = completion.text.strip()
        if completion.finish in NO_TEXT_REASONS:
            drops[NO_TEXT_REASONS[completion.finish]] += 1
        elif not text:
            drops[EMPTY] += 1
        elif text in kept:
            drops["equal to another"] += 1
        else:
            kept[text] = Response(
                role.make_id(Response, prompt.id, index),
                role.iteration,
                role.model,
                prompt.id,
                index,
                text,
                completion.finish,
                len(completion.tokens),
            )
    return Outcome(list(kept.values()), drops)
