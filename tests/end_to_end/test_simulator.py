"""Runs in one process on a disk that fails: what the disk does, and what the runs must survive."""

import errno
import os
from pathlib import Path

import planted_bugs
import pytest
import simulator
from simulated_disk import ERROR, FULL, KILL, LOST, POWER, Dead
from small_disk import LUCKS, SmallDisk, after_power_cuts

from selfreward_lite.method import canaries
from selfreward_lite.system.files import atomic_write, sync

HITS = 20  # of every moment


# -- the disk ----------


def write_and_sync(folder: Path) -> None:
    (folder / "file").write_text("whole")
    sync(folder / "file")
    sync(folder)


def write_more(folder: Path) -> None:
    write_and_sync(folder)
    with (folder / "file").open("a") as file:
        file.write(" and more")


def test_what_was_synced_survives_a_power_cut(tmp_path):
    for disk in after_power_cuts(tmp_path, write_and_sync):
        assert (disk.folder / "file").read_text() == "whole"


def test_what_was_not_synced_may_be_gone_torn_or_there(tmp_path):
    found = {
        (disk.folder / "file").read_text() if disk.names() else None
        for disk in after_power_cuts(tmp_path, lambda folder: (folder / "f").write_text(""))
        if "file" in disk.names() or not disk.names()
    }
    assert found == {None}
    left = [(one.folder / "file").read_bytes() for one in after_power_cuts(tmp_path, write_more)]
    assert {b"whole", b"whole and more"} < set(left)
    assert any(b"\0" in content for content in left)
    assert any(len(content) < len(b"whole") for content in left), "torn in the middle"


def test_a_rename_may_be_undone_until_its_folder_is_synced(tmp_path):
    def replace(folder: Path) -> None:
        write_and_sync(folder)
        (folder / "new").write_text("new")
        sync(folder / "new")
        os.replace(folder / "new", folder / "file")

    def replace_and_sync(folder: Path) -> None:
        replace(folder)
        sync(folder)

    def contents(work):
        return {(one.folder / "file").read_text() for one in after_power_cuts(tmp_path, work)}

    assert contents(replace) == {"whole", "new"}
    assert contents(replace_and_sync) == {"new"}


def test_an_atomic_write_survives_a_power_cut(tmp_path):
    def write(folder: Path) -> None:
        with atomic_write(folder / "file") as part:
            part.write_text("whole")

    for disk in after_power_cuts(tmp_path, write):
        assert (disk.folder / "file").read_text() == "whole"
        assert disk.names() == {"file"}


def test_a_killed_process_writes_nothing_more(tmp_path):
    disk = SmallDisk(tmp_path)

    def work(folder: Path) -> None:
        (folder / "first").write_text("kept, though not synced")
        try:
            os.rename(folder / "first", folder / "second")
        finally:
            (folder / "late").write_text("by a finally block")

    assert isinstance(disk.run(work, rename=KILL), Dead)
    assert disk.names() == {"first"}
    assert (disk.folder / "first").read_text() == "kept, though not synced"


def test_a_full_disk_takes_half_and_stays_full_until_the_process_ends(tmp_path):
    disk, codes = SmallDisk(tmp_path), []

    def work(folder: Path) -> None:
        for name in "ab":
            try:
                (folder / name).write_text("0123456789")
            except OSError as error:
                codes.append(error.errno)

    disk.run(work, write=FULL)
    assert codes == [errno.ENOSPC, errno.ENOSPC]
    assert disk.names() == {"a"} and (disk.folder / "a").read_text() == "01234"
    assert disk.run(work) is None
    assert (disk.folder / "b").read_text() == "0123456789"


def test_an_error_when_reading_has_the_name_of_the_file(tmp_path):
    disk = SmallDisk(tmp_path)
    disk.run(write_and_sync)
    failed = disk.run(lambda folder: (folder / "file").read_text(), read=ERROR)
    assert isinstance(failed, OSError) and failed.errno == errno.EIO
    assert failed.filename == str(disk.folder / "file")


def test_a_lost_sync_makes_nothing_safe(tmp_path):
    left = set()
    for luck in range(LUCKS):
        disk = SmallDisk(tmp_path, luck)
        assert disk.run(write_and_sync, sync=LOST) is None
        disk.disk.cut_power()
        left.add("file" in disk.names())
    assert left == {True, False}


# -- runs ----------


def test_some_seeds_end_like_an_undisturbed_run():
    count = len(simulator.make_catalog().points)
    results = [simulator.run_seed(seed) for seed in range(0, count, count // 5)]
    assert not [result for result in results if result.failure]
    assert all(result.happened for result in results)
    assert results[0] == simulator.run_seed(0), "a seed says all"
    assert len(canaries.load_hostile_texts(canaries.CANARY)) > 2, "what was made faster is undone"


@pytest.mark.slow
def test_thousands_of_seeds_end_like_an_undisturbed_run():
    count = max(2000, HITS * len(simulator.make_catalog().points))
    results = simulator.run_seeds(range(count))
    print("\n" + simulator.describe(results))
    assert not [result.seed for result in results if result.failure]
    few = {
        point: counts.total()
        for point, counts in simulator.count_hits(results).items()
        if counts.total() < HITS
    }
    assert not few


@pytest.mark.slow
@pytest.mark.parametrize("bug", planted_bugs.BUGS)
def test_planted_bugs_are_found(bug):
    found = simulator.find_bug(bug, 2000)
    assert found is not None
    print(f"\n{bug}: seed {found.seed}, {found.happened}: {found.failure.splitlines()[0]}")
    assert not simulator.run_seed(found.seed).failure, "without the bug this seed is fine"


def test_the_disk_has_all_faults_at_its_moments():
    moments = simulator.make_catalog().scenarios["mirror"].moments
    kinds = {kind for _, possible in moments.values() for kind in possible}
    assert kinds == {"kill", "power", "torn", "full", "error", "lost", "dies"}
    assert POWER in moments["sqlite COMMIT"][1]
