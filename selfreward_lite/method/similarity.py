"""Are two prompts alike? By the words they share in order, and by the runs of three words they share in any order.

Knows: ROUGE-L, as Self-Instruct filters (arXiv 2212.10560, section 2.2), which a change of order escapes; the overlap of word
triples, which it does not. MinHash (Broder 1997) finds in a large collection the few texts whose overlap is worth counting.
Does not know: prompts' origins, limits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasketch import MinHash

_WORD = re.compile(r"\w+")
HASHES = 128  # the share of equal ones is the overlap, with a standard error of 0.04 at most


class NearDuplicates:
    """Texts to compare others with: alike is above `max_similarity` (ROUGE-L F1), or from `max_overlap` of word triples on.

    At 1, a limit lets everything pass but the very same words.
    """

    def __init__(self, texts: Iterable[str], max_similarity: float, max_overlap: float) -> None:
        from datasketch import MinHashLSH

        self._max_similarity, self._max_overlap = max_similarity, max_overlap
        self._words: list[list[str]] = []
        # It rather proposes too much than misses: what it proposes is counted exactly.
        self._index = (
            MinHashLSH(threshold=max_overlap, num_perm=HASHES, weights=(0.1, 0.9))
            if max_overlap < 1
            else None
        )
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Take a text in."""
        words = _words(text)
        if self._index is not None and (found := triples(words)):
            self._index.insert(len(self._words), _sketch(found))
        self._words.append(words)

    def contains_similar(self, text: str) -> bool:
        """Whether a text is like one of the collection."""
        words = _words(text)
        return self._overlaps(words) or any(self._similar(words, other) for other in self._words)

    def _overlaps(self, words: list[str]) -> bool:
        found = triples(words)
        if self._index is None or not found:
            return False
        near = self._index.query(_sketch(found))
        return any(
            jaccard(found, triples(self._words[place])) >= self._max_overlap for place in near
        )

    def _similar(self, words: list[str], other: list[str]) -> bool:
        limit = self._max_similarity
        if words == other:
            return True
        # what even the shorter text as a whole could reach, before anything is compared
        return (
            2 * min(len(words), len(other)) > limit * (len(words) + len(other))
            and rouge_l(words, other) > limit
        )


def triples(words: Sequence[str]) -> set[tuple[str, ...]]:
    """Return every run of three words; none where there are fewer."""
    return {tuple(words[place : place + 3]) for place in range(len(words) - 2)}


def jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    """Return the Jaccard index of two sets: what they share of what either has.

    >>> jaccard({("a",), ("b",)}, {("b",), ("c",)})
    0.3333333333333333
    """
    return len(a & b) / len(a | b) if a or b else 0.0


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """Return ROUGE-L F1: the longest common subsequence's harmonic share of both texts' words.

    >>> round(rouge_l("name a river in france".split(), "name a city in france".split()), 3)
    0.8
    """
    if not a or not b:
        return 0.0
    return 2 * _longest_common_subsequence(a, b) / (len(a) + len(b))


def _longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Bit-parallel: one big-integer row (Hyyrö 2004), so that comparing with thousands of prompts stays cheap."""
    places: dict[str, int] = {}
    for position, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << position
    row = full = (1 << len(a)) - 1
    for word in b:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(a) - row.bit_count()


def _sketch(found: Iterable[tuple[str, ...]]) -> MinHash:
    from datasketch import MinHash

    sketch = MinHash(num_perm=HASHES)
    sketch.update_batch([" ".join(triple).encode() for triple in found])
    return sketch


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
