"""Files and folders on a simulated disk: what a power cut, a kill or a full disk leaves of them."""

import errno
from pathlib import Path

import pytest
from simulated_disk import FULL, Dead
from small_disk import SmallDisk, after_power_cuts

from selfreward_lite.system.files import (
    MANIFEST,
    copy_files,
    copy_folder,
    find_manifest_faults,
    make_folder,
    write_manifest,
)


def make_model(folder: Path) -> None:
    (folder / "M0" / "adapter").mkdir(parents=True)
    (folder / "M0" / "adapter" / "weights").write_text("weights" * 99)
    (folder / "M0" / "adapter.gguf").write_text("gguf" * 99)
    write_manifest(folder / "M0", {})


def make_and_copy(folder: Path) -> None:
    make_model(folder)
    make_folder(folder / "mirror" / "run")
    copy_folder(folder / "M0", folder / "mirror" / "run" / "M0")


@pytest.mark.parametrize("name", ["M0", "mirror/run/M0"])
def test_a_folder_with_a_manifest_is_whole_after_a_power_cut(tmp_path, name):
    for disk in after_power_cuts(tmp_path, make_and_copy):
        assert find_manifest_faults(disk.folder / name) == []


def test_a_folder_and_those_above_it_survive_a_power_cut(tmp_path):
    for disk in after_power_cuts(tmp_path, lambda folder: make_folder(folder / "a" / "b" / "c")):
        assert (disk.folder / "a" / "b" / "c").is_dir()


def test_what_is_there_stays_while_the_rest_is_copied(tmp_path):
    """A mirror has the adapter first; killed anywhere, the copy of the whole model keeps it."""

    def copy_adapter(folder: Path) -> None:
        make_model(folder)
        copy_files(folder / "M0" / "adapter", folder / "there" / "adapter")

    ended = 0
    for moments in range(40):
        disk = SmallDisk(tmp_path, moments)
        assert disk.run(copy_adapter) is None
        failed = disk.run(
            lambda folder: copy_folder(folder / "M0", folder / "there"), moments=moments
        )
        assert (disk.folder / "there" / "adapter" / "weights").read_text() == "weights" * 99
        if failed is None:
            break
        assert isinstance(failed, Dead)
        ended += 1
        assert disk.run(lambda folder: copy_folder(folder / "M0", folder / "there")) is None
        assert find_manifest_faults(disk.folder / "there") == []
        assert not list(disk.folder.rglob("*.part"))
    assert ended > 5


def test_a_copy_of_another_model_replaces_all_of_the_old_one(tmp_path):
    make_model(tmp_path / "old")
    (tmp_path / "old" / "M0" / "more").write_text("more")
    write_manifest(tmp_path / "old" / "M0", {})
    make_model(tmp_path / "new")
    (tmp_path / "new" / "M0" / "adapter.gguf").write_text("other")
    write_manifest(tmp_path / "new" / "M0", {})
    for source in ("old", "new"):
        copy_folder(tmp_path / source / "M0", tmp_path / "there")
    assert find_manifest_faults(tmp_path / "there") == []
    assert {path.name for path in (tmp_path / "there").iterdir()} == {
        "adapter",
        "adapter.gguf",
        MANIFEST,
    }


def test_a_copy_that_fails_says_why_by_number(tmp_path):
    disk = SmallDisk(tmp_path)
    disk.run(make_model)
    failed = disk.run(lambda folder: copy_files(folder / "M0", folder / "there"), write=FULL)
    assert isinstance(failed, OSError) and failed.errno == errno.ENOSPC
