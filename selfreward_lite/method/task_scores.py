"""Scores of answers to task sets: instructions followed (IFEval, IFBench), right number (GSM8K).

IFEval: Zhou et al. 2023 (arXiv 2311.07911), strict and loose accuracy. IFBench: Pyatkin et al. 2025
(arXiv 2507.02833), the same two. GSM8K: Cobbe et al. 2021 (arXiv 2110.14168), its last number.
The checks of single instructions are those of the package if-verifiable, apart from the language.
What needs data that NLTK would download is left out: `find_left_out` names it.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib import import_module
from typing import Any

from selfreward_lite.data.task_sets import Instruction, Task

# Checks that need a tokenizer, tagger or word list of NLTK, which is not in its package.
NEEDS_DOWNLOAD = frozenset(
    {
        "length_constraints:number_sentences",
        "change_case:capital_word_frequency",
        "ratio:stop_words",
        "words:start_verb",
        "words:keywords_specific_position",
        "words:words_position",
        "format:title_case",
    }
)
# Its check counts words; the prompts, and IFBench's own check since 2026, count characters.
DISPUTED = frozenset({"repeat:repeat_span"})
# Of a sign that is no letter, its check counts a letter drawn at random.
LETTERS = "keywords:letter_frequency"
LANGUAGE = "language:response_language"
CAPITALS, LOWERCASE = "change_case:english_capital", "change_case:english_lowercase"
# What a check may raise on a text that its author did not think of.
FAULTS = (IndexError, ValueError, TypeError, csv.Error, RecursionError)

# Characters of an answer beyond which it follows nothing: some checks take quadratic time, and the
# prompts ask for 1,200 words at most.
LONGEST = 20_000

_NUMBER = re.compile(
    r"(?P<minus>(?<![\w).])[-\u2212])?\$?(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?"
    r"|\.[0-9]+)"
)


@dataclass(frozen=True)
class TaskScore:
    """How many parts of a task an answer did: instructions, or the one number of GSM8K.

    `loose` accepts also the answer without its first or last line or its asterisks. `faults` counts
    checks that ended with an error, which count as not followed.
    """

    parts: int
    strict: int
    loose: int
    faults: int = 0


def find_left_out(task: Task) -> str | None:
    """Return the first instruction of a task that cannot be checked here, None if all can."""
    known = _load_checks(task.set) if task.instructions else {}
    for one in task.instructions:
        if one.kind in NEEDS_DOWNLOAD | DISPUTED or one.kind not in known:
            return one.kind
        if one.kind == LETTERS and not re.fullmatch("[A-Za-z]", one.values.get("letter", "")):
            return f"{one.kind} of what is no letter"
    return None


def score_answer(task: Task, text: str) -> TaskScore:
    """Return the score of an answer. Raises LookupError for a task that `find_left_out` names."""
    if not task.instructions:
        right = int(read_last_number(text) == read_last_number(task.answer))
        return TaskScore(1, right, right)
    if left_out := find_left_out(task):
        raise LookupError(f"{left_out} cannot be checked")
    if len(text) > LONGEST:
        return TaskScore(len(task.instructions), 0, 0)
    variants, strict, loose, faults = list_variants(text), 0, 0, 0
    for one in task.instructions:
        follows = _Check(task, one)
        is_strict = follows(text)
        strict += is_strict
        loose += is_strict or any(map(follows, variants[1:]))
        faults += follows.has_failed
    return TaskScore(len(task.instructions), strict, loose, faults)


def list_variants(text: str) -> list[str]:
    """Return the eight forms of an answer of which one must pass in the loose accuracy.

    They are the answer, and the answer without its first line, last line, or both; each of them
    also without asterisks (arXiv 2311.07911, section 2.2).
    """
    lines = text.split("\n")
    kept = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*kept, *(one.replace("*", "") for one in kept)]


def read_last_number(text: str) -> Decimal | None:
    """Return the last number in a text, None without one; commas between thousands are allowed.

    >>> read_last_number("He has 3 boxes of 1,200, so 3,600.50 in all."), read_last_number("none")
    (Decimal('3600.50'), None)
    >>> read_last_number("It falls to -$12."), read_last_number("from 10-5")
    (Decimal('-12'), Decimal('5'))
    """
    matches = [*_NUMBER.finditer(text)]
    if not matches:
        return None
    found = matches[-1]
    number = Decimal(found["digits"].replace(",", ""))
    return -number if found["minus"] else number


class _Check:
    """Whether a text follows one instruction. `has_failed` says whether a check ended in an error.

    An empty text follows nothing.
    """

    def __init__(self, task: Task, instruction: Instruction) -> None:
        self.has_failed = False
        self._kind, self._values = instruction.kind, instruction.values
        self._check = _load_checks(task.set)[instruction.kind](instruction.kind)
        self._check.build_description(**instruction.values)

    def __call__(self, text: str) -> bool:
        if not text.strip():
            return False
        if self._kind == LANGUAGE:
            return _is_in(text, self._values["language"])
        if self._kind == CAPITALS:
            return text.isupper() and _is_in(text, "en")
        if self._kind == LOWERCASE:
            return text.islower() and _is_in(text, "en")
        try:
            return bool(self._check.check_following(text))
        except FAULTS:
            self.has_failed = True
            return False


def _is_in(text: str, language: str) -> bool:
    """Whether a text is in a language; also true, as published, where no language can be told.

    The check of the package logs the whole text there, and draws at random; this one does neither.
    """
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0
    try:
        return bool(detect(text) == language)
    except LangDetectException:
        return True


@cache
def _load_checks(name: str) -> Mapping[str, Any]:
    """The classes that check instructions, by kind. Loading them downloads nothing."""
    import nltk

    # Loading IFBench's would download data of NLTK that no check used here needs.
    download, nltk.download = nltk.download, lambda *_, **__: False
    try:
        found: Mapping[str, Any] = import_module(f"if_verifiable.{name}").INSTRUCTION_DICT
    finally:
        nltk.download = download
    return found
