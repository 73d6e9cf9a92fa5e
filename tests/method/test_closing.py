"""Closings: the tokens behind a judgment in real vocabularies, and how a choice is drawn."""

from dataclasses import replace

import pytest
from chat_folders import CHATML, CHATML_TOKENS, piece_folder
from method_records import finish_asking, make_judgment, make_prompt, make_response

from selfreward_lite.engine.api import Completion, Sampling
from selfreward_lite.method import battles, closing, comparisons
from selfreward_lite.models.chat_format import ChatFormat

WARM = Sampling(temperature=1.0, top_p=1.0, max_tokens=9)


def spelled(chat, tokens) -> str:
    return chat.tokenizer.decode(list(tokens), skip_special_tokens=False)


@pytest.mark.parametrize("kind", ["Llama 2, Mistral", "Gemma"])
def test_closing_ends_where_the_digit_follows(kind, tmp_path):
    chat = ChatFormat.load(piece_folder(tmp_path, CHATML, kind=kind, tokens=CHATML_TOKENS))
    made = closing.make_score_closing(chat)
    assert [chat.tokenizer.id_to_token(token) for token in made.choices] == list(closing.SCORES)
    assert spelled(chat, made.tokens).rstrip() == "\nScore:", "no space before it"
    assert "Score: 4" in spelled(chat, (*made.tokens, made.choices[4]))


def test_closing_ends_code_and_thoughts_first(chat):
    made = closing.make_score_closing(chat)
    for text, end in (
        ("so", ""),
        ("```\nx", "```"),
        ("```\nx\n```", ""),
        ("<think>hm", "</think>"),
        ("<think>hm</think>", ""),
        ("<think>```\nx", "```</think>"),
    ):
        spoken = spelled(chat, made.tokens_behind(text))
        assert "".join(spoken.split()) == f"{end}Score:"


def test_thought_ends_with_the_models_own_token(tmp_path):
    """Qwen3 has one; its letters would be no end of a thought to it."""
    template = CHATML.replace("assistant\\n'", "assistant\\n<think>\\n\\n</think>\\n\\n'")
    tokens = (*CHATML_TOKENS, "<think>", "</think>")
    chat = ChatFormat.load(piece_folder(tmp_path, template, tokens=tokens))
    added = closing.make_score_closing(chat).tokens_behind("<think>hm")
    assert chat.tokenizer.token_to_id("</think>") in added
    assert spelled(chat, added).strip() == "</think>\nScore:"


def test_verdict_closing_offers_both_sides(chat):
    for noun in ("Judgement", "Response"):
        made = closing.make_verdict_closing(chat, noun)
        said = [spelled(chat, (*made.tokens, side)) for side in made.choices]
        assert ["".join(one.split()) for one in said] == [f"Winner:{noun}A", f"Winner:{noun}B"]


@pytest.mark.parametrize(
    ("change", "possible"),
    [
        ({}, set("ABCD")),
        ({"top_k": 2}, set("AB")),
        ({"top_p": 0.5}, set("A")),
        ({"top_p": 0.7}, set("AB")),
        ({"temperature": 0.0}, set("A")),
        ({"temperature": 0.01}, set("A")),
    ],
)
def test_choice_is_drawn_with_the_judges_settings(change, possible):
    sampling = WARM.model_copy(update=change)
    shares = (0.05, 0.03, 0.01, 0.01)
    drawn = {closing.draw_choice(shares, sampling, seed, "ABCD") for seed in range(2000)}
    assert drawn == possible


def forced_role(role):
    return replace(role, forces=True)


def closed(request, text, closing_text, shares, finish="stop"):
    return Completion(
        request.key, 0, (1,), text, finish, 9, closing=shares, closing_text=closing_text
    )


def test_battle_without_a_verdict_is_closed(role):
    fought = [make_judgment(0, 2, response="r"), make_judgment(1, 4, response="r")]
    asking = battles.ask_for_battles(make_prompt(), make_response(), fought, forced_role(role))
    requests = next(asking)
    texts = ["Well.\nWinner: Judgement B", "Well, well."]
    replies = [
        [closed(one, text, "\nWinner: Judgement", (1.0, 0.0))]
        for one, text in zip(requests, texts, strict=True)
    ]
    made = finish_asking(asking, replies).records
    assert [(one.verdict, one.source) for one in made] == [(-1, "written"), (1, "forced")]
    assert made[1].text == "Well, well.\nWinner: Judgement A"


def test_comparison_keeps_verdicts_and_how_many_were_forced(role):
    mine, theirs = make_response("a"), make_response("b", index=1)
    asking = comparisons.ask_for_comparison(make_prompt(), mine, theirs, forced_role(role))
    requests = next(asking)
    texts = [("Winner: Response A", "stop"), ("Winner: Response A\nno", "length")]
    replies = [
        [closed(one, text, "\nWinner: Response ", (0.0, 1.0), finish)]
        for one, (text, finish) in zip(requests, texts, strict=True)
    ]
    (made,) = finish_asking(asking, replies).records
    assert (made.result, made.verdicts, made.forced) == (1.0, "AB", 1)
    assert comparisons.read_verdicts(made) == ("A", "B")


def test_comparison_of_an_older_run_is_read_again(role):
    mine, theirs = make_response("a"), make_response("b", index=1)
    asking = comparisons.ask_for_comparison(make_prompt(), mine, theirs, role)
    requests = next(asking)
    replies = [[Completion(one.key, 0, (1,), "Winner: Response A", "stop", 9)] for one in requests]
    (made,) = finish_asking(asking, replies).records
    assert made.verdicts == "AA"
    assert comparisons.read_verdicts(replace(made, verdicts="")) == ("A", "A")
    assert comparisons.read_verdicts(replace(made, verdicts="A-")) == ("A", None)


def test_cut_verdict_of_an_older_run_stays_unread(role):
    """It was marked; the parser of today would find a winner before the mark."""
    mine, theirs = make_response("a"), make_response("b", index=1)
    asking = comparisons.ask_for_comparison(make_prompt(), mine, theirs, role)
    requests = next(asking)
    replies = [[Completion(one.key, 0, (1,), "Winner: Response A", "stop", 9)] for one in requests]
    (made,) = finish_asking(asking, replies).records
    old = replace(made, verdicts="", mine_first_text="Winner: Response A\nfor it\n[cut]")
    assert comparisons.read_verdicts(old) == (None, "A")


def test_model_without_a_token_for_a_digit_cannot_close(chat, monkeypatch):
    assert closing.can_close(chat)
    monkeypatch.setattr(closing, "make_score_closing", lambda chat: None)
    assert not closing.can_close(chat)
