"""Near-duplicates among prompts.

Two texts are similar if they share their words in order, or runs of three words in any order.
ROUGE-L, the filter of Self-Instruct (arXiv 2212.10560, section 2.2), misses texts whose parts
changed order; the overlap of word triples does not. MinHash (Broder 1997) finds in a large
collection the few texts whose overlap is worth computing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rapidfuzz.distance import LCSseq

if TYPE_CHECKING:
    from datasketch import MinHash

Triple = tuple[str, ...]  # three words in a row
_WORD = re.compile(r"\w+")
# The share of equal hashes estimates the overlap, with a standard error of at most 0.04.
HASHES = 128


class NearDuplicates:
    """A collection that finds near-duplicates of a text.

    Two texts are similar above `max_similarity` (ROUGE-L F1), or from `max_overlap` of word triples
    on. At 1, a limit lets everything pass but the very same words.
    """

    def __init__(self, texts: Iterable[str], max_similarity: float, max_overlap: float) -> None:
        from datasketch import MinHashLSH

        self._max_similarity, self._max_overlap = max_similarity, max_overlap
        self._words: list[list[str]] = []
        # These weights make it propose too much rather than miss one: overlap of what it proposes
        # is computed exactly.
        self._index = (
            MinHashLSH(threshold=max_overlap, num_perm=HASHES, weights=(0.1, 0.9))
            if max_overlap < 1
            else None
        )
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Add a text to the collection."""
        words = _split_words(text)
        if self._index is not None and (found := triples(words)):
            self._index.insert(len(self._words), _sketch(found))
        self._words.append(words)

    def contains_similar(self, text: str) -> bool:
        """Whether the collection has a near-duplicate of a text."""
        words = _split_words(text)
        found = triples(words)
        near = self._index.query(_sketch(found)) if self._index is not None and found else []
        return any(
            jaccard(found, triples(self._words[place])) >= self._max_overlap for place in near
        ) or any(self._is_similar(words, other) for other in self._words)

    def _is_similar(self, words: list[str], other: list[str]) -> bool:
        limit = self._max_similarity
        # The second term is the most that two texts of these lengths can reach; it spares most
        # comparisons.
        return words == other or (
            2 * min(len(words), len(other)) > limit * (len(words) + len(other))
            and rouge_l(words, other) > limit
        )


def triples(words: Sequence[str]) -> set[Triple]:
    """Return every run of three words; none if there are fewer."""
    return {tuple(words[place : place + 3]) for place in range(len(words) - 2)}


def jaccard(a: set[Triple], b: set[Triple]) -> float:
    """Return the Jaccard index of two sets: their intersection over their union.

    >>> jaccard({("a",), ("b",)}, {("b",), ("c",)})
    0.3333333333333333
    """
    return len(a & b) / len(a | b) if a or b else 0.0


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """Return ROUGE-L F1: twice the longest common subsequence over both lengths, in words.

    >>> round(rouge_l("name a river in france".split(), "name a city in france".split()), 3)
    0.8
    """
    return 2 * LCSseq.similarity(a, b) / (len(a) + len(b)) if a or b else 0.0


def _sketch(found: Iterable[Triple]) -> MinHash:
    from datasketch import MinHash

    sketch = MinHash(num_perm=HASHES)
    sketch.update_batch([" ".join(triple).encode() for triple in found])
    return sketch


def _split_words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
