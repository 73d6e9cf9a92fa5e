"""OASST message trees: the same ranked prompts from every kind of file; drops are counted."""

from collections import Counter
from pathlib import Path

import pytest
from oasst_trees import (
    FAULTS,
    Forest,
    forest,
    write_csv,
    write_hub_folder,
    write_jsonl,
    write_parquet,
)

from selfreward_lite import config
from selfreward_lite.data import ranked
from selfreward_lite.data.data_files import read_rows
from selfreward_lite.data.prompt_rows import extract_prompts
from selfreward_lite.data.store import Store
from selfreward_lite.report import summary
from selfreward_lite.system.errors import DataError

RUN = "seed 0"


@pytest.fixture(scope="module")
def grown() -> Forest:
    return forest(300, seed=7)


def settings(source: Path, **changes: str) -> config.Settings:
    return config.load(
        "overnight", {"seed_stage.ranked": str(source), "model.base": "tiny", **changes}
    )


def read(source: Path, **changes: str) -> tuple[dict[str, list[str]], Counter[str]]:
    rows, skipped, _ = ranked.load_ranked_rows(settings(source, **changes))
    found, outcome = ranked.build_ranked_prompts(rows, RUN)
    texts = {one.prompt.text: [response.text for response in one.responses] for one in found}
    return texts, skipped + outcome.drops


WRITERS = {
    "trees.jsonl": write_jsonl,
    "trees.parquet": write_parquet,
    "trees.csv": write_csv,
    "hub": write_hub_folder,
}


@pytest.mark.parametrize("name", WRITERS)
def test_from_every_kind_of_file_the_same_ranked_prompts(grown, tmp_path, name):
    found, drops = read(WRITERS[name](tmp_path / name, grown.messages))
    assert found == grown.kept
    assert drops == grown.drops


def test_every_fault_was_met(grown):
    assert len(grown.drops) == 9
    assert len({fault.__name__ for fault in FAULTS}) == 10
    assert 180 <= len(grown.kept) <= 260
    assert any(message["message_id"].endswith("-q") for message in grown.messages), "deep trees"


def test_answers_stand_before_their_prompt_and_apart_from_it(grown, tmp_path):
    # Real files hold messages in any order; nothing may depend on a parent coming first.
    backwards = write_jsonl(tmp_path / "backwards.jsonl", reversed(grown.messages))
    assert read(backwards)[0] == grown.kept


def test_prompts_come_from_the_first_turn_of_a_data_set_too(grown, tmp_path):
    folder = write_hub_folder(
        tmp_path / "hub", [one for one in grown.messages if one["parent_id"] is None]
    )
    texts = extract_prompts(read_rows(folder, skip_bad=False))
    assert set(grown.kept) <= set(texts)


def test_a_broken_folder_is_one_line(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no data file in it; give a folder"):
        read_rows(tmp_path / "none", skip_bad=False)
    folder = write_hub_folder(tmp_path / "cut", forest(20).messages)
    table = next(folder.rglob("train*.parquet"))
    table.write_bytes(table.read_bytes()[:-40])
    with pytest.raises(DataError, match="not a complete Parquet file.*export it again") as error:
        read_rows(folder, skip_bad=False)
    assert len(str(error.value).splitlines()) == 1


def test_a_folder_of_json_lines_is_read_file_by_file(grown, tmp_path):
    half = len(grown.messages) // 2
    for name, part in (("a.jsonl", grown.messages[:half]), ("b.jsonl", grown.messages[half:])):
        (tmp_path / "lines").mkdir(exist_ok=True)
        write_jsonl(tmp_path / "lines" / name, part)
    assert read(tmp_path / "lines")[0] == grown.kept
    (tmp_path / "lines" / "b.jsonl").open("a").write("{broken\n")
    with pytest.raises(DataError, match=rf"b\.jsonl:{len(grown.messages) - half + 1}: not JSON"):
        read(tmp_path / "lines")
    found, drops = read(tmp_path / "lines", skip_bad="true")
    assert found == grown.kept
    assert drops["not JSON"] == 1


def test_shares_are_disjoint_by_tree_and_must_be_large_enough(grown, tmp_path):
    source = write_jsonl(tmp_path / "trees.jsonl", grown.messages)
    wanted = settings(source, **{"seed_stage.eval_prompts": "40", "seed_stage.ift_examples": "60"})
    found, _ = ranked.build_ranked_prompts(ranked.load_ranked_rows(wanted)[0], RUN)
    parts = ranked.split_ranked(found, wanted)
    texts = [
        {one.prompt.text for one in share} for share in (parts.evaluation, parts.eft, parts.ift)
    ]
    assert [len(one) for one in texts] == [40, len(grown.kept) - 100, 60]
    assert len(set().union(*texts)) == len(grown.kept)
    with pytest.raises(
        DataError, match=r"too few for 190 evaluation prompts and 3200 IFT prompts; lower"
    ):
        ranked.split_ranked(found, settings(source, **{"seed_stage.ift_examples": "3200"}))


def test_counts_stand_beside_the_papers(grown, tmp_path):
    source = write_jsonl(tmp_path / "trees.jsonl", grown.messages)
    wanted = settings(source, **{"seed_stage.eval_prompts": "40"})
    found, outcome = ranked.build_ranked_prompts(ranked.load_ranked_rows(wanted)[0], RUN)
    with Store.write(tmp_path / "run") as store:
        store.state("run", RUN)
        store.state("settings", wanted.model_dump(mode="json"))
        assert summary.build_seed_table(store).rows == []
        store.begin_stage(0, "ranked", 1)
        store.commit(0, "ranked", "all", outcome)
        store.end_stage(0, "ranked")
        store.measure(0, eft_examples=77, ift_examples=0)
        head, rows = summary.build_seed_table(store)
    held_out = ranked.split_ranked(found, wanted).evaluation
    assert head == ["seed data", "here", "arXiv 2401.10020"]
    assert rows == [
        ["first-turn prompts with two ranked answers", f"{len(grown.kept):,}", "–"],
        ["evaluation prompts", "40", "about 190"],
        ["ranked answers to them", f"{sum(len(one.responses) for one in held_out):,}", "541"],
        ["EFT examples", "77", "1,630"],
        ["IFT examples", "0", "3,200"],
    ]
