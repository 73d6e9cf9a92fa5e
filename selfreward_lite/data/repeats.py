"""Rows of one prompt that differ in a field that is not used: is it a part of the task?

Sets with several answers to a prompt look like that, and so do tasks whose point is in a field
("Rate the response", `response`). The names of the fields and the words of the prompts tell.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from selfreward_lite.data import fields
from selfreward_lite.data.fillers import name_fields
from selfreward_lite.data.other_fields import is_number
from selfreward_lite.data.rows import DataRow

# Labels that may be all that tells tasks apart, if a file has only one prompt.
_TELLING = (
    *("url", "urls", "uri", "link", "name", "category", "categories", "domain", "tag", "tags"),
    *("topics", "level", "language", "languages", "country", "class", "author"),
)
_FEW = 3  # rows; with fewer, one prompt says nothing
_POINTS = r"(?:the|this|that|these|those|given|following|above|my|its|their)"


class Repeats:
    """The rows of a file that have the prompt of another row, and the fields that they differ in.

    `lost` belong to the task; `answers` are names of answers, which mostly are only that.
    """

    def __init__(
        self, prompts: Sequence[str], rows: Sequence[DataRow], unread: Sequence[str]
    ) -> None:
        """Find the fields. `rows` are in the order of the prompts.

        Columns `unread` are judged as if their values differed.
        """
        groups: dict[str, list[DataRow]] = defaultdict(list)
        for prompt, row in zip(prompts, rows, strict=True):
            groups[prompt].append(row)
        again = {prompt: held for prompt, held in groups.items() if len(held) > 1}
        self.count = sum(map(len, again.values()))
        self.lost: list[str] = []
        self.answers: list[str] = []
        if 2 * self.count <= len(prompts):
            return
        self._only_one = len(groups) == 1 and len(prompts) >= _FEW
        self._groups = {prompt: [*map(name_fields, held)] for prompt, held in again.items()}
        held = dict.fromkeys(name for rows in self._groups.values() for row in rows for name in row)
        for name in (*filter(self._differ, held), *map(fields.normalise_name, unread)):
            self._judge(name)

    def _judge(self, name: str) -> None:
        """Put a field that differs where it belongs, if anywhere."""
        words = re.findall(r"[^\W\d_]+", name)
        if name in fields.USED or name in fields.SOURCES or not words:
            return
        if fields.name_kind(name) == "unknown":
            if not self._hold_numbers(name) or self._are_named(rf"\b{re.escape(name)}\b"):
                self.lost.append(name)
        elif fields.is_answer(name):
            pointed = rf"\b{_POINTS} (?:\w+ )?(?:{'|'.join(map(re.escape, words))})s?\b"
            (self.lost if self._are_named(pointed) else self.answers).append(name)
        elif self._only_one and words[-1] in _TELLING and "model" not in words:
            self.lost.append(name)

    def _values(self, name: str) -> Iterator[list[Any]]:
        for rows in self._groups.values():
            yield [row[name] for row in rows if name in row]

    def _differ(self, name: str) -> bool:
        """Whether the values differ among the rows of most prompts that are there again."""
        differ = [len({*map(repr, values)}) > 1 for values in self._values(name)]
        return 2 * sum(differ) > len(differ)

    def _hold_numbers(self, name: str) -> bool:
        return all(is_number(one) for values in self._values(name) for one in values)

    def _are_named(self, pattern: str) -> bool:
        """Whether the prompts of most of these rows speak of a field."""
        way = re.compile(pattern, re.IGNORECASE)
        named = sum(len(rows) for prompt, rows in self._groups.items() if way.search(prompt))
        return 2 * named > self.count
