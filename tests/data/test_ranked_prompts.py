"""Ranked prompts from message trees: what is kept, counted, split and refused."""

import json

import pytest
from ranked_trees import make_tree, read_trees

from selfreward_lite.data import ranked
from selfreward_lite.data.tiny.ranked import generate_ranked_rows
from selfreward_lite.system.errors import DataError


def test_ranked_prompts_have_answers_best_first():
    found, drops = read_trees(
        make_tree("a", ("second", 1), ("unranked", None), ("best", 0), ("third", 2))
        + make_tree("b", ("only", 0))
    )
    assert [one.text for one in found[0].responses] == ["best", "second", "third"]
    assert [one.rank for one in found[0].responses] == [0, 1, 2]
    assert len(found) == 1
    assert drops == {
        "answer without a rank": 1,
        "fewer than two ranked answers": 1,
        "answer to a prompt that is left out": 1,
    }


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
    found, drops = read_trees(make_tree("a", ("x", 0), ("y", 1), **change))
    assert found == []
    assert drops == {reason: 1, "answer to a prompt that is left out": 2}


def test_ranked_prompts_drop_a_repeated_prompt():
    rows = make_tree("a", ("x", 0), ("y", 1)) + [
        {**row, "message_id": f"b{i}", "parent_id": row["parent_id"] and "b0"}
        for i, row in enumerate(make_tree("a", ("x", 0), ("y", 1)))
    ]
    found, drops = read_trees(rows)
    assert len(found) == 1
    assert drops == {"same prompt again": 1, "answer to a prompt that is left out": 2}


def test_split_reserves_evaluation_first(tiny):
    found, _ = read_trees(list(generate_ranked_rows(200)))
    parts = ranked.split_ranked(found, tiny)
    assert len(parts.evaluation) == tiny.seed_stage.eval_prompts
    assert parts.ift == []
    with_ift = ranked.split_ranked(
        found,
        tiny.model_copy(
            update={"seed_stage": tiny.seed_stage.model_copy(update={"ift_examples": 30})}
        ),
    )
    assert with_ift.evaluation == parts.evaluation, (
        "the evaluation share does not depend on the others"
    )
    assert len(with_ift.ift) == 30
    for one in (parts, with_ift):
        shares = [
            {ranked.prompt.id for ranked in share} for share in (one.evaluation, one.eft, one.ift)
        ]
        assert sum(map(len, shares)) == len(set().union(*shares)) == len(found)
    with pytest.raises(DataError, match=r"50 ranked prompts are too few for \d+ evaluation pro"):
        ranked.split_ranked(found[:50], tiny)


def test_too_few_prompts_are_said_with_every_reason(tiny):
    rows = make_tree("a", ("x", 0), ("y", 1), lang="de") + make_tree("b", ("x", None), ("y", 1))
    found, drops = read_trees([*rows, *make_tree("c", ("x", 0), ("y", 1))[1:]])
    with pytest.raises(
        DataError,
        match=r"0 ranked prompts are too few for \d+ evaluation prompts \(left out: 1 × not "
        r"English; 1 × answer without a rank; 1 × fewer than two ranked answers; 3 × answer to a "
        r"prompt that is left out; 2 × answer to a message that is not there\); lower "
        r"seed_stage\.eval_prompts",
    ):
        ranked.split_ranked(found, tiny, drops)


@pytest.mark.parametrize(("source", "wanted"), [("tiny", 60 + 2 * 33), ("checkable", 60 + 1)])
def test_what_a_program_writes_for_a_while_shows_how_far_it_is(tiny, source, wanted):
    changed = {"ranked": source, "eval_prompts": 60, "train_examples": 100}
    changed |= {"eft": source == "tiny"}
    shown: list[tuple[int, int]] = []
    settings = tiny.with_values("seed_stage", **changed)
    rows = ranked.load_ranked_rows(settings, lambda done, total: shown.append((done, total))).rows
    assert shown == [(done, wanted) for done in range(50, wanted, 50)]
    assert sum(row["parent_id"] is None for row in rows) == wanted


def test_load_rows_names_a_bad_line(tmp_path, tiny):
    path = tmp_path / "ranked.jsonl"
    settings = tiny.model_copy(
        update={"seed_stage": tiny.seed_stage.model_copy(update={"ranked": str(path)})}
    )
    with pytest.raises(DataError, match="no such file"):
        ranked.load_ranked_rows(settings)
    good = "".join(f"{json.dumps(row)}\n" for row in make_tree("a", ("x", 0), ("y", 1)))
    path.write_text(good + "{broken\n")
    with pytest.raises(DataError, match=r"ranked\.jsonl:4: not JSON"):
        ranked.load_ranked_rows(settings)
    path.write_text(good + '{"text": "no ids"}\n')
    with pytest.raises(DataError, match=r"ranked\.jsonl:4: no field 'message_id'"):
        ranked.load_ranked_rows(settings)
    path.write_text(good)
    assert len(ranked.load_ranked_rows(settings)[0]) == 3
