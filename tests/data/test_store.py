"""Records and the store: ids, atomic commits, locks, manifests, damage."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from simulated_disk import POWER, Dead
from small_disk import SmallDisk

from selfreward_lite.data.records import (
    Comparison,
    Judgment,
    Outcome,
    Prompt,
    Response,
    derive_id,
    make_id,
    seed_for,
)
from selfreward_lite.data.store import Store
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import find_manifest_faults, write_manifest


def prompt(run: str, index: int, text: str = "same text") -> Prompt:
    return Prompt(make_id(run, Prompt, 1, "generated", index), 1, "generated", index, text)


def new_store(folder) -> Store:
    store = Store.write(folder)
    store.state("run", "seed 0")
    return store


def test_equal_texts_are_two_records(tmp_path):
    with new_store(tmp_path) as store:
        store.commit(1, "prompts", "all", Outcome((prompt("seed 0", 0), prompt("seed 0", 1))))
        assert len(store.records(Prompt)) == 2


def test_a_repeated_commit_changes_nothing(tmp_path):
    with new_store(tmp_path) as store:
        first = Outcome((prompt("seed 0", 0, "first"),), Counter(short=3))
        store.commit(1, "prompts", "all", first)
        store.commit(
            1, "prompts", "all", Outcome((prompt("seed 0", 0, "second"),), Counter(short=9))
        )
        assert [one.text for one in store.records(Prompt)] == ["first"]
        assert store.drops(1, "prompts") == {"short": 3}


def test_records_come_back_as_they_were(tmp_path):
    judgment = Judgment(
        make_id("seed 0", Judgment, 1, "M0", "r", 3),
        1,
        "M0",
        "r",
        3,
        "ä\nScore: 4.5",
        "stop",
        7,
        4.5,
        None,
    )
    unread = Judgment(
        make_id("seed 0", Judgment, 1, "M0", "r", 4), 1, "M0", "r", 4, "", "length", 7, None, None
    )
    with new_store(tmp_path) as store:
        store.commit(1, "judgments", "r", Outcome((judgment, unread)))
        assert store.records(Judgment, response_id="r") == [judgment, unread]
        assert store.records(Judgment, score=None) == [unread]
        assert store.count(Judgment, iteration=2) == 0


def test_an_outcome_is_kept_whole_or_not_at_all(tmp_path):
    broken = Response("x", 1, "M0", "p", 0, object(), "stop", 1)  # type: ignore[arg-type]  # SQLite cannot hold it
    with new_store(tmp_path) as store:
        with pytest.raises(TypeError):
            store.commit(1, "responses", "p", Outcome((prompt("seed 0", 0), broken)))
        assert store.count(Prompt) == 0
        assert store.done_items(1, "responses") == set()


def test_a_second_writer_is_refused_by_name(tmp_path):
    with new_store(tmp_path), pytest.raises(UserError, match=str(os.getpid())):
        Store.write(tmp_path)
    Store.write(tmp_path).close()


def test_a_killed_writer_leaves_no_lock(tmp_path):
    code = textwrap.dedent(f"""
        from pathlib import Path
        from selfreward_lite.data.store import Store
        Store.write(Path({str(tmp_path)!r}))
        print('in', flush=True)
        input()
    """)
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.stdout.readline()
    with pytest.raises(UserError, match=str(child.pid)):
        Store.write(tmp_path)
    child.send_signal(signal.SIGKILL)
    child.wait()
    Store.write(tmp_path).close()


def test_readable_while_written(tmp_path):
    with new_store(tmp_path) as store:
        reader = Store.read(tmp_path)
        with store.transaction():
            store._insert(prompt("seed 0", 0))
            assert reader.count(Prompt) == 0
        assert reader.count(Prompt) == 1
        reader.close()


def test_sigkill_loses_no_committed_record(tmp_path):
    code = textwrap.dedent(f"""
        from pathlib import Path
        from selfreward_lite.data.records import *
        from selfreward_lite.data.store import Store
        store = Store.write(Path({str(tmp_path)!r})); store.state("run", "seed 0")
        for index in range(100000):
            key = (1, "generated", index)
            prompt = Prompt(make_id("seed 0", Prompt, *key), *key, "t")
            store.commit(1, "prompts", str(index), Outcome((prompt,)))
            print(index, flush=True)
    """)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for _ in range(300):
        last = int(child.stdout.readline())
    child.kill()
    last = max([last, *(int(line) for line in child.stdout.read().splitlines()[:-1])])
    child.wait()
    with Store.write(tmp_path) as store:
        assert {one.index for one in store.records(Prompt)} >= set(range(last + 1))
        assert store.faults() == []


def test_verify_finds_false_ids_and_changed_texts(tmp_path):
    with new_store(tmp_path) as store:
        store.commit(1, "prompts", "all", Outcome((prompt("seed 0", 0), prompt("another run", 1))))
        assert any("id does not follow" in fault for fault in store.faults())
    connection = sqlite3.connect(tmp_path / "run.sqlite")
    connection.execute("UPDATE record_prompt SET text = 'changed' WHERE \"index\" = 0")
    connection.commit()
    connection.close()
    with Store.read(tmp_path) as store:
        assert any("content was changed" in fault for fault in store.faults())


def test_a_folder_without_its_manifest_does_not_exist(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_bytes(b"1234")
    assert "no manifest" in find_manifest_faults(tmp_path)[0]
    write_manifest(tmp_path, {"iteration": 1})
    assert find_manifest_faults(tmp_path) == []
    (tmp_path / "adapter" / "weights").write_bytes(
        b"1235"
    )  # one flipped bit loads without complaint elsewhere
    assert "differs" in find_manifest_faults(tmp_path)[0]
    (tmp_path / "adapter" / "weights").unlink()
    assert "missing" in find_manifest_faults(tmp_path)[0]


def test_another_store_format_is_refused_with_advice(tmp_path):
    Store.write(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "run.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for opening in (Store.write, Store.read):
        with pytest.raises(UserError, match="format 99"):
            opening(tmp_path)


def test_no_run_says_how_to_start_one(tmp_path):
    with pytest.raises(UserError, match="selfreward_lite run"):
        Store.read(tmp_path / "nothing")


def test_ids_and_seeds_follow_from_keys_alone():
    one = prompt("seed 0", 5)
    assert derive_id("seed 0", one) == one.id
    assert derive_id("seed 1", one) != one.id
    seeds = [seed_for(0, f"{one.id}:{index}") for index in range(1000)]
    assert seeds == [seed_for(0, f"{one.id}:{index}") for index in range(1000)]
    assert len(set(seeds)) == 1000
    assert max(seeds) < 0xFFFFFFFF


def as_older_version(folder) -> None:
    """Take the column and a table away that an older version did not have."""
    with sqlite3.connect(folder / "run.sqlite") as database:
        database.execute("ALTER TABLE record_judgment DROP COLUMN source")
        database.execute("DROP TABLE record_comparison")


def test_an_older_run_is_read_and_goes_on(tmp_path):
    key = (1, "M0", "r", 3)
    old = Judgment(make_id("seed 0", Judgment, *key), *key, "fine", "stop", 9, 4.0, None)
    new = Judgment(
        make_id("seed 0", Judgment, 1, "M0", "r", 4), 1, "M0", "r", 4, "", "stop", 9, 4.0, None,
        source="forced",
    )  # fmt: skip
    with new_store(tmp_path) as store:
        store.commit(1, "judgments", "r", Outcome((old,)))
    as_older_version(tmp_path)
    with Store.read(tmp_path) as store:
        assert store.records(Judgment) == [old]
        assert store.records(Comparison) == [] and store.count(Comparison) == 0
    with Store.write(tmp_path) as store:
        store.commit(1, "judgments", "s", Outcome((new,)))
        assert store.records(Judgment) == [old, new]
        assert store.records(Comparison) == []
        assert store.faults() == []


def test_a_changed_added_field_is_found(tmp_path):
    key = (1, "M0", "r", 3)
    judgment = Judgment(make_id("seed 0", Judgment, *key), *key, "fine", "stop", 9, 4.0, None)
    with new_store(tmp_path) as store:
        store.commit(1, "judgments", "r", Outcome((judgment,)))
        store.select("UPDATE record_judgment SET source = 'forced'")
        assert "changed after it was written" in store.faults()[0]


def test_what_a_training_reported_survives_a_power_cut(tmp_path):
    """It resumes from a checkpoint behind these steps, and does not report them again."""
    for luck in range(20):
        disk = SmallDisk(tmp_path, luck)

        def work(folder: Path, disk=disk) -> None:
            with Store.write(folder / "run") as store:
                store.log_training(1, 1, {"loss": 0.5})
                disk.disk.die(POWER)

        assert isinstance(disk.run(work), Dead)
        with Store.read(disk.folder / "run") as store:
            assert store.training(1) == [(1, "loss", 0.5)]
