"""Checkable requests: every check by hand, requests that can be satisfied, and a strict score."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward_lite.data import ranked as ranked_data
from selfreward_lite.data.checkable import answers, ranked, requests, topics
from selfreward_lite.data.checkable.kinds import (
    KINDS,
    TOPIC,
    TRAINED,
    UNSEEN,
    Constraint,
    contradict,
    encode_constraints,
    keeps,
    read_constraints,
)
from selfreward_lite.data.checkable.score import BEST, Points, names_topic, score_answer
from selfreward_lite.data.records import Prompt
from selfreward_lite.system.errors import DataError

BY_HAND = {  # kind: value, answers that keep it, answers that break it
    ("sentences", 2): (
        [
            "I like tea. It is hot!",
            "Dr. Lee drinks tea. So do I.",
            "- I like tea\n- It is hot",
            "Hot?! Yes.",
        ],
        [
            "I like tea.",
            "I like tea. It is hot. Yes.",
            "A title\nI like tea. It is hot.",
            "It is hot.Yes.And no.",
        ],
    ),
    ("words_at_most", 4): (
        ["I like hot tea.", "Tea!", "1. I like hot tea", "I don't like well-kept"],
        ["I like very hot tea.", "I like - very - hot tea"],
    ),
    ("words_at_least", 4): (
        ["I like hot tea.", "I like very hot tea."],
        ["I like tea - - !", "1. I\n2. like\n3. tea", "tea-time don't count"],
    ),
    ("use_word", "river"): (
        ["A River is wet.", "river", 'The word "river" is short, and a river is long.'],
        [
            "Rivers are wet.",
            'I use the word "river".',
            "With the word river.",
            "Words: river",
            "driver",
        ],
    ),
    ("avoid_word", "is"): (
        ["This was his.", "It's wet."],
        ["It is wet.", "IS IT", 'I do not use "is".'],
    ),
    ("no_commas", None): (["One; two. Three"], ["One, two", "1,000", "One，two"]),
    ("lowercase", None): (["i like tea. 1 < 2!"], ["I like tea.", "like iT", "123"]),
    ("end_with", "have a good day"): (
        ["Bye. Have a good day.", 'Bye and "have a good day!"', "HAVE A GOOD DAY"],
        ["Have a good day. Bye.", "Have a good, long day", "have a good days", "good day"],
    ),
    ("list_items", 2): (
        ["- tea\n- milk", "Here:\n1. Tea\n2. Milk\nBye", "  * tea\n\n  * milk"],
        ["- tea", "- tea\n- milk\n- jam", "tea - milk - jam", "-tea\n-milk", "- tea\n- "],
    ),
    ("start_with", "today"): (["Today is wet.", '"today"'], ["It is today.", "Todays", ""]),
    ("no_letter", "k"): (["Tea is hot."], ["I like tea.", "Kettle"]),
    ("capitals", None): (["I LIKE TEA. 1!"], ["I like tea", "LIKe", "123"]),
    ("title", None): (
        ["<<Tea>>\nIt is hot.", "It. <<Hot tea>>"],
        ["<Tea> hot", "<<>> tea", "<< >>", "<<Tea\n>>"],
    ),
    ("paragraphs", 2): (
        ["Tea.\n\nMilk.", "Tea.\n \nMilk\nand more."],
        ["Tea.\nMilk.", "Tea.", "a\n\nb\n\nc"],
    ),
    ("quoted", None): (['"Tea is hot."', " “Tea” "], ['"Tea" is hot.', "'Tea'", '"', "Tea"]),
}


def make_prompt(*constraints: Constraint, text: str = "Write about tea.") -> Prompt:
    return Prompt.make("run", 1, "imported", 0, text, encode_constraints(constraints))


def list_rules(request: requests.Request) -> list[Constraint]:
    return [one for one in request.constraints if one.kind != TOPIC]


@pytest.mark.parametrize(("kind", "value"), BY_HAND)
def test_every_check_by_hand(kind, value):
    kept, broken = BY_HAND[kind, value]
    for text in kept:
        assert keeps(Constraint(kind, value), text), text
    for text in broken:
        assert not keeps(Constraint(kind, value), text), text


def test_every_kind_is_checked_by_hand_and_is_trained_or_unseen():
    assert {kind for kind, _ in BY_HAND} == set(KINDS)
    assert len(TRAINED) >= 7
    assert len(UNSEEN) >= 4
    assert not set(TRAINED) & set(UNSEEN)


# -- requests ------------------------------------------------------------------------------------

parts = st.sampled_from(["training", "ranked", "held_out"])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), parts, st.booleans())
def test_every_request_can_be_satisfied_and_its_parts_go_together(seed, part, unseen):
    for request in requests.draw_requests(seed, part, 4, unseen=unseen):
        rules = list_rules(request)
        assert 1 <= len(rules) == len({one.kind for one in rules}) <= 3
        assert {one.kind for one in rules} <= set(UNSEEN if unseen else TRAINED)
        assert not any(
            contradict(first, second)
            for first in request.constraints
            for second in request.constraints
            if first is not second
        )
        answer = answers.write_answer(request, random.Random(seed), rules)
        assert answer is not None, request
        prompt = make_prompt(*request.constraints, text=request.text)
        assert score_answer(prompt, answer, "stop").score == BEST, (request, answer)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), parts, st.booleans())
def test_a_seed_always_draws_the_same_requests(seed, part, unseen):
    drawn = requests.draw_requests(seed, part, 5, unseen=unseen)
    assert drawn == requests.draw_requests(seed, part, 5, unseen=unseen)
    assert drawn != requests.draw_requests(seed + 1, part, 5, unseen=unseen)
    assert len({one.text for one in drawn}) == 5


def test_more_requests_than_topics_are_different_requests():
    drawn = requests.draw_requests(0, "training", 700)
    assert len({one.text for one in drawn}) == 700
    kinds = Counter(rule.kind for one in drawn for rule in list_rules(one))
    assert set(kinds) == set(TRAINED)
    assert min(kinds.values()) > 60


def test_parts_share_no_topic_and_unseen_kinds_stay_unseen():
    assert len(set(topics.TOPICS)) == len(topics.TOPICS) > 300
    drawn = {
        "training": requests.draw_requests(0, "training", 300),
        "ranked": requests.draw_requests(0, "ranked", 100),
        "held_out": requests.draw_held_out_requests(0, 100),
    }
    about = {part: {one.constraints[0].value for one in some} for part, some in drawn.items()}
    assert not about["training"] & about["held_out"]
    assert not about["training"] & about["ranked"]
    assert not about["held_out"] & about["ranked"]
    asks = requests.asks_unseen_kind
    assert not any(asks(one.constraints) for one in drawn["training"] + drawn["ranked"])
    assert [asks(one.constraints) for one in drawn["held_out"]] == [False] * 50 + [True] * 50


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("words_at_most", 30), ("words_at_least", 80)),
        (("words_at_most", 30), ("list_items", 5)),
        (("sentences", 2), ("sentences", 3)),
        (("lowercase", None), ("capitals", None)),
        (("use_word", "river"), ("no_letter", "v")),
        ((TOPIC, "kites"), ("no_letter", "k")),
        (("end_with", "that is all for now"), ("avoid_word", "for")),
        ((TOPIC, "summer camp"), ("use_word", "summer")),
        (("end_with", "have a good day"), ("quoted", None)),
    ],
)
def test_contradictions_are_found_in_both_orders(first, second):
    assert contradict(Constraint(*first), Constraint(*second))
    assert contradict(Constraint(*second), Constraint(*first))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_a_users_prompt_gets_constraints_that_are_read_from_its_record(seed, count):
    prompt = Prompt.make("run", 1, "imported", 0, "Why is the sky blue?")
    asked = requests.add_constraints(prompt, seed, count)
    assert asked == requests.add_constraints(prompt, seed, count)
    assert asked.text.startswith("Why is the sky blue? ")
    assert asked.id == prompt.id
    found = read_constraints(asked)
    assert len(found) == count
    assert all(one.kind in TRAINED for one in found)
    values = [str(one.value) for one in found if isinstance(one.value, str)]
    assert all(value in asked.text for value in values)


def test_four_constraints_are_refused():
    with pytest.raises(ValueError, match="3 at most"):
        requests.add_constraints(make_prompt(), 0, 4)


# -- the score -----------------------------------------------------------------------------------

TEA = Constraint(TOPIC, "green tea")
SHORT, NO_COMMAS, RIVER = (
    Constraint("words_at_most", 30),
    Constraint("no_commas"),
    Constraint("use_word", "river"),
)
REQUEST = 'Write about green tea. Use at most 30 words. Use no commas. Use the word "river".'
GOOD = "We drank tea by the river and it was warm. My sister had two cups of it."


def score(text: str, *constraints: Constraint, finish: str = "stop") -> Points:
    asked = constraints or (TEA, SHORT, NO_COMMAS, RIVER)
    return score_answer(make_prompt(*asked, text=REQUEST), text, finish)


def test_the_score_is_five_times_the_share_kept():
    assert score(GOOD).score == 5
    assert score(GOOD.replace(" and", ", and")).score == pytest.approx(10 / 3)
    assert score(GOOD.replace("river", "road")).kept == (True, True, False)
    assert score(GOOD, TEA, NO_COMMAS).score == 5
    assert (
        score("No, never, and not with tea by a wall or on the floor.", TEA, NO_COMMAS).score == 0
    )


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("empty", ""),
        ("empty", " ... \n- \n"),
        ("repeats itself", "river tea " * 12),
        ("repeats itself", f"{GOOD} {GOOD}"),
        ("repeats the request", REQUEST),
        ("repeats the request", f"Sure. {REQUEST} River."),
        ("too few words", "Tea by the river."),
        ("not about the topic", GOOD.replace("tea", "milk")),
        ("a heap of words", "Tea river stone lamp cup water leaf green steam window chair spoon."),
        ("unasked case", GOOD.lower()),
        ("unasked case", GOOD.upper()),
    ],
)
def test_texts_that_would_earn_a_score_without_an_answer_earn_none(fault, text):
    points = score(text)
    assert (points.fault, points.score) == (fault, 0)


@pytest.mark.parametrize(
    ("topic", "word", "named"),
    [
        ("swimming", "swimmers", True),
        ("bees", "bee", True),
        ("fairy tales", "tale", True),
        ("the moon", "moonlight", False),
        ("the moon", "the", False),
        ("cars", "carpet", False),
    ],
)
def test_a_topic_is_named_by_the_forms_of_its_words(topic, word, named):
    assert names_topic([word], topic) is named


def test_a_cut_answer_earns_nothing():
    assert score(GOOD, finish="length").score == 0


def test_a_case_that_was_asked_for_is_no_fault():
    assert score(GOOD.lower(), TEA, Constraint("lowercase")).score == 5
    assert score(GOOD.upper(), TEA, Constraint("capitals")).score == 5


def test_a_users_prompt_allows_short_answers_but_no_empty_or_cut_ones():
    prompt = make_prompt(NO_COMMAS, text="What is the capital of France? Use no commas.")
    assert score_answer(prompt, "Paris", "stop").share == 1
    assert score_answer(prompt, "", "stop").share == 0
    assert score_answer(prompt, "Paris", "length").share == 0
    assert score_answer(prompt, prompt.text, "stop").share == 0


def test_a_prompt_without_constraints_has_no_score():
    assert score_answer(Prompt.make("run", 1, "imported", 0, "Why?"), "Because.", "stop") is None


def test_a_kind_of_another_version_is_refused():
    with pytest.raises(DataError, match="'rhymes'"):
        score_answer(make_prompt(Constraint("rhymes")), "A cat sat.", "stop")


@given(st.text(max_size=300))
def test_no_text_breaks_a_check(text):
    for kind, value in BY_HAND:
        assert keeps(Constraint(kind, value), text) in (True, False)
    assert 0 <= score(text).score <= BEST


# -- ranked rows ---------------------------------------------------------------------------------


def test_ranked_rows_are_ordered_by_the_exact_score():
    rows = list(ranked.generate_ranked_rows(40))
    assert rows == list(ranked.generate_ranked_rows(40)), "the data set is the same for every run"
    firsts = [row for row in rows if row["parent_id"] is None]
    assert len(firsts) == 40
    for first in firsts:
        prompt = Prompt.make("run", 0, "ranked", 0, first["text"], first["constraints"])
        below = [row for row in rows if row["parent_id"] == first["message_id"]]
        below.sort(key=lambda row: row["rank"])
        scores = [score_answer(prompt, row["text"], "stop").share for row in below]
        assert scores == sorted(scores, reverse=True)
        assert len(set(scores)) == len(scores) == ranked.ANSWERS


def test_ranked_rows_are_read_as_ranked_data():
    found, outcome = ranked_data.build_ranked_prompts(ranked.generate_ranked_rows(20), "run")
    assert len(found) == 20
    assert not outcome.drops
