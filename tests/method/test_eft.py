"""EFT: which judgments agree with human ranks, and which examples they become."""

import random
from dataclasses import replace

import pytest
from ranked_trees import make_tree, read_trees

from selfreward_lite.data.records import Judgment, Response
from selfreward_lite.method import eft


def make_judgments(found, scores):
    """Judgments by response id; `scores` lists the scores of each response's tries."""
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
        (([4.0], [4.0], [1.0]), 0),  # ties are no inversion
        (([4.0], [4.0], [4.0]), None),  # but best must beat worst
        (([3.0, 5.0], [4.0, 4.0], [1.0, 2.0]), 1),
        (([3.0, None], [4.0, 4.0], [1.0, 2.0]), None),
        (([5.0], [None], [1.0]), None),
    ],
)
def test_agreeing_judgments_follow_the_human_ranks(scores, tried):
    (one,), _ = read_trees(make_tree("a", ("x", 0), ("y", 1), ("z", 2)))
    agreed = eft.find_agreeing_judgments(one, make_judgments(one, scores))
    assert (agreed and {judgment.index for judgment in agreed}) == (
        None if tried is None else {tried}
    )


def test_eft_examples_cap_the_most_common_score(tiny):
    found, _ = read_trees(
        [row for n in range(40) for row in make_tree(f"t{n}", ("x", 0), ("y", 1))]
    )
    rng = random.Random(0)
    judgments = {}
    for one in found:
        judgments |= make_judgments(
            one, ([rng.choice([4.0, 4.0, 4.0, 5.0])], [rng.choice([4.0, 1.0, 2.0])])
        )
    examples, left_out = eft.build_eft_examples(found, {}, judgments, tiny)
    assert len(examples) + sum(left_out.values()) == 80
    scores = [example.judgment.score for example in examples]
    assert scores.count(4.0) <= max(scores.count(other) for other in (1.0, 2.0, 5.0))
    assert left_out["most common score"] > 0
    few, left_out = eft.build_eft_examples(
        found,
        {},
        judgments,
        tiny.model_copy(
            update={"seed_stage": tiny.seed_stage.model_copy(update={"train_examples": 5})}
        ),
    )
    assert len(few) == 5
    assert "above train_examples" in left_out


def test_eft_examples_include_decoys_with_a_low_score(tiny):
    """Taken is the first that gives it no more than the worst human answer got."""
    settings = tiny.model_copy(
        update={"seed_stage": tiny.seed_stage.model_copy(update={"cap_most_common": False})}
    )
    found, _ = read_trees([row for n in range(3) for row in make_tree(f"t{n}", ("x", 0), ("y", 1))])
    decoys = {
        one.prompt.id: [Response(f"d{n}", 0, "decoy", one.prompt.id, n, "!", "stop", 0)]
        for n, one in enumerate(found)
    }
    judgments = (
        make_judgments(found[0], ([4.0], [1.0]))
        | make_judgments(found[1], ([4.0], [1.0]))
        | make_judgments(found[2], ([1.0], [4.0]))
    )
    for (decoy,), scores in zip(
        decoys.values(), ((None, 2.0, 1.0, 0.0), (3.0, 2.0), (0.0,)), strict=True
    ):
        judgments[decoy.id] = [
            Judgment(f"{decoy.id}:{n}", 0, "base", decoy.id, n, "So.", "stop", 1, score, None)
            for n, score in enumerate(scores)
        ]
    examples, left_out = eft.build_eft_examples(found, decoys, judgments, settings)
    assert [
        (one.judgment.id, one.judgment.score)
        for one in examples
        if one.judgment.response_id in ("d0", "d1", "d2")
    ] == [("d0:2", 1.0)]
    assert len(examples) == 5
    assert left_out == {
        "no set of judgments agrees with the ranking": 2,
        "no judgment sees through the decoy": 1,
    }


@pytest.mark.parametrize("source", ["forced", "first"])
def test_eft_learns_only_from_scores_written_behind_the_reasons(tiny, source):
    """A forced score would teach no format, and a first one a format that nobody asked for."""
    found, _ = read_trees(make_tree("a", ("x", 0), ("y", 1)))
    judgments = make_judgments(found[0], ([4.0, 4.0], [1.0, 1.0]))
    first = found[0].responses[0].id
    judgments[first][0] = replace(judgments[first][0], source=source)
    agreed = eft.find_agreeing_judgments(found[0], judgments)
    assert agreed and {one.index for one in agreed} == {1}
    prompt = found[0].prompt.id
    decoys = {prompt: [Response("d", 0, "decoy", prompt, 0, "!", "stop", 0)]}
    low = Judgment("d:0", 0, "base", "d", 0, "So.", "stop", 1, 0.0, None, source)
    examples, left_out = eft.build_eft_examples(found, decoys, judgments | {"d": [low]}, tiny)
    assert {one.judgment.source for one in examples} == {"written"}
    assert left_out["no judgment sees through the decoy"] == 1
