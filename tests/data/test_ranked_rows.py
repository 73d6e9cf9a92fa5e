"""Ranked data as it is shipped: the same prompts from every way to write it; faults are named."""

import copy
import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from ranked_trees import make_tree

from selfreward_lite.data import ranked
from selfreward_lite.data.tiny.ranked import generate_ranked_rows
from selfreward_lite.system.errors import DataError

Found = tuple[dict[str, list[str]], Counter[str]]
TREES = make_tree("a", ("best", 0), ("worst", 2), ("second", 1)) + make_tree(
    "b", ("best", 0), ("unranked", None), ("worst", 1)
)
OPTIONAL = ("lang", "deleted", "synthetic", "review_result", "tree_state")
WANTED = {"Question a?": ["best", "second", "worst"], "Question b?": ["best", "worst"]}


@pytest.fixture
def load(tiny):
    """Load ranked data from a file."""

    def load_ranked(path: Path, skip_bad: bool = False) -> ranked.RankedRows:
        settings = tiny.with_values("seed_stage", ranked=str(path))
        return ranked.load_ranked_rows(settings.model_copy(update={"skip_bad": skip_bad}))

    return load_ranked


@pytest.fixture
def read(load):
    """The ranked prompts of a file, and what was left out."""

    def read_ranked(path: Path, skip_bad: bool = False) -> Found:
        rows, skipped, _ = load(path, skip_bad)
        found, outcome = ranked.build_ranked_prompts(rows, "run")
        texts = {one.prompt.text: [answer.text for answer in one.responses] for one in found}
        return texts, skipped + outcome.drops

    return read_ranked


def write_lines(path: Path, rows: list[dict]) -> Path:
    data = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_csv(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def drop_nulls(row: dict) -> dict:
    return {name: value for name, value in row.items() if value is not None}


def change(**changes) -> list[dict]:
    """The trees with other values; a function gets the old value."""
    return [
        {**row, **{name: made(row[name]) for name, made in changes.items()}}
        for row in copy.deepcopy(TREES)
    ]


def grow(rows: list[dict]) -> list[dict]:
    """Messages as OASST's trees, without what a tree says once."""
    trees = []
    for root in (row for row in rows if row["parent_id"] is None):
        replies = [
            {**drop_nulls({**row, "tree_state": None}), "replies": []}
            for row in rows
            if row["parent_id"] == root["message_id"]
        ]
        prompt = {**drop_nulls(root), "replies": replies}
        state = prompt.pop("tree_state")
        trees.append({"message_tree_id": root["message_id"], "tree_state": state, "prompt": prompt})
    return trees


WAYS = {
    "messages.jsonl.gz, nulls left out": [*map(drop_nulls, TREES)],
    "trees.jsonl.gz": grow(TREES),
    "only what is needed.jsonl": [
        drop_nulls({key: row[key] for key in ("message_id", "parent_id", "text", "role", "rank")})
        for row in TREES
    ],
    "every optional field is null.jsonl": change(**dict.fromkeys(OPTIONAL, lambda _: None)),
    "region.jsonl": change(lang=lambda _: "en-US"),
    "other region.jsonl": change(lang=lambda _: "EN_gb"),
    "empty parents.jsonl": change(parent_id=lambda old: old or ""),
    "parents of pandas.jsonl": change(parent_id=lambda old: old or float("nan")),
    "nan parents.csv": change(parent_id=lambda old: old or "nan", rank=lambda old: old),
    "numbers.jsonl": change(deleted=int, synthetic=int, review_result=int),
    "numbers.csv": change(deleted=int, synthetic=int, review_result=int),
    "letters.csv": change(
        deleted=lambda _: "f", synthetic=lambda _: "F", review_result=lambda _: "t"
    ),
    "words.csv": change(deleted=lambda _: "False", review_result=lambda _: "TRUE"),
    "decimal.csv": change(rank=lambda old: "nan" if old is None else f"{old}.0"),
    "other names.jsonl": [{name.upper(): value for name, value in row.items()} for row in TREES],
}


@pytest.mark.parametrize("name", WAYS)
def test_the_same_prompts_from_every_way_to_write_them(tmp_path, read, name):
    file = name.partition(",")[0]
    write = write_csv if file.endswith(".csv") else write_lines
    assert read(write(tmp_path / file, WAYS[name])) == (WANTED, {"answer without a rank": 1})


def test_whole_numbers_as_ids_are_one_with_pandas_decimals(tmp_path, read):
    ids = {row["message_id"]: number for number, row in enumerate(TREES, 10)}
    rows = change(message_id=ids.get, parent_id=lambda old: float(ids.get(old, "nan")))
    assert read(write_lines(tmp_path / "a.jsonl", rows))[0] == WANTED


@pytest.mark.parametrize("bad", [0, "0", False, "false", "F", "0.0"])
def test_a_rejected_review_is_left_out_however_it_is_written(tmp_path, read, bad):
    rows = change(review_result=lambda _: True)
    rows[3]["review_result"] = bad
    assert read(write_lines(tmp_path / "a.jsonl", rows)) == (
        {**WANTED, "Question a?": ["best", "worst"]},
        {"answer without a rank": 1, "deleted, rejected or synthetic": 1},
    )


def test_every_message_of_a_tree_is_counted(tmp_path, read):
    trees = grow(TREES)
    later = {"message_id": "q", "role": "prompter", "text": "And?", "lang": "en"}
    answer = {"message_id": "r", "role": "assistant", "text": "Then.", "lang": "de"}
    trees[0]["prompt"]["replies"][0]["replies"] = [{**later, "replies": [answer]}]
    trees[1]["tree_state"] = "growing"
    assert read(write_lines(tmp_path / "trees.jsonl", trees)) == (
        {"Question a?": WANTED["Question a?"]},
        {"tree not ready for export": 4, "message of a later turn": 1, "not English": 1},
    )


def test_answers_without_parents_are_counted(tmp_path, read):
    rows = [{**row, "parent_id": None} for row in TREES]
    texts, drops = read(write_lines(tmp_path / "a.jsonl", rows))
    assert texts == {}
    assert drops == {"answer without parent_id": 6, "fewer than two ranked answers": 2}


def test_ranked_data_is_read_from_every_format_alike(tmp_path, read):
    from datasets import Dataset

    rows = [
        {**row, "deleted": index % 9 == 8} for index, row in enumerate(generate_ranked_rows(20))
    ]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "a.parquet"))
    found = [
        read(write_lines(tmp_path / "a.jsonl", rows)),
        read(write_csv(tmp_path / "a.csv", rows)),
        read(tmp_path / "a.parquet"),
    ]
    assert found[0] == found[1] == found[2]
    assert found[0][1]["deleted, rejected or synthetic"] == len(rows) // 9


MESSAGE = {"message_id": "x", "parent_id": "y", "text": "a", "role": "assistant", "rank": 0}
REFUSED = [
    ({"text": "hello"}, "no field 'message_id'; ranked data must be in OASST's schema"),
    ({"messages": [{"role": "user"}]}, "chat messages, which rank no answers"),
    ({"conversations": [{"from": "human"}]}, "ShareGPT conversations, which rank no answers"),
    (
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        r"preference pairs \(chosen, rejected\), which rank no answers",
    ),
    ({**MESSAGE, "role": "narrator"}, "role 'narrator'"),
    ({**MESSAGE, "context": "Three lamps."}, "field 'context' belongs to the task"),
    ({**MESSAGE, "System Prompt": "Be terse."}, "field 'system_prompt' belongs to the task"),
    ({**MESSAGE, "image": "a.png"}, "field 'image' belongs to the task"),
    ({**MESSAGE, "rank": "first"}, "rank 'first' is not a number from 0"),
    ({**MESSAGE, "rank": float("inf")}, "rank inf"),
    ({**MESSAGE, "rank": -1}, "rank -1"),
    ({**MESSAGE, "rank": True}, "rank True"),
    ({**MESSAGE, "rank": 10**400}, "rank 10{38}00?… is not a number"),
    ({**MESSAGE, "rank": "1" * 400}, "rank '1{39}… is not a number"),
    ({**MESSAGE, "text": 7}, "text is not text"),
    ({**MESSAGE, "text": "\ud800"}, "half a character"),
    ({**MESSAGE, "message_id": ["x"]}, r"message_id \['x'\] is not an id"),
    ({**MESSAGE, "message_id": ""}, "message_id is empty"),
    ({**MESSAGE, "parent_id": {"a": 1}}, r"parent_id \{'a': 1\} is not an id"),
    ({**MESSAGE, "deleted": "maybe"}, "deleted 'maybe' is neither true nor false"),
    ({**MESSAGE, "review_result": 2}, "review_result 2 is neither true nor false"),
]


@pytest.mark.parametrize(("bad", "reason"), REFUSED, ids=lambda one: str(one)[:60])
def test_a_bad_row_of_ranked_data_is_refused_or_skipped(tmp_path, load, bad, reason):
    rows = [*generate_ranked_rows(2), bad, *generate_ranked_rows(1)]
    path = write_lines(tmp_path / "ranked.jsonl", rows)
    with pytest.raises(DataError, match=rf"ranked\.jsonl:9: .*{reason}"):
        load(path)
    rows, skipped, _ = load(path, skip_bad=True)
    assert len(rows) == 12
    assert skipped.total() == 1


def test_ranked_prompts_that_differ_in_space_or_case_are_one():
    rows = make_tree("a", ("x", 0), ("y", 1)) + make_tree("b", ("x", 0), ("y", 1))
    rows[0]["text"], rows[3]["text"] = "What is AI?", "what  is ai? "
    found, outcome = ranked.build_ranked_prompts(rows, "r")
    assert [one.prompt.text for one in found] == ["What is AI?"]
    assert outcome.drops == {"same prompt again": 1, "answer to a prompt that is left out": 2}


@pytest.mark.parametrize("language", ["English", "eng", "en_US", "eng_Latn", "English (US)"])
def test_english_under_other_names_is_used(tmp_path, read, language):
    path = write_lines(tmp_path / "a.jsonl", change(lang=lambda _: language))
    assert read(path) == (WANTED, {"answer without a rank": 1})


def test_messages_without_any_rank_are_refused_with_what_they_have_instead(tmp_path, load):
    rows = [{name: value for name, value in row.items() if name != "rank"} for row in TREES]
    with pytest.raises(DataError, match=r"no message has a rank; give each answer a field 'rank'"):
        load(write_lines(tmp_path / "a.jsonl", rows))
    scored = [{**row, "Score": 7} for row in rows]
    with pytest.raises(DataError, match=r"no message has a rank \(the field 'score' is not used\)"):
        load(write_lines(tmp_path / "a.jsonl", scored))


def test_rows_that_are_there_twice_are_called_so(tmp_path, read):
    other = {**TREES[1], "text": "another"}
    texts, drops = read(write_lines(tmp_path / "a.jsonl", [*TREES, *TREES[:3], other]))
    assert texts == WANTED
    assert drops == {
        "answer without a rank": 1,
        "message that is there twice": 3,
        "id of another message": 1,
    }


def test_the_same_answer_with_two_ranks_counts_once():
    rows = make_tree("a", ("x y", 0), ("z", 1), ("x  y", 2)) + make_tree("b", ("x", 0), ("x", 1))
    found, outcome = ranked.build_ranked_prompts(rows, "r")
    assert [[answer.text for answer in one.responses] for one in found] == [["x y", "z"]]
    assert outcome.drops == {
        "same answer again, with a worse rank": 2,
        "fewer than two ranked answers": 1,
        "answer to a prompt that is left out": 1,
    }


def test_what_oasst_has_beside_a_message_does_no_harm(tmp_path, read):
    beside = {
        "user_id": "u",
        "created_date": "2023-02-05T14:23:50",
        "detoxify": {"toxicity": 0.0},
        "labels": {"name": ["spam"], "value": [0.0]},
        "emojis": {"name": ["+1"]},
        "context": "nan",
        "choices": [],
    }
    rows = [row | beside | {"role": row["role"].title()} for row in TREES]
    assert read(write_lines(tmp_path / "a.jsonl", rows)) == (WANTED, {"answer without a rank": 1})


@pytest.mark.parametrize(
    "text",
    [
        "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: And?\n\nAssistant:",
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "<s>[INST] Why? [/INST]",
    ],
)
def test_a_prompt_that_is_a_dialogue_is_left_out_and_counted(text):
    rows = make_tree("a", ("x", 0), ("y", 1)) + make_tree("b", ("x", 0), ("y", 1))
    rows[0]["text"] = text
    found, outcome = ranked.build_ranked_prompts(rows, "r")
    assert [one.prompt.text for one in found] == ["Question b?"]
    assert outcome.drops == {
        "prompt that is a dialogue, or holds chat markup": 1,
        "answer to a prompt that is left out": 2,
    }


def test_fields_beside_a_tree_and_names_in_capitals_in_it_are_read(tmp_path, load, read):
    answers = [
        {"Message_ID": f"b{n}", "Text": f"{n}", "Role": "assistant", "Rank": n} for n in "01"
    ]
    prompt = {"Message_ID": "a", "Text": "Why?", "Role": "prompter", "Replies": answers}
    path = write_lines(tmp_path / "a.jsonl", [{"message_tree_id": "a", "prompt": prompt}])
    assert read(path)[0] == {"Why?": ["0", "1"]}
    write_lines(path, [{"message_tree_id": "a", "System": "Be terse.", "prompt": prompt}])
    with pytest.raises(DataError, match=r"a\.jsonl:1: field 'system' belongs to the task"):
        load(path)


def test_fields_of_messages_that_are_not_used_are_named(tmp_path, load):
    beside = {"Remark": "Use three words.", "gold_answer": "So it is here.", "score": 7}
    rows = [row | beside | {"labels": ["a"], "user_id": "u"} for row in TREES]
    path = write_lines(tmp_path / "a.jsonl", rows)
    wanted = [f"{path}: fields that are not used: remark, gold_answer, score"]
    assert load(path).notes == wanted
    assert load(write_lines(path, TREES)).notes == []
    path = tmp_path / "a.parquet"
    from datasets import Dataset

    Dataset.from_list([row | {"gold_answer": "So it is."} for row in TREES]).to_parquet(str(path))
    assert load(path).notes == [f"{path}: fields that are not used: gold_answer"]


LOST = (
    *("reference_text", "reference_document", "data", "scenario", "situation", "excerpt", "remark"),
    *("question", "prompt", "instruction", "messages", "turns", "title", "student_answer"),
)


@pytest.mark.parametrize("name", LOST)
def test_a_field_of_messages_with_a_part_of_the_task_is_refused_under_any_name(
    tmp_path, load, name
):
    for answers_too in (False, True):
        rows = [
            row | ({name: f"There are {n} lamps on the shelf."} if answers_too or not n % 4 else {})
            for n, row in enumerate(TREES)
        ]
        path = write_lines(tmp_path / "a.jsonl", rows)
        with pytest.raises(DataError, match=f"a.jsonl:1: field '{name}' belongs to the task and"):
            load(path)
    tree = grow(TREES)
    tree[1]["prompt"]["replies"][0][name] = "There are two lamps on the shelf."
    with pytest.raises(DataError, match=f"trees.jsonl:2: field '{name}' belongs to the task"):
        load(write_lines(tmp_path / "trees.jsonl", tree))


def test_what_the_text_of_a_message_says_already_is_not_lost(tmp_path, load):
    rows = [{**row, "text": f"Say it, but say it {n} times."} for n, row in enumerate(TREES)]
    rows = [row | {"scenario": row["text"].upper(), "question": row["text"]} for row in rows]
    assert len(load(write_lines(tmp_path / "a.jsonl", rows)).rows) == len(TREES)
    rows = [row | {"data": "train", "question": "N/A"} for row in TREES]
    path = write_lines(tmp_path / "a.jsonl", rows)
    assert load(path).notes == [f"{path}: fields that are not used: data, question"]
