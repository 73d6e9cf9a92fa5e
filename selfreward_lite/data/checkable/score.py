"""The exact score of an answer, 0 to 5: the share of the constraints kept, if it is an answer.

A model that is trained on the score finds every text that earns it without answering. What follows
earns nothing, whatever constraints it keeps:

- an answer cut by the length limit, or without words
- one that mostly repeats itself, or the request
- to a checkable request: a few words only, a text that does not name the topic, a heap of words
  (too few of the little words that every running text has), or one all in lower case or in capitals
  though nobody asked for that, which would make a constraint come true everywhere at no cost

Not caught: a stock text into which the topic is put (the gate on different texts sees it), false
statements, and poor style. An exact score of constraints cannot see these; a judge must.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from selfreward_lite.data.checkable.kinds import TOPIC, Constraint, keeps, read_constraints
from selfreward_lite.data.checkable.text_parts import split_words
from selfreward_lite.data.records import Prompt

BEST = 5.0
MIN_WORDS = 8  # different words of an answer to a checkable request
MIN_NEW = 0.7  # share of word triples that are different; running text has nearly 1
MAX_COPIED = 0.5  # share of word triples that stand in the request
MIN_LITTLE = 0.15  # share of little words; running text has a third to a half
CASES = ("lowercase", "capitals")
_LITTLE = """
a about all also an and are as at be because but by can do for from had has have he her his how i
if in into is it its just like many me more most my no not of often on one or other our out over
she so some than that the their them then there they this to up us very was we were what when
where which who will with you your
"""
LITTLE_WORDS = frozenset(_LITTLE.split())
_ENDINGS = ("ings", "ies", "ing", "ers", "er", "ed", "es", "s", "y", "e")


@dataclass(frozen=True)
class Points:
    """What an answer is worth: which constraints it keeps, in their order, and why it is none."""

    kinds: tuple[str, ...]  # of the constraints, as `kept`
    kept: tuple[bool, ...]
    fault: str | None

    @property
    def share(self) -> float:
        """The share of the constraints kept, 0 if the text is no answer; in [0, 1]."""
        return 0.0 if self.fault or not self.kept else sum(self.kept) / len(self.kept)

    @property
    def score(self) -> float:
        """The exact score, 0 to BEST."""
        return BEST * self.share


def score_answer(prompt: Prompt, text: str, finish: str) -> Points | None:
    """Return the points of an answer; None for a prompt without constraints.

    `finish` is how the answer ended, as in a Response. Raises DataError for an unknown kind.
    """
    constraints = read_constraints(prompt)
    if not constraints:
        return None
    checked = [one for one in constraints if one.kind != TOPIC]
    return Points(
        tuple(one.kind for one in checked),
        tuple(keeps(one, text) for one in checked),
        find_fault(prompt.text, constraints, text, finish),
    )


def find_fault(
    request: str, constraints: Sequence[Constraint], text: str, finish: str
) -> str | None:
    """Return why a text is no answer to a request, whatever it keeps; None if it is one."""
    words = split_words(text)
    if finish != "stop":
        return "cut"
    if not words:
        return "empty"
    triples = _triples(words)
    if len(set(triples)) < MIN_NEW * len(triples):
        return "repeats itself"
    asked = set(_triples(split_words(request)))
    if sum(one in asked for one in triples) > MAX_COPIED * len(triples):
        return "repeats the request"
    topic = next((str(one.value) for one in constraints if one.kind == TOPIC), None)
    if topic is None:
        return None
    return _find_topic_fault(topic, {one.kind for one in constraints}, text, words)


def _find_topic_fault(topic: str, kinds: set[str], text: str, words: list[str]) -> str | None:
    if len(set(words)) < MIN_WORDS:
        return "too few words"
    if not names_topic(words, topic):
        return "not about the topic"
    if sum(word in LITTLE_WORDS for word in words) < MIN_LITTLE * len(words):
        return "a heap of words"
    if text in (text.lower(), text.upper()) and not kinds.intersection(CASES):
        return "unasked case"
    return None


def names_topic(words: Sequence[str], topic: str) -> bool:
    """Return whether one of the words is a form of a word of the topic.

    >>> names_topic(["a", "runner"], "running"), names_topic(["my", "carpet"], "cars")
    (True, False)
    """
    wanted = {_stem(word) for word in split_words(topic) if word not in LITTLE_WORDS}
    return any(_stem(word) in wanted for word in words)


def _stem(word: str) -> str:
    """A word without its ending, if three letters are left: runner, running and runs are run."""
    ends = (end for end in _ENDINGS if word.endswith(end) and len(word) - len(end) >= 3)
    stem = word.removesuffix(next(ends, ""))
    return stem[:-1] if len(stem) > 3 and stem[-1] == stem[-2] else stem


def _triples(words: Sequence[str]) -> list[tuple[str, ...]]:
    """Every run of three words, in order; a shorter text is one run."""
    return [tuple(words[place : place + 3]) for place in range(max(1, len(words) - 2))]
