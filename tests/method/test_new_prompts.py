"""New prompts: which candidates are kept, and which demonstrations the model sees."""

import pytest
from method_records import RUN

from selfreward_lite.data.checkable.kinds import TRAINED, read_constraints
from selfreward_lite.data.checkable.requests import remove_constraints
from selfreward_lite.data.records import Candidate, Prompt, make_id
from selfreward_lite.method import new_prompts


def candidates(*texts, finish="stop"):
    return [
        Candidate(make_id(RUN, Candidate, 1, "base", i), 1, "base", i, text, finish)
        for i, text in enumerate(texts)
    ]


def filter_texts(found, tiny, held_out=(), known=(), **changes):
    settings = tiny.prompts.model_copy(update={"max_similarity": 0.7, "min_words": 4, **changes})
    outcome = new_prompts.filter_candidates(
        found, settings, id_namespace=RUN, iteration=1, known=known, held_out=held_out
    )
    return [one.text for one in outcome.records], set(outcome.drops)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Hi there friend", "too short"),
        ("word " * 151, "too long"),
        ("Draw the river you like best", "needs more than text"),
        ("Look at this picture of a river", "needs more than text"),
        ("Write a Python program that sorts words", "asks for a program"),
        ("?Why is the sky so blue", "begins with a sign"),
        ("Äpfel sind gut für die Gesundheit", "begins with a sign"),
        ("NAME a river, in northern France!", "like a prompt before it"),
        ("Name a big river in northern France", "like a prompt before it"),
        ("", "cut or empty"),
    ],
)
def test_candidates_are_dropped_with_a_reason(tiny, text, reason):
    known = ["Name a river in northern France"]
    assert filter_texts(candidates(text), tiny, known=known) == ([], {reason})


def test_candidates_similar_to_an_earlier_one_are_dropped(tiny):
    texts = [
        "Explain why leaves turn red in autumn",
        "Explain why leaves turn red in autumn?",
        "Name three uses of old newspapers",
    ]
    kept, reasons = filter_texts(candidates(*texts), tiny)
    assert kept == [texts[0], texts[2]]
    assert reasons == {"like a prompt before it"}


def test_candidates_like_evaluation_prompts_are_dropped(tiny):
    kept, reasons = filter_texts(
        candidates("Sort the words by their length now"),
        tiny,
        held_out=["sort the words by their length"],
    )
    assert kept == []
    assert reasons == {"like an evaluation prompt"}


def test_candidate_cut_by_the_limit_loses_its_last_task(tiny):
    assert filter_texts(candidates("Name a river in northern France\n10. Why is the"), tiny)[0] == [
        "Name a river in northern France"
    ]
    assert filter_texts(candidates("Name a river in nor", finish="length"), tiny)[0] == []


def test_candidates_are_kept_up_to_the_count(tiny):
    texts = [
        f"{first} {second} and something else entirely {index}"
        for index, (first, second) in enumerate(
            [("one", "two"), ("three", "four"), ("five", "six")]
        )
    ]
    assert len(filter_texts(candidates(*texts), tiny, count=2, max_similarity=1.0)[0]) == 2


def test_prompt_questions_stay_equally_long(tiny, role):
    human = [f"Human task number {n} about rivers" for n in range(30)]
    own = [f"Own task {n} about stones" for n in range(30)]
    lengths = []
    for index in range(100):
        asking = new_prompts.ask_for_prompt(index, role, tiny.prompts, human, own)
        (request,) = next(asking)
        shown = role.chat.tokenizer.decode(list(request.tokens))
        assert shown.count("Human task") == 6
        assert shown.count("Own task") == 2
        lengths.append(len(shown))
    assert max(lengths) - min(lengths) < 20
    again = next(new_prompts.ask_for_prompt(0, role, tiny.prompts, human, own))[0]
    assert again == next(new_prompts.ask_for_prompt(0, role, tiny.prompts, human, own))[0]


def test_kept_prompts_get_constraints_and_later_prompts_see_plain_ones(tiny):
    text = "Name three uses of old newspapers"
    settings = tiny.prompts.model_copy(update={"min_words": 4, "constraints": 2})
    made = [
        new_prompts.filter_candidates(
            candidates(text), settings, id_namespace=RUN, iteration=1, known=(), held_out=(), seed=3
        ),
        new_prompts.import_prompts([text], settings, id_namespace=RUN, held_out=(), seed=3),
    ]
    for outcome in made:
        (prompt,) = outcome.records
        assert prompt.text.startswith(f"{text} ")
        constraints = read_constraints(prompt)
        assert len(constraints) == 2
        assert {one.kind for one in constraints} <= set(TRAINED)
        assert remove_constraints(prompt, 3, 2) == text


def test_imported_prompts_leave_out_repeats_and_held_out_ones(tiny):
    settings = tiny.prompts.model_copy(update={"count": 2})
    texts = [
        "One two three four.",
        "one  two three FOUR.",
        "Secret words that are held out.",
        " Five six.\n",
        "Seven eight.",
    ]
    outcome = new_prompts.import_prompts(
        texts, settings, id_namespace="r", held_out=["Secret words that are held out."]
    )
    assert [
        (one.iteration, one.index, one.text) for one in outcome.records if isinstance(one, Prompt)
    ] == [
        (1, 0, "One two three four."),
        (1, 1, "Five six."),
        (2, 0, "Seven eight."),
    ]
    assert outcome.drops == {"same prompt again": 1, "like an evaluation prompt": 1}
    # with no limit of likeness at all, a held-out prompt itself stays held out
    unlimited = settings.model_copy(update={"max_similarity": 1.0})
    again = new_prompts.import_prompts(
        texts, unlimited, id_namespace="r", held_out=["Secret words that are HELD out."]
    )
    assert again == outcome
