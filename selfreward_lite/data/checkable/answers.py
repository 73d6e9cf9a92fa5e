"""Answers to checkable requests, written by program from a small bank of sentences.

They are poor prose, but they are about the topic, and keep or break each constraint as wanted. They
show that a request can be satisfied, and are ranked to measure a judge with.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from selfreward_lite.data.checkable.kinds import TOPIC, Constraint, Value, keeps
from selfreward_lite.data.checkable.requests import Request
from selfreward_lite.data.checkable.score import find_fault
from selfreward_lite.data.checkable.text_parts import split_words

TRIES = 400  # drafts until one keeps what it should; more than a tenth of that is rare

# With and without commas and the words and letters that a request may forbid.
SENTENCES = (
    "I like {topic} a lot.",
    "My mother often talked about {topic}.",
    "{Topic} can make a dull day better.",
    "There is a good deal to say about {topic}.",
    "Some people never think about {topic}, and that is fine.",
    "Years ago, nobody in our street cared about {topic}.",
    "When I hear of {topic}, I smile.",
    "I could not do without {topic}, or so I think.",
    "You learn something new from {topic} each time.",
    "A friend of mine also likes {topic}.",
    "I read an old tale about {topic} last night.",
    "{Topic} are more fun than most people think.",
    "Small things matter, too.",
    "It is easy to start, but hard to stop.",
    "It takes time to see the point.",
    "That is the best part of it.",
    "My sister has other ideas.",
    "She says there is no hurry.",
    "All of us laughed at that.",
    "In the end, most of us agree.",
    "Nothing else feels the same.",
    "Ask an old man, and he will tell more.",
    "The first time is the best.",
    "A little goes a long way.",
    "He calls it a simple pleasure, and he means it.",
    "Some do it alone, others do it with a group.",
    "Once a year our town has a feast for it.",
    "At times one should just sit and look.",
    "The rest is a matter of taste.",
    "Good luck helps at least as much as skill.",
    "Those who hurry miss the main thing.",
    "Not all the stories that one hears are true.",
    "Later on it turns out to be rather easy.",
    "There are so many sorts to choose from.",
    "Or maybe it is just me.",
    "Children ask the best questions about {topic}.",
)


@dataclass
class _Draft:
    """An answer under way: its sentences, and how they are put together."""

    sentences: list[str]
    mark: str = ""
    between: str = " "
    changes: list[Callable[[str], str]] = field(default_factory=list)

    def __str__(self) -> str:
        text = self.between.join(f"{self.mark}{one}" for one in self.sentences)
        for change in self.changes:
            text = change(text)
        return text


def write_answer(request: Request, rng: random.Random, keep: Collection[Constraint]) -> str | None:
    """Return an answer that keeps of the request's constraints exactly those in `keep`.

    None if no draft did, which is rare: an odd mix of limits.
    """
    rules = [one for one in request.constraints if one.kind != TOPIC]
    topic = next(str(one.value) for one in request.constraints if one.kind == TOPIC)
    for _ in range(TRIES):
        text = _draft(topic, [one for one in rules if one in keep], rng)
        if find_fault(request.text, request.constraints, text, "stop") is None and all(
            keeps(one, text) == (one in keep) for one in rules
        ):
            return text
    return None


def _draft(topic: str, kept: Sequence[Constraint], rng: random.Random) -> str:
    values = {one.kind: one.value for one in kept}
    lines = [one.format(topic=topic, Topic=topic[0].upper() + topic[1:]) for one in SENTENCES]
    lines = [one for one in lines if _may_use(one, values)]
    rng.shuffle(lines)
    lines.sort(key=lambda one: topic not in one.casefold())  # the first ones name the topic
    head, rest = lines[0], lines[1:]
    rng.shuffle(rest)
    lines = [head, *rest]
    if "use_word" in values:
        lines[0] = f"This makes one think of {topic} and the {values['use_word']}."
    if "start_with" in values:
        lines[0] = f"{str(values['start_with']).capitalize()} {lines[0][0].lower()}{lines[0][1:]}"
    draft = _Draft(lines[: _count_sentences(lines, values, rng)])
    if "end_with" in values:
        draft.sentences[-1] = f"{draft.sentences[-1].rstrip('.')} - {values['end_with']}."
    _put_together(draft, values, topic)
    return str(draft)


def _may_use(line: str, values: Mapping[str, Value]) -> bool:
    if "no_commas" in values and "," in line:
        return False
    if "no_letter" in values and str(values["no_letter"]) in line.casefold():
        return False
    return values.get("avoid_word") not in split_words(line)


def _count_sentences(lines: Sequence[str], values: Mapping[str, Value], rng: random.Random) -> int:
    """How many of the lines to use."""
    for kind in ("sentences", "list_items"):
        if kind in values:
            return int(str(values[kind]))
    most, least = values.get("words_at_most"), values.get("words_at_least")
    if most is not None:
        words = 0
        for place, line in enumerate(lines):
            words += len(split_words(line))
            if words > int(str(most)):
                return rng.randint(min(3, place), place)
    if least is not None:
        words = 0
        for place, line in enumerate(lines):
            words += len(split_words(line))
            if words > int(str(least)) + 8:
                return place + 1
    return rng.randint(3, min(14, len(lines)))


def _put_together(draft: _Draft, values: Mapping[str, Value], topic: str) -> None:
    if "list_items" in values:
        draft.mark, draft.between = "- ", "\n"
    if "paragraphs" in values:
        count, lines = int(str(values["paragraphs"])), draft.sentences
        cuts = [len(lines) * place // count for place in range(count + 1)]
        draft.sentences = [" ".join(lines[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
        draft.between = "\n\n"
    if "title" in values:
        draft.changes.append(lambda text: f"<<{topic.capitalize()}>>\n{text}")
    if "quoted" in values:
        draft.changes.append(lambda text: f'"{text}"')
    if "lowercase" in values:
        draft.changes.append(str.lower)
    if "capitals" in values:
        draft.changes.append(str.upper)
