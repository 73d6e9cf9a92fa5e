"""Scores of task sets: by hand, against if-verifiable's own sums, and on hostile texts."""

import re
import socket
import sys

import nltk
import pytest
from hypothesis import given
from hypothesis import strategies as st
from task_rows import write_rows

from selfreward_lite.data.task_sets import Instruction, Task, parse_tasks
from selfreward_lite.method import task_scores
from selfreward_lite.method.task_scores import (
    NEEDS_DOWNLOAD,
    TaskScore,
    find_left_out,
    list_variants,
    read_last_number,
    score_answer,
)

TEXT = 'Sure, here it is:\n*Rain* falls, and 3 birds sing.\nIt was "wet" (very [so])! Was it? Yes.'
ANSWERS = [
    TEXT,
    "hello there my old friend, bye.",
    "HELLO",
    "one\ntwo\nthree",
    "1, 2 and 3",
    "Here you are:\nrain falls softly on old roofs",
    "*rain falls softly on old roofs*",
    "12345",
    " ",
    "",
]


def make_task(kind: str, name="ifeval", **values) -> Task:
    return Task(name, "0", "prompt", (Instruction(kind, values),))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a scorer asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(nltk, "download", refuse)
    monkeypatch.setattr(nltk.data, "path", [])


@pytest.mark.parametrize("name", ["ifeval", "ifbench"])
def test_loading_the_checks_downloads_nothing(name, no_network, monkeypatch):
    for module in [one for one in sys.modules if one.startswith("if_verifiable")]:
        monkeypatch.delitem(sys.modules, module)
    refuse = nltk.download
    assert len(task_scores._load_checks.__wrapped__(name)) == {"ifeval": 25, "ifbench": 58}[name]
    assert nltk.download is refuse, "what others call is as before"


def test_strict_and_loose_by_hand(tmp_path):
    rain, _, _ = parse_tasks("ifeval", write_rows(tmp_path, "ifeval"))  # no comma; 5 words or more
    assert score_answer(rain, "rain falls on the old roofs") == TaskScore(2, 2, 2)
    assert score_answer(rain, "rain falls, softly") == TaskScore(2, 0, 0)
    # only without its first line, which has a comma
    assert score_answer(rain, "Sure, here:\nrain falls on the old roofs") == TaskScore(2, 1, 2)
    assert score_answer(rain, " \n ") == TaskScore(2, 0, 0)
    options = make_task("format:options", "ifbench", options="yes/no")
    assert score_answer(options, "Yes.") == TaskScore(1, 1, 1)
    assert score_answer(options, "**Yes**\nIt is.") == TaskScore(1, 0, 1)


def test_the_eight_forms_of_an_answer():
    assert list_variants("a*\nb\nc") == [
        "a*\nb\nc",
        "b\nc",
        "a*\nb",
        "b",
        "a\nb\nc",
        "b\nc",
        "a\nb",
        "b",
    ]


@pytest.mark.parametrize("name", ["ifeval", "ifbench"])
def test_sums_agree_with_those_of_if_verifiable(name, tmp_path):
    from if_verifiable.common import evaluate_instructions

    checks = task_scores._load_checks(name)
    asked = [one for one in parse_tasks(name, write_rows(tmp_path, name)) if not find_left_out(one)]
    assert len(asked) == 2
    kinds = sorted(set(checks) - NEEDS_DOWNLOAD - task_scores.DISPUTED)
    asked += [
        one
        for kind in kinds
        if not find_left_out(one := make_task(kind, name, **EXAMPLE.get(kind, {})))
    ]
    compared = 0
    for task in asked:
        ids = [one.kind for one in task.instructions]
        for text in ANSWERS:
            mine = score_answer(task, text)
            try:
                found, totals = evaluate_instructions(
                    text, ids, [dict(one.values) for one in task.instructions], task.prompt, checks
                )
            except task_scores.FAULTS:
                assert mine.faults, (ids, text)
                continue
            if found:  # none for an empty text
                compared += 1
                assert mine.strict == sum(one.strict_pass for one in found), (ids, text)
                assert mine.loose == sum(one.loose_pass for one in found), (ids, text)
            assert (mine.strict == mine.parts) == bool(totals.binary_strict)
            assert (mine.loose == mine.parts) == bool(totals.binary_loose)
    assert compared > 150


def test_what_needs_a_download_is_exactly_what_is_left_out(no_network):
    text, needs = " ".join([TEXT] * 20), set()
    for name in ("ifeval", "ifbench"):
        for kind, check in task_scores._load_checks(name).items():
            made = check(kind)
            made.build_description(**EXAMPLE.get(kind, {}))
            try:
                made.check_following(text)
            except LookupError as error:
                assert "nltk" in str(error).casefold(), kind
                needs.add(kind)
    assert needs == NEEDS_DOWNLOAD


def test_a_check_that_cannot_be_made_here_is_named(tmp_path):
    tasks = [*parse_tasks("ifeval", write_rows(tmp_path, "ifeval"))]
    tasks += parse_tasks("ifbench", write_rows(tmp_path, "ifbench"))
    assert [find_left_out(one) for one in tasks] == [
        None,
        None,
        "length_constraints:number_sentences",
        None,
        None,
        "words:start_verb",
    ]
    assert find_left_out(make_task("made:up")) == "made:up"
    sign = make_task(
        "keywords:letter_frequency", letter="#", let_frequency=4, let_relation="at least"
    )
    assert find_left_out(sign) == "keywords:letter_frequency of what is no letter"
    with pytest.raises(LookupError, match="made:up"):
        score_answer(make_task("made:up"), "text")


def test_languages_are_told_offline_and_always_the_same(no_network, caplog):
    german = make_task("language:response_language", language="de")
    assert score_answer(german, "Der Regen fällt leise auf die alten Dächer.").strict == 1
    assert score_answer(german, "The rain falls softly on the old roofs.").strict == 0
    low = make_task("change_case:english_lowercase")
    assert score_answer(low, "the rain falls softly on the old roofs").strict == 1
    assert score_answer(low, "The rain falls softly on the old roofs").strict == 0
    assert score_answer(low, "der regen fällt leise auf die alten dächer").strict == 0
    assert score_answer(german, "12345 \x1b[2").strict == 1, "as published: no language to tell"
    assert not caplog.records, "no text of a model in a log"
    unclear = "no la casa il sole"
    assert len({score_answer(german, unclear) for _ in range(20)}) == 1


HOSTILE = [
    "[" * 3000,
    "9" * 100_000,
    "*" * 20_000,
    "<prd>" * 3000,
    '"\n"\t"\x00',
    ",,,\n" * 2000,
    "Question 1\n" * 500,
    '"',
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:6])
def test_a_hostile_text_ends_no_scoring(text):
    for name in ("ifeval", "ifbench"):
        for kind in sorted(set(task_scores._load_checks(name)) - NEEDS_DOWNLOAD):
            task = make_task(kind, name, **EXAMPLE.get(kind, {}))
            if not find_left_out(task):
                score = score_answer(task, text)
                assert score.strict <= score.loose <= score.parts == 1


def test_a_check_that_fails_counts_as_not_followed():
    nested = make_task("detectable_format:json_format")
    assert score_answer(nested, "[" * 20_000) == TaskScore(1, 0, 0, faults=1)
    long = make_task("punctuation:no_comma")
    assert score_answer(long, "a" * 20_000).strict == 1
    assert score_answer(long, "a" * 20_001) == TaskScore(1, 0, 0)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so it is 18.", "18"),
        ("2 + 3 = 5\nThe answer is $1,234.50.", "1234.50"),
        ("#### 7", "7"),
        ("**42**", "42"),
        ("a loss of -3", "-3"),
        ("a loss of −3", "-3"),
        ("a loss of -$3", "-3"),
        ("3-4", "4"),
        ("12,34", "34"),
        ("from 5 (about 60%)", "60"),
        (".5", "0.5"),
    ],
)
def test_the_last_number_by_hand(text, number):
    assert str(read_last_number(text)) == number or float(read_last_number(text)) == float(number)


def test_a_text_without_a_number_has_none():
    assert read_last_number("nine") is None
    assert read_last_number("") is None


def read_by_words(text: str) -> float | None:
    """The last number another way: words that `float` reads, without signs around them."""
    found = None
    for word in re.split(r"[\s=]+", text):
        try:
            found = float(word.strip("$.*%!?()").replace(",", ""))
        except ValueError:
            continue
    return found


@given(
    st.lists(st.integers(-(10**9), 10**9), min_size=1),
    st.sampled_from(["so {} in all.", "= {}", "**{}**", "{}!", "that makes {} dollars"]),
)
def test_the_last_number_agrees_with_another_reading(numbers, words):
    for style in ("{}", "{:,}", "{:.2f}"):
        text = " and ".join(words.format(style.format(one)) for one in numbers)
        assert float(read_last_number(text)) == read_by_words(text) == numbers[-1]


def test_gsm8k_is_right_if_the_last_number_is(tmp_path):
    nails, debt, half = parse_tasks("gsm8k", write_rows(tmp_path, "gsm8k"))
    assert score_answer(nails, "2 * 600 = 1200") == TaskScore(1, 1, 1)
    assert score_answer(nails, "1,200.00 nails") == TaskScore(1, 1, 1)
    assert score_answer(nails, "1200, or 2 boxes") == TaskScore(1, 0, 0)
    assert score_answer(debt, "-7").strict == 1 and score_answer(debt, "7").strict == 0
    assert score_answer(half, "4.5") == TaskScore(1, 1, 1)
    assert score_answer(half, "no idea") == TaskScore(1, 0, 0)


# Values of instructions that cannot do without, or would draw them at random.
EXAMPLE = {
    "combination:repeat_prompt": {"prompt_to_repeat": "prompt"},
    "count:conjunctions": {"small_n": 2},
    "count:keywords_multiple": {f"keyword{n}": word for n, word in enumerate("abcde", 1)},
    "count:numbers": {"N": 3},
    "count:person_names": {"N": 1},
    "count:pronouns": {"N": 1},
    "count:unique_word_count": {"N": 6},
    "count:word_count_range": {"min_words": 3, "max_words": 8},
    "count:words_japanese": {"N": 2},
    "detectable_content:number_placeholders": {"num_placeholders": 1},
    "detectable_content:postscript": {"postscript_marker": "P.S."},
    "detectable_format:multiple_sections": {"section_spliter": "Part", "num_sections": 2},
    "detectable_format:number_bullet_lists": {"num_bullets": 1},
    "detectable_format:number_highlighted_sections": {"num_highlights": 1},
    "format:list": {"sep": "..."},
    "format:options": {"options": "yes/no"},
    "keywords:existence": {"keywords": ["rain"]},
    "keywords:forbidden_words": {"forbidden_words": ["rain"]},
    "keywords:frequency": {"keyword": "rain", "frequency": 1, "relation": "at least"},
    "keywords:letter_frequency": {"letter": "a", "let_frequency": 2, "let_relation": "at least"},
    "language:response_language": {"language": "en"},
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": 1,
        "nth_paragraph": 1,
        "first_word": "rain",
    },
    "length_constraints:number_paragraphs": {"num_paragraphs": 1},
    "length_constraints:number_words": {"num_words": 5, "relation": "at least"},
    "ratio:overlap": {"reference_text": "rain falls", "percentage": 50},
    "repeat:repeat_change": {"prompt_to_repeat": "hello there"},
    "repeat:repeat_span": {"prompt_to_repeat": "hello there you", "n_start": 1, "n_end": 2},
    "sentence:increment": {"small_n": 1},
    "sentence:keyword": {"word": "rain", "N": 1},
    "startend:end_checker": {"end_phrase": "bye."},
    "words:keywords_specific_position": {"keyword": "rain", "n": 1, "m": 2},
    "words:repeats": {"small_n": 1},
    "words:words_position": {"keyword": "rain"},
}
