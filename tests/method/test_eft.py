"""Ranked data → EFT; what a judge's and a model's metrics are, by hand and against scipy."""

import json
import random

import pytest

from selfreward_lite.data import ranked
from selfreward_lite.data.records import Judgment, Prompt, Response
from selfreward_lite.data.tiny.ranked import generate_ranked_rows as tiny_rows
from selfreward_lite.method import eft, metrics
from selfreward_lite.system.errors import DataError

RUN = "seed 0"


def tree(name: str, *answers: tuple[str, int | None], **changes) -> list[dict]:
    base = {
        "lang": "en",
        "deleted": False,
        "review_result": True,
        "synthetic": False,
        "tree_state": "ready_for_export",
    }
    first = {
        "message_id": name,
        "parent_id": None,
        "role": "prompter",
        "text": f"Question {name}?",
        "rank": None,
        **base,
        **changes,
    }
    return [
        first,
        *(
            {
                "message_id": f"{name}-{i}",
                "parent_id": name,
                "role": "assistant",
                "text": text,
                "rank": rank,
                **base,
            }
            for i, (text, rank) in enumerate(answers)
        ),
    ]


def found_in(rows):
    found, outcome = ranked.build_ranked_prompts(rows, RUN)
    return found, {drop.reason: drop.count for drop in outcome.drops}


def test_ranked_prompts_have_answers_best_first():
    found, drops = found_in(
        tree("a", ("second", 1), ("unranked", None), ("best", 0), ("third", 2))
        + tree("b", ("only", 0))
    )
    assert [one.text for one in found[0].responses] == ["best", "second", "third"]
    assert [one.rank for one in found[0].responses] == [0, 1, 2]
    assert len(found) == 1
    assert drops == {"answer without a rank": 1, "fewer than two ranked answers": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lang": "de"}, "not English"),
        ({"deleted": True}, "deleted, rejected or synthetic"),
        ({"review_result": False}, "deleted, rejected or synthetic"),
        ({"synthetic": True}, "deleted, rejected or synthetic"),
        ({"tree_state": "growing"}, "tree not ready for export"),
        ({"text": "  "}, "empty text"),
    ],
)
def test_ranked_prompts_count_every_row_left_out(change, reason):
    found, drops = found_in(tree("a", ("x", 0), ("y", 1), **change))
    assert found == []
    assert drops == {reason: 1}


def test_ranked_prompts_drop_a_repeated_prompt():
    rows = tree("a", ("x", 0), ("y", 1)) + [
        {**row, "message_id": f"b{i}", "parent_id": row["parent_id"] and "b0"}
        for i, row in enumerate(tree("a", ("x", 0), ("y", 1)))
    ]
    found, drops = found_in(rows)
    assert len(found) == 1
    assert drops["same prompt again"] == 1


def test_split_reserves_evaluation_first(tiny):
    found, _ = found_in(list(tiny_rows(200)))
    parts = ranked.split_ranked(found, tiny)
    assert len(parts.evaluation) == tiny.seed_stage.eval_prompts
    assert parts.ift == []
    with_ift = ranked.split_ranked(
        found,
        tiny.model_copy(
            update={"seed_stage": tiny.seed_stage.model_copy(update={"ift_examples": 30})}
        ),
    )
    assert with_ift.evaluation == parts.evaluation, "what measures stays, whatever else is wanted"
    assert len(with_ift.ift) == 30
    for one in (parts, with_ift):
        shares = [
            {ranked.prompt.id for ranked in share} for share in (one.evaluation, one.eft, one.ift)
        ]
        assert sum(map(len, shares)) == len(set().union(*shares)) == len(found)
    with pytest.raises(DataError, match=r"lower seed_stage\.eval_prompts"):
        ranked.split_ranked(found[:50], tiny)


def judged(found, scores):
    """`scores` lists, a response, the scores of its tries."""
    return {
        response.id: [
            Judgment(
                f"{response.id}{i}", 0, "base", response.id, i, f"Score: {s}", "stop", 3, s, None
            )
            for i, s in enumerate(tries)
        ]
        for response, tries in zip(found.responses, scores, strict=True)
    }


@pytest.mark.parametrize(
    ("scores", "tried"),
    [
        (([4.0], [3.0], [1.0]), 0),
        (([4.0], [4.0], [1.0]), 0),  # ties inside are no inversion
        (([4.0], [4.0], [4.0]), None),  # but best must beat worst
        (([3.0, 5.0], [4.0, 4.0], [1.0, 2.0]), 1),
        (([3.0, None], [4.0, 4.0], [1.0, 2.0]), None),
        (([5.0], [None], [1.0]), None),
    ],
)
def test_agreeing_judgments_follow_the_human_ranks(scores, tried):
    (one,), _ = found_in(tree("a", ("x", 0), ("y", 1), ("z", 2)))
    agreed = eft.find_agreeing_judgments(one, judged(one, scores))
    assert (agreed and {judgment.index for judgment in agreed}) == (
        None if tried is None else {tried}
    )


def test_eft_examples_cap_the_most_common_score(tiny):
    found, _ = found_in([row for n in range(40) for row in tree(f"t{n}", ("x", 0), ("y", 1))])
    rng = random.Random(0)
    judgments = {}
    for one in found:
        judgments |= judged(
            one, ([rng.choice([4.0, 4.0, 4.0, 5.0])], [rng.choice([4.0, 1.0, 2.0])])
        )
    examples, outcome = eft.build_eft_examples(found, {}, judgments, tiny)
    left_out = {drop.reason: drop.count for drop in outcome.drops}
    assert len(examples) + sum(left_out.values()) == 80
    scores = [example.judgment.score for example in examples]
    assert scores.count(4.0) <= max(scores.count(other) for other in (1.0, 2.0, 5.0))
    assert left_out["most common score"] > 0
    few, outcome = eft.build_eft_examples(
        found,
        {},
        judgments,
        tiny.model_copy(
            update={"seed_stage": tiny.seed_stage.model_copy(update={"train_examples": 5})}
        ),
    )
    assert len(few) == 5
    assert {drop.reason for drop in outcome.drops} >= {"above train_examples"}


def test_eft_examples_include_decoys_with_a_low_score(tiny):
    """The first judgment that gives it no more than the worst human answer got; none where the humans were not agreed with."""
    settings = tiny.model_copy(
        update={"seed_stage": tiny.seed_stage.model_copy(update={"cap_most_common": False})}
    )
    found, _ = found_in([row for n in range(3) for row in tree(f"t{n}", ("x", 0), ("y", 1))])
    decoys = {
        one.prompt.id: [Response(f"d{n}", 0, "decoy", one.prompt.id, n, "!", "stop", 0)]
        for n, one in enumerate(found)
    }
    judgments = (
        judged(found[0], ([4.0], [1.0]))
        | judged(found[1], ([4.0], [1.0]))
        | judged(found[2], ([1.0], [4.0]))
    )
    for (decoy,), scores in zip(
        decoys.values(), ((None, 2.0, 1.0, 0.0), (3.0, 2.0), (0.0,)), strict=True
    ):
        judgments[decoy.id] = [
            Judgment(f"{decoy.id}:{n}", 0, "base", decoy.id, n, "So.", "stop", 1, score, None)
            for n, score in enumerate(scores)
        ]
    examples, outcome = eft.build_eft_examples(found, decoys, judgments, settings)
    assert [
        (one.judgment.id, one.judgment.score)
        for one in examples
        if one.judgment.response_id in ("d0", "d1", "d2")
    ] == [("d0:2", 1.0)]
    assert len(examples) == 5
    assert outcome.dropped() == {
        "no set of judgments agrees with the ranking": 2, "no judgment sees through the decoy": 1,
    }  # fmt: skip


def test_load_rows_names_a_bad_line(tmp_path, tiny):
    path = tmp_path / "ranked.jsonl"
    settings = tiny.model_copy(
        update={"seed_stage": tiny.seed_stage.model_copy(update={"ranked": str(path)})}
    )
    with pytest.raises(DataError, match="no such file"):
        ranked.load_ranked_rows(settings)
    good = "".join(f"{json.dumps(row)}\n" for row in tree("a", ("x", 0), ("y", 1)))
    path.write_text(good + "{broken\n")
    with pytest.raises(DataError, match=r"ranked\.jsonl:4: not JSON"):
        ranked.load_ranked_rows(settings)
    path.write_text(good + '{"text": "no ids"}\n')
    with pytest.raises(DataError, match=r"ranked\.jsonl:4: no field 'message_id'"):
        ranked.load_ranked_rows(settings)
    path.write_text(good)
    assert len(ranked.load_ranked_rows(settings)[0]) == 3


def test_score_exactly_gives_a_missing_answer_zero():
    prompts = [
        Prompt("p", 0, "held_out", 0, "Sort the letters c a b."),
        Prompt("q", 0, "held_out", 1, "Rotate the letters c a b."),
    ]
    answers = [Response("r", 0, "M0", "p", 0, "The answer is a b c.", "stop", 7)]
    exact = metrics.score_exactly(prompts, answers)
    assert exact.score == {"p": 5, "q": 0}
    assert exact.right == {"p": True, "q": False}
    assert (
        metrics.score_exactly([Prompt("x", 0, "held_out", 0, "Why is the sky blue?")], []) is None
    )
