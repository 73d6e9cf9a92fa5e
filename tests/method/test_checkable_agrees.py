"""The checks of constraints agree with those of if-verifiable, where both have the same kind."""

import random
from collections import Counter

import pytest

from selfreward_lite.data.checkable.answers import write_answer
from selfreward_lite.data.checkable.kinds import TOPIC, Constraint, keeps
from selfreward_lite.data.checkable.requests import draw_requests
from selfreward_lite.data.task_sets import Instruction, Task
from selfreward_lite.method.task_scores import score_answer

SAME = {  # kind: IFEval's name for it, and its values
    "no_commas": lambda _: ("punctuation:no_comma", {}),
    "words_at_most": lambda most: (
        "length_constraints:number_words",
        {"relation": "less than", "num_words": most + 1},
    ),
    "words_at_least": lambda least: (
        "length_constraints:number_words",
        {"relation": "at least", "num_words": least},
    ),
    "list_items": lambda count: (
        "detectable_format:number_bullet_lists",
        {"num_bullets": count},
    ),
    "use_word": lambda word: ("keywords:existence", {"keywords": [word]}),
    "avoid_word": lambda word: ("keywords:forbidden_words", {"forbidden_words": [word]}),
    "no_letter": lambda letter: (
        "keywords:letter_frequency",
        {"letter": letter, "let_relation": "less than", "let_frequency": 1},
    ),
    "lowercase": lambda _: ("change_case:english_lowercase", {}),
    "capitals": lambda _: ("change_case:english_capital", {}),
    "title": lambda _: ("detectable_format:title", {}),
    "quoted": lambda _: ("startend:quotation", {}),
    "end_with": lambda phrase: ("startend:end_checker", {"end_phrase": phrase}),
}


def is_followed(one: Constraint, text: str) -> bool:
    """What if-verifiable says; a final full stop is no part of the words that it looks for."""
    name, values = SAME[one.kind](one.value)
    task = Task("ifeval", "a", "Say it.", (Instruction(name, values),))
    return score_answer(task, text.rstrip(".") if one.kind == "end_with" else text).strict == 1


@pytest.mark.parametrize("unseen", [False, True], ids=["trained", "unseen"])
def test_written_answers_are_scored_alike(unseen):
    """Each answer keeps some of its request's constraints and breaks the others."""
    rng, seen = random.Random(5), Counter()
    for request in draw_requests(5, "ranked", 120, unseen=unseen):
        rules = [one for one in request.constraints if one.kind != TOPIC]
        text = write_answer(request, rng, rng.sample(rules, rng.randint(0, len(rules))))
        for one in rules:
            if text is not None and one.kind in SAME:
                assert keeps(one, text) == is_followed(one, text), (one, text)
                seen[one.kind, keeps(one, text)] += 1
    kinds = {kind for kind, _ in seen}
    assert len(kinds) == 6
    assert all(seen[kind, kept] >= 5 for kind in kinds for kept in (True, False)), seen
