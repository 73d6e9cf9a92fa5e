"""K responses to each prompt, from the model as actor."""

from selfreward_lite.data.records import Drop, Outcome, Prompt, Response
from selfreward_lite.method.roles import NO_TEXT_REASONS, AskGenerator, Role


def ask_for_responses(prompt: Prompt, role: Role, count: int) -> AskGenerator:
    """Sample `count` responses; drop empty and repeated ones (arXiv 2407.19594, section 3.1)."""
    key = role.make_id(Response, prompt.id, 0)
    seed_keys = [f"{prompt.id}:{index}" for index in range(count)]
    (completions,) = yield [role.make_request(prompt.text, key, seed_keys)]
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
                role.make_id(Response, prompt.id, index),
                role.iteration,
                role.model,
                prompt.id,
                index,
                text,
                completion.finish,
                len(completion.tokens),
            )
    return Outcome(tuple(kept.values()), tuple(drops))
