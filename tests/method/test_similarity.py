"""Near-duplicates: ROUGE-L by its definition, word triples, large collections."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_lite.method import similarity

WORDS = st.lists(st.sampled_from("abcde"), max_size=12)


@given(WORDS, WORDS)
def test_rouge_l_matches_the_definition(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = (
                table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
            )
    expected = 2 * table[-1, -1] / (len(a) + len(b)) if a and b else 0.0
    assert similarity.rouge_l(a, b) == pytest.approx(expected)


SENTENCES = (
    "Write a short story about a lighthouse keeper who finds a letter.",
    "The letter should be from his past and change what he believes.",
    "End with the keeper deciding whether to leave the island or stay.",
)


def test_near_duplicates_find_sentences_in_another_order():
    first, turned = " ".join(SENTENCES), " ".join(reversed(SENTENCES))
    words = [similarity._split_words(text) for text in (first, turned)]
    assert similarity.rouge_l(*words) < 0.7
    assert similarity.jaccard(*map(similarity.triples, words)) >= 0.7
    assert similarity.NearDuplicates([first], 0.7, 0.7).contains_similar(turned)
    assert not similarity.NearDuplicates([first], 0.7, 1.0).contains_similar(turned)


def test_near_duplicates_in_a_large_collection():
    """MinHash only proposes candidates; of 200 near copies it may miss hardly any."""
    rng = random.Random(0)
    vocabulary = [f"word{number}" for number in range(400)]
    texts = [" ".join(rng.choices(vocabulary, k=40)) for _ in range(400)]
    collection = similarity.NearDuplicates(texts, 1.0, 0.7)
    copies = []
    for text in texts[:200]:
        words = text.split()
        words[rng.randrange(40)] = (
            "another"  # three of 38 triples change: an overlap of at least 35 of 41
        )
        copies.append(" ".join(words))
    found = sum(collection.contains_similar(copy) for copy in copies)
    assert found >= 198
    fresh = [" ".join(rng.choices(vocabulary, k=40)) for _ in range(200)]
    assert not any(collection.contains_similar(text) for text in fresh)


@pytest.mark.parametrize("text", ["", "two words", "one"])
def test_near_duplicates_compare_texts_of_one_or_two_words(text):
    collection = similarity.NearDuplicates([text], 0.7, 0.7)
    assert collection.contains_similar(text)
    assert not collection.contains_similar("something else entirely, and longer")
