"""Backups: the copy is complete at any moment, and another machine resumes from it."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import scripted_run
from run_contents import read_contents
from scripted_runtime import ScriptedRuntime, scripted_runtime
from typer.testing import CliRunner

from selfreward_lite.cli import main
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.run import backup, loop, prepare
from selfreward_lite.run.ask import Progress
from selfreward_lite.run.backup import Backup, restore
from selfreward_lite.system import files
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import write_manifest
from selfreward_lite.training import checkpoints

pytestmark = pytest.mark.slow  # runs that vanish and come back, a third of a minute


class Vanished(BaseException):
    pass


def run(
    folder: Path,
    root: Path,
    vanish_after: int | None = None,
    vanish_in: tuple[int, str] | None = None,
) -> list[str]:
    """A scripted run with a backup; after some events, or in a stage of an iteration, the machine
    is gone. Returns its messages."""
    said: list[str] = []
    events = 0

    def watch(at: Progress) -> None:
        nonlocal events
        events += 1
        if events == vanish_after or (at.iteration, at.stage) == vanish_in:
            raise Vanished

    with Store.write(folder) as store:
        settings = prepare.load_or_create_settings(store, scripted_run.SMALL, "tiny")
        copies = Backup(store, root, said.append)
        loop.run(
            store, settings, scripted_runtime(ChatFormat.load(TINY_MODEL)), copies.watching(watch)
        )
        copies.copy(last=True)
    return said


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("whole") / "run"
    scripted_run.run(folder)
    return read_contents(folder)


@pytest.mark.parametrize(
    "events", [3, 250, *(pytest.param(events, marks=pytest.mark.slow) for events in (60, 420))]
)
def test_another_machine_resumes_from_the_copy_with_equal_result(tmp_path, whole, events):
    drive = tmp_path / "drive"
    with pytest.raises(Vanished):
        run(tmp_path / "first" / "run", drive, vanish_after=events)
    shutil.rmtree(tmp_path / "first")  # with the base, and all that was not copied
    second = tmp_path / "second" / "run"
    if not (drive / "run" / "run.sqlite").exists():
        assert events == 3, "gone before the first stage was over"
        return
    assert restore(drive, second)
    with Store.read(second) as store:
        committed = sum(len(store.done_items(t, stage)) for t, stage, *_ in store.stages())
    assert committed > 0
    run(second, drive)
    assert read_contents(second) == whole
    assert records(second) == records(drive / "run"), "and the copy is up to date"


def records(folder: Path) -> dict:
    """All that there is of a run, but for its base."""
    return {name: value for name, value in read_contents(folder).items() if name != "base"}


def test_a_machine_that_vanishes_during_an_export_loses_no_training(tmp_path, whole, monkeypatch):
    drive, second = tmp_path / "drive", tmp_path / "second" / "run"
    with pytest.raises(Vanished):
        run(tmp_path / "first" / "run", drive, vanish_in=(1, "export"))
    shutil.rmtree(tmp_path / "first")
    adapter = drive / "run" / "M1" / "adapter" / "adapter_model.safetensors"
    assert adapter.exists() and not (drive / "run" / "M1" / "manifest.json").exists()
    assert restore(drive, second)
    with Store.read(second) as store:
        assert store.is_done(1, "training")
    run(second, drive)
    assert read_contents(second) == whole
    assert records(second) == records(drive / "run")


def test_what_is_here_already_is_gone_on_with(tmp_path):
    run(tmp_path / "runs" / "run", tmp_path / "drive")
    assert not restore(tmp_path / "drive", tmp_path / "runs" / "run")
    there = {path.name for path in (tmp_path / "drive" / "run").iterdir()}
    assert there == {"run.sqlite", "M0", "M1", "M2"}, "no base, no logs, no halves"


def test_a_first_copy_that_was_not_finished_is_none(tmp_path):
    """One command with the same place for both options starts a run, on the next machine too."""
    (tmp_path / "drive" / "run" / "M0").mkdir(parents=True)
    assert not backup.has_copy(tmp_path / "drive", "run")
    run(tmp_path / "runs" / "run", tmp_path / "drive")
    assert backup.has_copy(tmp_path / "drive", "run")


def test_without_a_copy_nothing_is_made(tmp_path):
    with pytest.raises(UserError, match="no copy of a run there; fix --restore-from"):
        restore(tmp_path / "drive", tmp_path / "runs" / "run")
    assert not (tmp_path / "runs").exists()


def test_a_part_of_a_run_in_the_way_is_refused_and_stays(tmp_path):
    (tmp_path / "mine" / "M0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"mine has files and no run.sqlite: .*; move it away"):
        restore(tmp_path / "mirror", tmp_path / "mine")
    assert (tmp_path / "mine" / "M0").is_dir()


def test_every_snapshot_is_whole_while_the_run_writes(tmp_path):
    """At each event: the copy opens, is intact, and speaks of no model that is not beside it."""
    drive, seen = tmp_path / "drive", 0

    def watch(at: Progress) -> None:
        nonlocal seen
        path = drive / "run" / "run.sqlite"
        if path.exists():
            seen += 1
            with sqlite3.connect(path) as there:
                assert there.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                promoted = [row[0] for row in there.execute("SELECT iteration FROM promoted")]
            assert all(
                (drive / "run" / f"M{number}" / "manifest.json").exists() for number in promoted
            )

    with Store.write(tmp_path / "runs" / "run") as store:
        settings = prepare.load_or_create_settings(store, scripted_run.SMALL, "tiny")
        copies = Backup(store, drive, print)
        loop.run(
            store, settings, scripted_runtime(ChatFormat.load(TINY_MODEL)), copies.watching(watch)
        )
    assert seen > 100


def test_a_lost_drive_does_not_stop_the_run_and_is_caught_up(tmp_path, monkeypatch, whole):
    copied, failing = files.copy_file, {"now": False}

    def copy(source: Path, target: Path) -> None:
        if failing["now"]:
            raise OSError(107, "Transport endpoint is not connected")
        copied(source, target)

    monkeypatch.setattr(files, "copy_file", copy)
    monkeypatch.setattr(backup, "copy_file", copy)
    said: list[str] = []

    def watch(at: Progress) -> None:
        failing["now"] = at.iteration == 1

    with Store.write(tmp_path / "runs" / "run") as store:
        settings = prepare.load_or_create_settings(store, scripted_run.SMALL, "tiny")
        copies = Backup(store, tmp_path / "drive", said.append)
        loop.run(
            store, settings, scripted_runtime(ChatFormat.load(TINY_MODEL)), copies.watching(watch)
        )
        copies.copy()
    assert len(said) == 2
    assert "not copied there (Transport endpoint is not connected); the run continues" in said[0]
    assert "copied there again, with all that was missing" in said[1]
    assert records(tmp_path / "drive" / "run") == {
        name: value for name, value in whole.items() if name != "base"
    }


def test_the_copy_of_another_or_newer_run_is_never_overwritten(tmp_path):
    """As when a user starts on a fresh machine and forgets --restore-from."""
    run(tmp_path / "first" / "run", tmp_path / "drive")
    before = records(tmp_path / "drive" / "run")
    with pytest.raises(UserError, match="holds a copy of another run.*--restore-from"):
        run(tmp_path / "second" / "run", tmp_path / "drive")
    assert records(tmp_path / "drive" / "run") == before


def test_a_copy_that_cannot_be_read_is_not_written_over(tmp_path):
    place = tmp_path / "drive" / "run"
    place.mkdir(parents=True)
    (place / "run.sqlite").write_bytes(b"half of something" * 100)
    with (
        Store.write(tmp_path / "runs" / "run") as store,
        pytest.raises(UserError, match=r"cannot be read .*; move .* away"),
    ):
        Backup(store, tmp_path / "drive", print)
    assert (place / "run.sqlite").read_bytes() == b"half of something" * 100


def test_a_damaged_copy_is_said_where_it_is_put_back(tmp_path):
    place = tmp_path / "drive" / "run"
    place.mkdir(parents=True)
    (place / "run.sqlite").write_bytes(b"half of something" * 100)
    with pytest.raises(UserError, match="run.sqlite"):
        restore(tmp_path / "drive", tmp_path / "runs" / "run")
    assert not (tmp_path / "runs" / "run").exists(), (
        "so that nothing stands in the way of a better copy"
    )


def test_one_command_starts_and_resumes_on_another_machine(tmp_path, monkeypatch):
    """As in a notebook, whose cell stays the same between the first time and the next."""

    @contextmanager
    def runtime(backend: str) -> Iterator[ScriptedRuntime]:
        yield scripted_runtime(ChatFormat.load(TINY_MODEL))

    monkeypatch.setattr("selfreward_lite.run.runtime.open_runtime", runtime)
    settings = [
        part
        for key, value in scripted_run.SMALL.items()
        if key != "gates.mode"
        for part in ("--set", f"{key}={value}")
    ]
    drive = str(tmp_path / "drive")
    same = ["run", "--mirror", drive, "--restore-from", drive, "--gates", "report", *settings]
    machines = [str(tmp_path / "first"), str(tmp_path / "second")]
    begun = CliRunner().invoke(main.app, [*same, "--runs-dir", machines[0], "--iterations", "1"])
    assert begun.exit_code == 0, begun.output
    assert "restored" not in begun.output
    before = records(tmp_path / "drive" / "tiny")
    shutil.rmtree(machines[0])
    gone_on = CliRunner().invoke(main.app, [*same, "--runs-dir", machines[1], "--iterations", "2"])
    assert gone_on.exit_code == 0, gone_on.output
    assert "restored from its copy" in gone_on.output
    with Store.read(tmp_path / "second" / "tiny") as store:
        assert store.newest() == 2
    after = records(tmp_path / "drive" / "tiny")
    assert after != before
    assert {name: after[name] for name in ("M0", "M1")} == {
        name: before[name] for name in ("M0", "M1")
    }, "nothing is made twice"
    again = CliRunner().invoke(main.app, [*same, "--runs-dir", machines[1], "--iterations", "2"])
    assert "is here already, so not restored" in again.output
    assert again.exit_code == 0


@pytest.mark.parametrize("root", ["runs", "runs/run", "runs/run/copies"])
def test_a_run_is_not_copied_into_itself(tmp_path, root):
    with Store.write(tmp_path / "runs" / "run") as store:
        with pytest.raises(UserError, match="holds the run itself"):
            Backup(store, tmp_path / root, print)
        Backup(store, tmp_path / "elsewhere", print)


def refuse_copy(snapshot: Path, target: Path) -> None:
    assert snapshot.exists() and target.name == "run.sqlite"
    raise OSError(28, "disk is full")


def refuse_snapshot(path, *arguments, **options) -> sqlite3.Connection:
    if Path(path).name == "snapshot.sqlite":
        raise sqlite3.OperationalError("disk is full")
    return CONNECT(path, *arguments, **options)


CONNECT = sqlite3.connect


@pytest.mark.parametrize(
    ("module", "name", "refuse"),
    [(backup, "copy_file", refuse_copy), (sqlite3, "connect", refuse_snapshot)],
    ids=["copy", "snapshot"],
)
def test_what_cannot_be_copied_does_not_stop_the_run(tmp_path, monkeypatch, module, name, refuse):
    said: list[str] = []
    with Store.write(tmp_path / "runs" / "run") as store:
        copies = Backup(store, tmp_path / "drive", said.append)
        monkeypatch.setattr(module, name, refuse)
        copies.copy()
        assert "not copied there (disk is full); the run continues" in said[0]
        assert not (store.folder / "snapshot.sqlite").exists()


def test_a_half_written_model_or_checkpoint_is_not_copied(tmp_path):
    with Store.write(tmp_path / "runs" / "run") as store:
        for name in ("M0", "training/checkpoints/step-4", "training/checkpoints/step-8"):
            (store.folder / name).mkdir(parents=True)
            (store.folder / name / "weights").write_text(name)
        write_manifest(store.folder / "training" / "checkpoints" / "step-4", {})
        copies = Backup(store, tmp_path / "drive", print)
        copies.copy()
        there = tmp_path / "drive" / "run"
        assert {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()} == {
            "run.sqlite",
            "training/checkpoints/step-4/weights",
            "training/checkpoints/step-4/manifest.json",
        }
        shutil.rmtree(store.folder / "training" / "checkpoints" / "step-4")
        write_manifest(store.folder / "training" / "checkpoints" / "step-8", {})
        copies.copy(last=True)
        assert [path.name for path in (there / "training" / "checkpoints").iterdir()] == ["step-8"]


def test_a_model_that_was_trained_anew_is_copied_anew(tmp_path):
    with Store.write(tmp_path / "runs" / "run") as store:
        folder = store.folder / "M1"
        folder.mkdir()
        copies = Backup(store, tmp_path / "drive", print)
        for text in ("first", "second"):
            (folder / "adapter.gguf").write_text(text)
            write_manifest(folder, {})
            copies.copy()
            assert (tmp_path / "drive" / "run" / "M1" / "adapter.gguf").read_text() == text


def test_copies_are_made_every_few_minutes_within_a_stage(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Store.write(tmp_path / "runs" / "run") as store:
        copies, count = Backup(store, tmp_path / "drive", print), [0]
        monkeypatch.setattr(copies, "_copy", lambda last: count.__setitem__(0, count[0] + 1))
        watch = copies.watching(lambda at: None)
        for minute in range(21):
            now[0] = 60.0 * minute
            watch(Progress(1, "responses", 100, done=minute))
        assert count[0] == 3
        watch(Progress(1, "responses", 100, done=100))
        assert count[0] == 4


def test_checkpoints_are_copied_every_half_hour_and_at_the_end(tmp_path, monkeypatch):
    """Each is half a gigabyte for an 8B, and a drive counts what was replaced."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Store.write(tmp_path / "runs" / "run") as store:
        copies = Backup(store, tmp_path / "drive", print)
        kept = tmp_path / "drive" / "run" / "training" / "checkpoints"
        seen = []
        for minute in range(0, 100, 10):
            now[0] = 60.0 * minute
            step = store.folder / "training" / "checkpoints" / f"step-{minute}"
            step.mkdir(parents=True)
            write_manifest(step, {})
            copies.copy()
            (there,) = kept.iterdir()
            seen.append(there.name)
        assert seen == [f"step-{minute}" for minute in (0, 0, 0, 0, 40, 40, 40, 40, 80, 80)]
        copies.copy(last=True)
        assert [path.name for path in kept.iterdir()] == ["step-90"]
        shutil.rmtree(store.folder / "training" / "checkpoints")
        copies.copy(last=True)
        assert not list(kept.iterdir()), "the training is over"


@pytest.mark.parametrize("what", ["M1", "training/checkpoints/step-8"])
def test_a_half_written_copy_is_never_used(tmp_path, monkeypatch, what):
    """It is neither restored nor taken for a checkpoint, and the next copy removes it."""
    folder = tmp_path / "runs" / "run"
    with Store.write(folder) as store:
        copies = Backup(store, tmp_path / "drive", print)
        copies.copy()
        (folder / what).mkdir(parents=True)
        (folder / what / "weights").write_text("weights")
        write_manifest(folder / what, {})
        rename = Path.rename

        def vanish(self, target):
            if self.name == "weights.part":
                raise Vanished
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", vanish)
        with pytest.raises(Vanished):
            copies.copy()
        monkeypatch.undo()
    assert [*(tmp_path / "drive").rglob("*.part")], "the copy was under way"
    shutil.rmtree(tmp_path / "runs")
    assert restore(tmp_path / "drive", folder)
    assert not list(folder.rglob("*.part"))
    assert checkpoints.find_newest(folder / "training" / "checkpoints", "job") is None
    with Store.write(folder) as store:
        copies = Backup(store, tmp_path / "drive", print)
        copies.copy()
        (folder / what).mkdir(parents=True, exist_ok=True)
        write_manifest(folder / what, {})
        copies.copy(last=True)
        assert (tmp_path / "drive" / "run" / what / "manifest.json").exists()
        assert not [*(tmp_path / "drive").rglob("*.part")]
