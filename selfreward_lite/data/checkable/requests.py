"""Requests that a program can check, drawn from a seed: a topic and one to three constraints."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from selfreward_lite.data.checkable.kinds import (
    TOPIC,
    TRAINED,
    UNSEEN,
    Constraint,
    Kind,
    contradict,
    encode_constraints,
    read_constraints,
    word_constraint,
)
from selfreward_lite.data.checkable.topics import OPENINGS, TOPICS, Part, find_part
from selfreward_lite.data.records import Prompt

MOST = 3  # constraints of a request


@dataclass(frozen=True)
class Request:
    """A request as a user words it, and what its answers are checked for."""

    text: str
    constraints: tuple[Constraint, ...]


def draw_requests(
    seed: int | str, part: Part, count: int, *, least: int = 1, unseen: bool = False
) -> list[Request]:
    """Return `count` different requests with `least` to MOST constraints, the same for one seed.

    The topic stands before or after the constraints. Requests of different parts have different
    topics. `unseen` draws from the kinds that training never shows, and from no others.
    """
    rng = random.Random(f"{seed} {part} {unseen}")
    topics = [topic for topic in TOPICS if find_part(topic) == part]
    found: dict[str, Request] = {}
    while len(found) < count:
        rng.shuffle(topics)
        for topic in topics[: count - len(found)]:
            opening = rng.choice(OPENINGS).format(topic)
            kept = [Constraint(TOPIC, topic)]
            kept += _draw_constraints(
                rng, UNSEEN if unseen else TRAINED, rng.randint(least, MOST), kept
            )
            rules = [word_constraint(one, rng) for one in kept[1:]]
            text = " ".join([opening, *rules] if rng.random() < 0.5 else [*rules, opening])
            found.setdefault(text, Request(text, tuple(kept)))
    return list(found.values())


def draw_held_out_requests(seed: int | str, count: int) -> list[Request]:
    """Return requests to measure models with: the first half of trained kinds, the rest of unseen.

    Neither half shares a topic with the requests for training.
    """
    half = (count + 1) // 2
    return [
        *draw_requests(seed, "held_out", half),
        *draw_requests(seed, "held_out", count - half, unseen=True),
    ]


def add_constraints(prompt: Prompt, seed: int, count: int, *, unseen: bool = False) -> Prompt:
    """Return a prompt of any kind with `count` constraints of the trained kinds in plain words.

    `unseen` as in `draw_requests`. The prompt keeps its id. Its own constraints, if it has some
    already, stay, and none is drawn that contradicts them; what the text itself asks for is not
    understood. Raises ValueError if so many do not go together.
    """
    rng = random.Random(f"{seed} {prompt.id}")
    before = read_constraints(prompt)
    drawn = _draw_constraints(rng, UNSEEN if unseen else TRAINED, count, before)
    words = [word_constraint(one, rng) for one in drawn]
    return replace(
        prompt,
        text=" ".join([prompt.text, *words]),
        constraints=encode_constraints([*before, *drawn]),
    )


def remove_constraints(prompt: Prompt, seed: int, count: int) -> str:
    """Return the text of a prompt without what `add_constraints` put behind it."""
    bare = replace(prompt, text="", constraints="")
    return prompt.text.removesuffix(add_constraints(bare, seed, count).text)


def asks_unseen_kind(constraints: Iterable[Constraint]) -> bool:
    """Return whether a constraint is of a kind that training never shows."""
    return any(one.kind in UNSEEN for one in constraints)


def _draw_constraints(
    rng: random.Random, kinds: Mapping[str, Kind], count: int, before: Sequence[Constraint]
) -> list[Constraint]:
    """`count` constraints of different kinds that go together, and with those `before`."""
    if count > MOST:
        raise ValueError(f"{count} constraints do not always go together; ask for {MOST} at most")
    for _ in range(1000):  # every kind is as likely; values follow, so that odd ones are redrawn
        names = rng.sample(list(kinds), count)
        drawn = [Constraint(name, rng.choice(kinds[name].values)) for name in names]
        if _go_together([*before, *drawn]):
            return drawn
    raise ValueError(f"no {count} constraints go together with {list(before)}")


def _go_together(constraints: Sequence[Constraint]) -> bool:
    return not any(
        contradict(first, second)
        for place, first in enumerate(constraints)
        for second in constraints[:place]
    )
