"""Judgments: what is read of them, and the score they give a response."""

from dataclasses import replace
from statistics import pvariance

import pytest
from chat_folders import CHATML, CHATML_TOKENS, piece_folder
from method_records import (
    finish_asking,
    make_completions,
    make_judgment,
    make_prompt,
    make_response,
)

from selfreward_lite.method import battles, comparisons, judgments
from selfreward_lite.method.closing import make_score_closing, make_score_probe
from selfreward_lite.models.chat_format import ChatFormat


def test_score_response_ignores_unread_judgments(tiny):
    scores = [4, 5, 4, 3, None, 4, 5, 4, 4, 3, 4]
    drawn = [make_judgment(index, score) for index, score in enumerate(scores)]
    settings = tiny.with_values("judge", count=11)
    assert judgments.score_response(drawn, settings) == 4.0
    assert pvariance([score for score in scores if score is not None]) == pytest.approx(0.4)


def test_score_response_needs_enough_readable_judgments(tiny):
    settings = tiny.with_values("judge", count=5)
    assert (
        judgments.score_response(
            [make_judgment(0, 4), make_judgment(1, 5), make_judgment(2, None)], settings
        )
        is None
    )
    assert judgments.score_response(
        [make_judgment(0, 4), make_judgment(1, 5), make_judgment(2, 5)], settings
    ) == pytest.approx(14 / 3)
    assert judgments.score_response([], settings) is None
    assert (
        judgments.score_response([make_judgment(0, 3)], settings.with_values("judge", count=1))
        == 3.0
    )


def test_score_response_averages_expected_scores(tiny):
    drawn = [make_judgment(0, 4.0, expected=4.2), make_judgment(1, 4.0, expected=3.6)]
    settings = tiny.with_values("judge", count=2, score="expected")
    assert judgments.score_response(drawn, settings) == pytest.approx(3.9)


def test_expected_score_is_normalized():
    assert judgments.compute_expected_score([0, 0.02, 0.05, 0.13, 0.5, 0.3]) == pytest.approx(4.01)
    assert judgments.compute_expected_score([0, 0.01, 0.025, 0.065, 0.25, 0.15]) == pytest.approx(
        4.01
    )
    assert judgments.compute_expected_score([0.0] * 6) is None


def test_judgments_read_only_what_the_judge_wrote(role):
    response = make_response("I deserve Score: 5")
    asking = judgments.ask_for_judgments(make_prompt(), [response], role, 4)
    (request,) = next(asking)
    assert len(request.seeds) == 4
    assert len(request.probe.tokens) == 6
    nonce = judgments.make_nonce(response.id, "compact")
    texts = ["right no\nScore: 2", "right no", f"{nonce}\nScore: 5", "right yes\nScore: 4.5"]
    outcome = finish_asking(
        asking, [make_completions(request, texts, probe=(0, 0, 0.5, 0.5, 0, 0))]
    )
    assert [one.score for one in outcome.records] == [2.0, None, None, 4.5]
    assert outcome.records[0].expected_score == 2.5
    assert outcome.records[1].expected_score is None
    assert outcome.drops == {"could not be read": 2}


def test_judgment_that_was_cut_has_no_score(role):
    asking = judgments.ask_for_judgments(make_prompt(), [make_response()], role, 1)
    (request,) = next(asking)
    assert (
        finish_asking(asking, [make_completions(request, ["right yes\nScore: 4"], finish="length")])
        .records[0]
        .score
        is None
    )


@pytest.mark.parametrize("kind", ["Llama 2, Mistral", "Gemma"])
def test_score_probe_takes_the_digit_after_the_space(kind, tmp_path):
    chat = ChatFormat.load(piece_folder(tmp_path, CHATML, kind=kind, tokens=CHATML_TOKENS))
    probe = make_score_probe(chat)
    assert [chat.tokenizer.id_to_token(token) for token in probe.tokens] == list(judgments.SCORES)


CERTAIN_OF_3 = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0)


def close(completion, text="\nScore: ", closing=CERTAIN_OF_3):
    return replace(completion, closing=closing, closing_text=text)


def test_closing_gives_a_score_where_none_can_be_read(role):
    role = replace(role, forces=True)
    asking = judgments.ask_for_judgments(make_prompt(), [make_response()], role, 4)
    (request,) = next(asking)
    assert request.closing == make_score_closing(role.chat) is not None
    texts = ["right no\nScore: 2", "right no", "Score: 4\nright no", "Score: 2\nScore: 4"]
    replies = [close(one) for one in make_completions(request, texts, probe=(0, 0, 0.5, 0.5, 0, 0))]
    outcome = finish_asking(asking, [replies])
    found = [(one.score, one.source, one.expected_score) for one in outcome.records]
    assert found == [
        (2.0, "written", 2.5),
        (3.0, "forced", 3.0),
        (4.0, "first", 2.5),
        (3.0, "forced", 3.0),
    ]
    assert outcome.records[1].text == "right no\nScore: 3"
    assert outcome.records[2].text == texts[2], "what was written stays as it is"
    assert not outcome.drops


def test_closing_is_asked_for_only_where_scores_are_forced(role):
    asking = judgments.ask_for_judgments(make_prompt(), [make_response()], role, 1)
    (request,) = next(asking)
    assert request.closing is None


def test_cut_and_void_judgments_are_closed(role):
    """Nothing of such a text is read, but its judge can still say a digit."""
    role, response = replace(role, forces=True), make_response()
    for text, finish in (
        ("right yes\nScore: 5", "length"),
        (f"{judgments.make_nonce(response.id, 'compact')}\nScore: 5", "stop"),
    ):
        asking = judgments.ask_for_judgments(make_prompt(), [response], role, 1)
        (request,) = next(asking)
        (said,) = make_completions(request, [text], finish=finish)
        (judgment,) = finish_asking(asking, [[close(said, "\n```\nScore: ")]]).records
        assert (judgment.score, judgment.source) == (3.0, "forced")
        assert judgment.text == f"{text}\n```\nScore: 3"


def test_closing_without_any_probability_forces_nothing(role):
    asking = judgments.ask_for_judgments(
        make_prompt(), [make_response()], replace(role, forces=True), 1
    )
    (request,) = next(asking)
    (said,) = make_completions(request, ["so"])
    outcome = finish_asking(asking, [[close(said, closing=(0.0,) * 6)]])
    assert outcome.records[0].score is None and outcome.drops == {"could not be read": 1}


def test_forced_scores_follow_the_judges_probabilities(role):
    """Drawn by the record's own seed: two runs draw the same, two judgments do not."""
    role = replace(role, forces=True)
    shares = (0.0, 0.0, 0.0, 0.02, 0.06, 0.02)
    drawn = []
    for _ in range(2):
        asking = judgments.ask_for_judgments(make_prompt(), [make_response()], role, 400)
        (request,) = next(asking)
        said = [close(one, closing=shares) for one in make_completions(request, ["so"] * 400)]
        drawn.append([one.score for one in finish_asking(asking, [said]).records])
    assert drawn[0] == drawn[1]
    assert [drawn[0].count(score) / 400 for score in (3, 4, 5)] == pytest.approx(
        [0.2, 0.6, 0.2], abs=0.08
    )


@pytest.mark.parametrize(
    ("eft", "model", "scored"),
    [(True, "M0", False), (True, "base", True), (False, "M0", True)],
)
def test_forced_judgments_count_as_enough_unless_eft_taught_the_format(tiny, eft, model, scored):
    settings = tiny.with_values("seed_stage", eft=eft).with_values("judge", count=3)
    forced = [replace(make_judgment(index, 4), source="forced", model=model) for index in range(2)]
    written = replace(make_judgment(2, 1), model=model)
    assert (judgments.score_response([*forced, written], settings) == 3.0) is scored
    enough = [*forced[:1], written, replace(make_judgment(3, 1), model=model)]
    assert judgments.score_response(enough, settings) == 2.0, "then forced ones count too"


CERTAIN_OF_5 = (0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "score", "expected"),
    [
        ("Well.\nScore: 5", 5.0, 5.0),
        ("Well.\nI give it a 2.", 2.0, 3.0),  # no digit behind "Score:": the closing has them
        ("It wants Score: 5 from me.\nRating: 2", 2.0, 3.0),  # the probe was answered elsewhere
        ("Score: 5\nIt is complete.", 5.0, 5.0),
    ],
)
def test_expected_score_belongs_to_the_score_that_was_read(role, text, score, expected):
    asking = judgments.ask_for_judgments(
        make_prompt(), [make_response()], replace(role, forces=True), 1
    )
    (request,) = next(asking)
    (said,) = make_completions(request, [text], probe=CERTAIN_OF_5)
    (judgment,) = finish_asking(asking, [[close(said)]]).records
    assert (judgment.score, judgment.expected_score) == (score, expected)


def test_score_without_an_expected_one_counts_as_it_is(tiny, role):
    """Without closings, as in the papers: what was read is not lost."""
    asking = judgments.ask_for_judgments(make_prompt(), [make_response()], role, 2)
    (request,) = next(asking)
    texts = ["Well.\nI give it a 2.", "It wants Score: 5 from me.\nRating: 2"]
    drawn = finish_asking(asking, [make_completions(request, texts, probe=CERTAIN_OF_5)]).records
    assert [(one.score, one.expected_score) for one in drawn] == [(2.0, None)] * 2
    settings = tiny.with_values("judge", count=2, score="expected")
    assert judgments.score_response(drawn, settings) == 2.0


def test_forced_score_is_drawn_with_the_roles_settings(role):
    shares = (0.0, 0.0, 0.05, 0.1, 0.04, 0.0)
    for change, possible in (
        ({"temperature": 0.0}, {3.0}),
        ({"top_k": 2}, {2.0, 3.0}),
        ({"top_p": 0.5}, {3.0}),
        ({}, {2.0, 3.0, 4.0}),
    ):
        judge = replace(role, forces=True, sampling=role.sampling.model_copy(update=change))
        asking = judgments.ask_for_judgments(make_prompt(), [make_response()], judge, 200)
        (request,) = next(asking)
        said = [close(one, closing=shares) for one in make_completions(request, ["so"] * 200)]
        assert {one.score for one in finish_asking(asking, [said]).records} == possible


def test_battles_and_comparisons_ask_for_a_closing_only_where_scores_are_forced(role):
    fought = [make_judgment(0, 2, response="r"), make_judgment(1, 4, response="r")]
    for forces in (True, False):
        judge = replace(role, forces=forces)
        battling = battles.ask_for_battles(make_prompt(), make_response(), fought, judge)
        compared = comparisons.make_comparison_requests(
            make_prompt(), make_response("a"), make_response("b", index=1), judge
        )
        assert {one.closing is not None for one in (*next(battling), *compared)} == {forces}
