"""The kinds of constraints: how each is worded, its values, its check, and what excludes it.

A check is exact and strict, and sees nothing but the value and the answer. Seven kinds are
trained: a model of 135M parameters keeps each of them now and then, so that there is something to
choose. The others are for evaluation only, so that it shows whether a model learned more than these
seven (arXiv 2507.02833 found that models fit the kinds that they see).
"""

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from selfreward_lite.data.checkable.text_parts import (
    count_items,
    split_paragraphs,
    split_sentences,
    split_words,
)
from selfreward_lite.data.records import Prompt
from selfreward_lite.system.errors import DataError

Value = int | str | None
TOPIC = "topic"  # what a request is about: an answer must name it, but earns nothing for that
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Constraint:
    """A constraint of a request: a kind of KINDS (or TOPIC), and its value, None if it has none."""

    kind: str
    value: Value = None


@dataclass(frozen=True)
class Kind:
    """A kind of constraint.

    `phrasings` have a hole {} for the value, and {s} for a plural's ending. `excludes` are the
    kinds that cannot stand beside it, or would be odd there.
    """

    phrasings: tuple[str, ...]
    values: tuple[Value, ...]
    keeps: Callable[[str, Value], bool]
    excludes: frozenset[str] = frozenset()


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


def _kind(
    phrasings: str, values: Sequence[Value], keeps: Callable[..., bool], excludes: str = ""
) -> Kind:
    return Kind(tuple(phrasings.split(" | ")), tuple(values), keeps, frozenset(_split(excludes)))


# -- checks --------------------------------------------------------------------------------------


def _uses_word(text: str, word: str) -> bool:
    """Whether a text uses a word; "the word winter" only names it."""
    named = re.compile(rf"\bwords?\W{{1,4}}{re.escape(word)}\b", re.IGNORECASE)
    return word in split_words(named.sub(" ", text))


def _ends_with(text: str, phrase: str) -> bool:
    wanted = split_words(phrase)
    return split_words(text)[-len(wanted) :] == wanted


def _is_in_case(text: str, changed: str) -> bool:
    return text == changed and any(map(str.isalpha, text))


def _is_quoted(text: str, _: Value) -> bool:
    inner = text.strip()
    return len(inner) > 2 and inner[0] in '"“' and inner[-1] in '"”'


# -- kinds ---------------------------------------------------------------------------------------

USE_WORDS = _split(
    "winter river window music garden friend morning letter summer mountain kitchen candle "
    "shadow bridge market silver village rain forest island mirror basket blanket lantern "
    "harbor ladder pocket thunder velvet whisper journey corner feather honey pebble ribbon "
    "curtain orange"
)
AVOID_WORDS = _split("also from with that for can are is or it")
ENDINGS = (
    "that is all for now",
    "see you next time",
    "and that is the whole story",
    "thank you for reading",
    "have a good day",
    "now it is your turn",
)
STARTS = _split("today sometimes usually perhaps often imagine")

TRAINED: dict[str, Kind] = {
    "sentences": _kind(
        "Write exactly {} sentence{s}. | Use exactly {} sentence{s}. | Your answer must have "
        "exactly {} sentence{s}.",
        (1, 2, 3, 4),
        lambda text, count: len(split_sentences(text)) == count,
        "list_items paragraphs title",
    ),
    "words_at_most": _kind(
        "Use at most {} words. | Write no more than {} words. | Keep it to {} words or fewer.",
        (20, 25, 30, 40, 50),
        lambda text, count: len(split_words(text)) <= count,
        "words_at_least",
    ),
    "words_at_least": _kind(
        "Use at least {} words. | Write {} words or more. | Your answer must have at least {} "
        "words.",
        (30, 40, 50, 60),
        lambda text, count: len(split_words(text)) >= count,
        "words_at_most sentences list_items",
    ),
    "use_word": _kind(
        'Use the word "{}". | Include the word "{}". | The word "{}" must be in your answer.',
        USE_WORDS,
        _uses_word,
    ),
    "avoid_word": _kind(
        'Do not use the word "{}". | Never use the word "{}". | Avoid the word "{}".',
        AVOID_WORDS,
        lambda text, word: word not in split_words(text),
    ),
    "no_commas": _kind(
        "Do not use any commas. | Use no commas. | Write it without commas.",
        (None,),
        lambda text, _: not any(sign in text for sign in ",，、"),
    ),
    "list_items": _kind(
        "Write it as a list of exactly {} items. | Give exactly {} bullet points. | Answer with a "
        "list that has exactly {} items.",
        (2, 3, 4, 5, 6),
        lambda text, count: count_items(text) == count,
        "sentences words_at_least paragraphs quoted",
    ),
}
UNSEEN: dict[str, Kind] = {
    "lowercase": _kind(
        "Write everything in lower case. | Use only lowercase letters. | Do not use any capital "
        "letters.",
        (None,),
        lambda text, _: _is_in_case(text, text.lower()),
        "capitals",
    ),
    "end_with": _kind(
        'End with the words "{}". | The last words must be "{}". | Finish with the words "{}".',
        ENDINGS,
        _ends_with,
        "quoted",
    ),
    "start_with": _kind(
        'Begin with the word "{}". | The first word must be "{}".',
        STARTS,
        lambda text, word: split_words(text)[:1] == [word],
        "title quoted",
    ),
    "no_letter": _kind(
        'Do not use the letter "{}". | Write it without the letter "{}".',
        tuple("bkvwj"),
        lambda text, letter: letter not in text.casefold(),
    ),
    "capitals": _kind(
        "Write everything in capital letters. | Use only capital letters.",
        (None,),
        lambda text, _: _is_in_case(text, text.upper()),
        "lowercase",
    ),
    "title": _kind(
        "Give it a title in double angle brackets, like <<title>>. | Put a title in double angle "
        "brackets above it, as in <<title>>.",
        (None,),
        lambda text, _: any(split_words(found) for found in re.findall(r"<<([^<>\n]+)>>", text)),
        "sentences start_with quoted",
    ),
    "paragraphs": _kind(
        "Write exactly {} paragraphs with a blank line between them. | Divide it into exactly {} "
        "paragraphs, separated by a blank line.",
        (2, 3),
        lambda text, count: len(split_paragraphs(text)) == count,
        "sentences list_items title",
    ),
    "quoted": _kind(
        "Put your whole answer in double quotation marks. | Begin and end your answer with a "
        "double quotation mark.",
        (None,),
        _is_quoted,
        "end_with list_items start_with title",
    ),
}
KINDS = TRAINED | UNSEEN


def keeps(constraint: Constraint, text: str) -> bool:
    """Return whether an answer keeps a constraint of KINDS."""
    return KINDS[constraint.kind].keeps(text, constraint.value)


def word_constraint(constraint: Constraint, rng: random.Random) -> str:
    """Return a constraint as a request words it, in one of its phrasings."""
    value = constraint.value
    named = _NUMBERS[value] if isinstance(value, int) and value < len(_NUMBERS) else value
    plural = "" if value == 1 else "s"
    return rng.choice(KINDS[constraint.kind].phrasings).format(named, s=plural)


# -- contradictions ------------------------------------------------------------------------------

_ROOM = 8  # words for a sentence or an item
_NEEDS_WORDS = (TOPIC, "use_word", "end_with", "start_with")


def contradict(first: Constraint, second: Constraint) -> bool:
    """Return whether two constraints do not go together: no answer keeps both, or one is idle.

    >>> contradict(Constraint("avoid_word", "is"), Constraint("end_with", "that is all for now"))
    True
    >>> contradict(Constraint("use_word", "river"), Constraint("no_letter", "k"))
    False
    """
    kinds = {first.kind, second.kind}
    if len(kinds) == 1 or any(kinds & _excludes(kind) for kind in kinds):
        return True
    both = (first, second), (second, first)
    return any(_forbids(*one) or _is_too_tight(*one) for one in both)


def _excludes(kind: str) -> frozenset[str]:
    return frozenset() if kind == TOPIC else KINDS[kind].excludes


def _forbids(rule: Constraint, other: Constraint) -> bool:
    """Whether `rule` forbids, or makes idle, the words that `other` needs."""
    if other.kind not in _NEEDS_WORDS:
        return False
    needed = split_words(str(other.value))
    if rule.kind == "no_letter":
        return str(rule.value) in str(other.value)
    if rule.kind == "use_word":
        return any(word.startswith(str(rule.value)) for word in needed)
    return rule.kind == "avoid_word" and rule.value in needed


def _is_too_tight(limit: Constraint, other: Constraint) -> bool:
    """Whether so many sentences or items have hardly room in so few words."""
    if limit.kind != "words_at_most" or other.kind not in ("sentences", "list_items"):
        return False
    return int(str(other.value)) * _ROOM > int(str(limit.value))


# -- as a record keeps them ----------------------------------------------------------------------


def encode_constraints(constraints: Iterable[Constraint]) -> str:
    """Return constraints as a prompt's record keeps them."""
    return json.dumps([[one.kind, one.value] for one in constraints])


def read_constraints(prompt: Prompt) -> tuple[Constraint, ...]:
    """Return the constraints of a prompt, none for most prompts.

    Raises DataError if they are of no known kind: another version wrote them.
    """
    if not prompt.constraints:
        return ()
    found = tuple(Constraint(*one) for one in json.loads(prompt.constraints))
    for one in found:
        if one.kind != TOPIC and one.kind not in KINDS:
            raise DataError(
                f"prompt {prompt.id} has a constraint of the kind {one.kind!r}, which this version "
                "does not know; use the version that made the run"
            )
    return found
