"""Copies in a bucket, here in memory: one whole copy at any moment, and nothing sent twice."""

import errno
import shutil
import sys
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from run_contents import read_files
from typer.testing import CliRunner

from selfreward_lite.cli import main
from selfreward_lite.data import votes
from selfreward_lite.data.records import Outcome
from selfreward_lite.data.store import Store
from selfreward_lite.run import bucket
from selfreward_lite.run.ask import Progress
from selfreward_lite.run.backup import Backup, has_copy, restore
from selfreward_lite.run.bucket import Driver, Manifest
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import write_manifest

ROOT, THERE = "memory://bucket/runs", "/bucket/runs/mine/"
WRITES = ("put_file", "pipe_file", "rm_file")


class Vanished(BaseException):
    pass


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """An empty bucket; what it does is recorded, and it vanishes or fails when told to."""
    monkeypatch.setitem(bucket.DRIVERS, "memory", Driver("", "memory://BUCKET", ""))
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    said = Memory()
    for name in WRITES:
        monkeypatch.setattr(MemoryFileSystem, name, said.watch(getattr(MemoryFileSystem, name)))
    return said


class Memory:
    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.left: int | None = None  # writes until the machine vanishes
        self.error: Exception | None = None

    def watch(self, write):
        def watched(system, first, *more):
            path = more[0] if write.__name__ == "put_file" else first
            if self.error:
                raise self.error
            if self.left == 0:
                if write.__name__ == "put_file":  # half of it, where writing is not atomic
                    half = Path(first).read_bytes()[:-1]
                    system.store[path] = type(system.open(path, "wb"))(system, path, half)
                raise Vanished
            self.left = None if self.left is None else self.left - 1
            self.done.append((write.__name__, path.removeprefix(THERE)))
            return write(system, first, *more)

        return watched

    def forget(self) -> None:
        self.done.clear()


def begin(folder: Path) -> None:
    with Store.write(folder) as store:
        store.state("birth", folder.parent.name)
        store.begin_stage(1, "responses", 9)
    work(folder, 0)


def work(folder: Path, item: int) -> None:
    """One more record, model, vote and checkpoint; the checkpoint before it goes."""
    with Store.write(folder) as store:
        store.commit(1, "responses", f"item {item}", Outcome())
    shutil.rmtree(folder / "training", ignore_errors=True)
    for name in (f"M{item}", f"training/checkpoints/step-{item}"):
        (folder / name / "adapter").mkdir(parents=True)
        (folder / name / "adapter" / "weights").write_text(f"weights of {name}")
        write_manifest(folder / name, {})


def copy(folder: Path, *, last: bool = True) -> list[str]:
    said: list[str] = []
    with Store.write(folder) as store:
        Backup(store, ROOT, said.append).copy(last=last)
    return said


def contents(folder: Path) -> dict:
    """Its files; of the records, what they say."""
    with Store.read(folder) as store:
        records = (store.fact("birth"), store.done_items(1, "responses"))
    found = read_files(folder)
    return {name: text for name, text in found.items() if not name.startswith("run.")} | {
        "records": records
    }


def test_what_comes_back_is_what_was_copied(tmp_path):
    mine, other = tmp_path / "first" / "mine", tmp_path / "second" / "mine"
    begin(mine)
    (mine / "base").mkdir()
    (mine / "base" / "base.gguf").write_text("made again")
    assert not has_copy(ROOT, "mine")
    assert copy(mine) == []
    assert has_copy(ROOT, "mine") and not has_copy(ROOT, "min") and not has_copy(ROOT, "mine2")
    assert restore(ROOT, other)
    expected = contents(mine)
    del expected["base/base.gguf"]
    assert contents(other) == expected
    assert (
        "M0/adapter/weights" in expected and "training/checkpoints/step-0/manifest.json" in expected
    )
    assert not restore(ROOT, other), "it is here already"


def test_only_what_changed_is_sent_and_nothing_old_stays(tmp_path, memory):
    mine = tmp_path / "runs" / "mine"
    begin(mine)
    copy(mine)
    memory.forget()
    copy(mine)
    assert memory.done == []
    work(mine, 1)
    copy(mine)
    kinds = [kind for kind, _ in memory.done]
    assert kinds == ["put_file"] * 5 + ["pipe_file"] + ["rm_file"] * 4
    names = [name for _, name in memory.done]
    assert names[5:7] == ["manifest-00000002.json", "manifest-00000001.json"], "last, and first"
    assert all(name.startswith("files/") for name in names[:5] + names[7:])
    manifest = Manifest.model_validate_json(MemoryFileSystem.store[f"{THERE}{names[5]}"].getvalue())
    assert {f"{THERE}{names[5]}", *(f"{THERE}{one.key}" for one in manifest.files.values())} == set(
        MemoryFileSystem.store
    )


def test_at_any_moment_a_whole_copy_is_there(tmp_path, memory):
    """The machine vanishes before each of the writes of a copy, or halfway in it."""
    mine = tmp_path / "runs" / "mine"
    begin(mine)
    old = contents(mine)
    copy(mine)
    before = dict(MemoryFileSystem.store)
    work(mine, 1)
    new, seen = contents(mine), []
    for writes in range(20):
        MemoryFileSystem.store.clear()
        MemoryFileSystem.store.update(before)
        memory.left = writes
        try:
            copy(mine)
            break
        except Vanished:
            memory.left = None
        restored = tmp_path / f"machine-{writes}" / "mine"
        restore(ROOT, restored)
        found = contents(restored)
        assert found in (old, new)
        seen.append(found == new)
        work(restored, 2)
        assert copy(restored) == [], "the other machine goes on from there"
        assert restore(ROOT, tmp_path / f"third-{writes}" / "mine")
        assert contents(tmp_path / f"third-{writes}" / "mine") == contents(restored)
        assert len(list(MemoryFileSystem.store)) == 1 + len(
            {file.key for file in read_newest().files.values()}
        ), "what the vanished machine left is gone"
    assert seen == [False] * 6 + [True] * 4


def read_newest() -> Manifest:
    newest = bucket.Bucket(ROOT, "mine").read_newest()
    assert newest
    return newest


def test_the_first_copy_counts_only_when_it_is_whole(tmp_path, memory):
    mine = tmp_path / "runs" / "mine"
    begin(mine)
    memory.left = 5
    with pytest.raises(Vanished):
        copy(mine)
    assert MemoryFileSystem.store and not has_copy(ROOT, "mine")
    with pytest.raises(UserError, match="no copy of a run there"):
        restore(ROOT, tmp_path / "other" / "mine")
    assert not (tmp_path / "other").exists()


def test_half_a_manifest_is_none(tmp_path):
    mine = tmp_path / "runs" / "mine"
    begin(mine)
    copy(mine)
    whole = MemoryFileSystem.store[f"{THERE}manifest-00000001.json"].getvalue()
    MemoryFileSystem().pipe_file(f"{THERE}manifest-00000002.json", whole[: len(whole) // 2])
    assert restore(ROOT, tmp_path / "other" / "mine")
    work(mine, 1)
    copy(mine)
    assert [name for name in MemoryFileSystem.store if "manifest" in name] == [
        f"{THERE}manifest-00000003.json"
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"birth": "an', "EOF while parsing"),
        (b'{"birth": "another", "items": 0, "contents": {}}', "Field required"),
        (
            b'{"birth": null, "items": 0, "files": {"../x": {"size": 1, "sha256": "%s"}}}'
            % (b"0" * 64),
            "leads out",
        ),
    ],
)
def test_a_copy_that_cannot_be_read_is_neither_restored_nor_overwritten(tmp_path, text, words):
    begin(tmp_path / "runs" / "mine")
    MemoryFileSystem().pipe_file(f"{THERE}files/{'0' * 64}", b"x")
    MemoryFileSystem().pipe_file(f"{THERE}manifest-00000001.json", text)
    before = dict(MemoryFileSystem.store)
    for use in (
        lambda: copy(tmp_path / "runs" / "mine"),
        lambda: restore(ROOT, tmp_path / "other" / "mine"),
        lambda: has_copy(ROOT, "mine"),
    ):
        with pytest.raises(UserError, match=f"cannot be read .*{words}.*move that copy away"):
            use()
    assert before == MemoryFileSystem.store
    assert not (tmp_path / "other").exists()


def test_a_full_disk_here_is_not_blamed_on_the_bucket(tmp_path, monkeypatch):
    begin(tmp_path / "runs" / "mine")
    copy(tmp_path / "runs" / "mine")

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MemoryFileSystem, "get_file", refuse)
    with pytest.raises(OSError, match="No space left") as caught:
        restore(ROOT, tmp_path / "other" / "mine")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("name", ["run.sqlite", "M0/adapter/weights"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_copy_is_refused_by_name_and_repaired(tmp_path, name, damage):
    mine = tmp_path / "runs" / "mine"
    begin(mine)
    copy(mine)
    path = f"{THERE}{read_newest().files[name].key}"
    content = MemoryFileSystem.store[path].getvalue()
    if damage == "remove":
        MemoryFileSystem().rm_file(path)
    else:
        bad = content[:-1] if damage == "cut" else content[:-1] + b"!"
        MemoryFileSystem().pipe_file(path, bad)
    with pytest.raises(UserError, match=f"{name} (is missing|differs)"):
        restore(ROOT, tmp_path / "other" / "mine")
    assert not list((tmp_path / "other").glob("*"))
    if damage != "flip":  # of the same size: only restoring reads it
        copy(mine)
        assert restore(ROOT, tmp_path / "other" / "mine")


@pytest.mark.parametrize("name", ["../evil", "/evil", "M0/../../evil", "M0//evil", "."])
def test_a_manifest_cannot_lead_out_of_the_folder(name):
    file = {"size": 1, "sha256": "0" * 64}
    with pytest.raises(ValueError, match="leads out of the run's folder"):
        Manifest.model_validate({"birth": None, "items": 0, "files": {name: file}})
    with pytest.raises(ValueError, match="sha256"):
        Manifest.model_validate(
            {"birth": None, "items": 0, "files": {"M0/x": {"size": 1, "sha256": "../../evil"}}}
        )


def test_the_copy_of_another_or_newer_run_is_never_overwritten(tmp_path):
    mine = tmp_path / "first" / "mine"
    begin(mine)
    copy(mine)
    begin(tmp_path / "second" / "mine")
    with pytest.raises(UserError, match=r"another run, .*--restore-from"):
        copy(tmp_path / "second" / "mine")
    restore(ROOT, tmp_path / "third" / "mine")
    with Store.write(mine) as store:
        said: list[str] = []
        old = Backup(store, ROOT, said.append)
        work(tmp_path / "third" / "mine", 1)
        copy(tmp_path / "third" / "mine")
        newer = dict(MemoryFileSystem.store)
        old.copy()
        assert "a newer copy of this one" in said[0] and "the run continues" in said[0]
    assert newer == MemoryFileSystem.store


def test_a_bucket_that_fails_stops_nothing_and_is_caught_up(tmp_path, memory):
    mine, said = tmp_path / "runs" / "mine", []
    begin(mine)
    with Store.write(mine) as store:
        copies = Backup(store, ROOT, said.append)
        memory.error = ConnectionError("no route to host")
        watch = copies.watching(lambda at: None)
        for _ in range(3):
            watch(Progress(1, "responses", 9, done=9))
        assert said == [
            "memory://bucket/runs/mine: not copied there (ConnectionError: no route to host); "
            "the run continues, and tries again"
        ]
        copies.copy(last=True)
        assert said[1].endswith("the same command tries again")
        memory.error = None
        copies.copy()
    assert said[2].endswith("copied there again, with all that was missing")
    assert restore(ROOT, tmp_path / "other" / "mine")


def test_a_bucket_that_cannot_be_read_is_said_before_a_run_starts(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "find", refuse)
    begin(tmp_path / "runs" / "mine")
    with pytest.raises(UserError, match=r"cannot be used \(PermissionError: Access Denied\); fix"):
        copy(tmp_path / "runs" / "mine")
    with pytest.raises(UserError, match=r"cannot be read \(PermissionError.*--restore-from out"):
        restore(ROOT, tmp_path / "other" / "mine")


def test_pruned_models_and_earlier_votes_stay_there(tmp_path):
    mine = tmp_path / "runs" / "mine"
    begin(mine)
    work(mine, 1)
    with Store.write(mine) as store:
        (store.folder / votes.FILE).write_bytes((mine / "run.sqlite").read_bytes())
        Backup(store, ROOT, print).copy()
    shutil.rmtree(mine / "M0")
    shutil.rmtree(mine / "training")
    (mine / votes.FILE).unlink()
    copy(mine, last=False)
    names = set(read_newest().files)
    assert {"M0/adapter/weights", "M1/adapter/weights", votes.FILE} <= names
    assert not [name for name in names if name.startswith("training/")], "the training is over"


SECRET = "wJalrXUtnFEMI-K7MDENG"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (f"s3://key:{SECRET}@bucket/runs", "may hold a key or a password"),
        (f"s3://bucket/runs?X-Amz-Signature={SECRET}", "AWS_ACCESS_KEY_ID"),
        (f"https://key:{SECRET}@host/runs", "other addresses cannot"),
        (f"simplecache::s3://key:{SECRET}@bucket/runs", "other addresses cannot"),
        ("s3:/bucket/runs", "other addresses cannot"),
        ("s3://", "is no address of a bucket; give s3://BUCKET/FOLDER"),
        ("hf://owner/name", "give hf://buckets/OWNER/NAME"),
    ],
)
@pytest.mark.parametrize("option", ["--mirror", "--restore-from"])
def test_bad_addresses_are_one_line_without_keys_and_make_nothing(tmp_path, address, words, option):
    ended = CliRunner().invoke(
        main.app, ["run", option, address, "--runs-dir", str(tmp_path / "runs")]
    )
    assert isinstance(ended.exception, UserError)
    assert words in str(ended.exception) and SECRET not in str(ended.exception)
    assert SECRET not in ended.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("address", "module", "command"),
    [
        ("s3://bucket/runs", "s3fs", "pip install s3fs==2026.2.0"),
        ("gs://bucket/runs", "gcsfs", "pip install gcsfs==2026.2.0"),
        ("hf://buckets/owner/name", "huggingface_hub", "pip install huggingface_hub"),
    ],
)
def test_a_missing_driver_is_named(monkeypatch, address, module, command):
    monkeypatch.setitem(sys.modules, module, None)
    for name in ("registry", "_registry"):  # of drivers that were imported before
        monkeypatch.setattr(sys.modules["fsspec.registry"], name, {})
    with pytest.raises(UserError, match=f"cannot be imported .*{module}.*{command}"):
        bucket.Bucket(address, "mine")


def test_a_driver_that_cannot_start_is_one_line(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("no default credentials")

    monkeypatch.setattr(MemoryFileSystem, "_strip_protocol", refuse)
    with pytest.raises(UserError, match="cannot be used .*no default credentials.*keys are read"):
        bucket.Bucket(ROOT, "mine")


def test_no_key_is_in_a_message(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    error = OSError(
        f"PUT https://me:pass@host/x?X-Amz-Signature=abcdef refused\nfor {SECRET} " + "x" * 999
    )
    said = bucket.describe(error)
    assert said.startswith("OSError: PUT https://…@host/x?… refused for … xxx")
    assert len(said) == 300
