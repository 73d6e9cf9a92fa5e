"""The folder of a run and its SQLite file: keyed by item, resumable, readable while it is written.

    runs/<name>/run.sqlite     records, done items of every stage, what was dropped and why
    runs/<name>/run.lock       held by the one writer; holds its process id
    runs/<name>/base/          the base model for llama.cpp
    runs/<name>/M<t>/          one model: adapter, GGUF adapter; its manifest is written last

A killed run keeps everything that was committed. A power cut may lose the commits since the last
stage that ended, but never damages the file.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

from selfreward_lite import __version__
from selfreward_lite.config import Settings, complete, parse
from selfreward_lite.data.database import (
    Database,
    list_columns,
    open_for_reading,
    open_for_writing,
    table_name,
)
from selfreward_lite.data.records import KINDS, ModelId, Outcome, R, Record, content_hash, derive_id
from selfreward_lite.system import locks
from selfreward_lite.system.errors import ConfigError, UserError
from selfreward_lite.system.files import find_manifest_faults, make_folder

LOCK = "run.lock"
WHOLE = "all"  # the item name of a stage that is done in one piece
NO_TIME = "no time left"  # the reason of what --hours left out
TIME_IS_UP = "time is up"  # the fact that says how the last command ended where --hours ended it


class StageRow(NamedTuple):
    """A stage that has begun: items done and in all, seconds so far, what was dropped by reason."""

    iteration: int
    stage: str
    done: int
    total: int
    seconds: float
    ended: bool
    drops: dict[str, int]

    @property
    def model(self) -> str:
        """The name of the model that the iteration makes."""
        return ModelId(self.iteration).name

    @property
    def rate(self) -> float | None:
        """Items per second; None before the first item, and for a stage of one item."""
        if not self.done or self.seconds <= 0 or self.total <= 1:
            return None
        return self.done / self.seconds

    @property
    def left(self) -> float | None:
        """Seconds left at the rate so far; None without a rate."""
        return None if self.ended or not self.rate else max(0, self.total - self.done) / self.rate


class Store:
    """A run's records. Open it with `Store.write` or `Store.read`; close it when done."""

    def __init__(
        self, folder: Path, database: Database, lock: int | None = None, place: int | None = None
    ) -> None:
        self.folder = folder
        self._db = database
        self._lock = lock  # of run.lock, which says who writes
        self._place = place  # of the folder itself: users remove a lock file to "unlock" it

    @classmethod
    def write(cls, folder: Path) -> Self:
        """Open a run for writing, new or not. Raises UserError while another process writes it."""
        try:
            make_folder(folder)
            lock = locks.take(folder / LOCK, f"{os.getpid()}")
        except IsADirectoryError:
            raise UserError(
                f"{folder / LOCK} is a folder: remove it, and give the same command again"
            ) from None
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written ({error.strerror}); give another --runs-dir"
            ) from None
        if lock is None:
            raise UserError(
                f"{cls.describe_writer(folder)} is writing this run; wait for it, or stop it "
                f"first ({folder / LOCK})"
            )
        place = None
        try:
            place = locks.take_folder(folder)
            if place is None:
                raise UserError(
                    f"another process is writing {folder}, although its {LOCK} was removed or "
                    "replaced; wait for it, or stop it first"
                )
            return cls(folder, open_for_writing(folder), lock, place)
        except BaseException:
            for handle in (lock, place):
                if handle is not None:
                    locks.release(handle)
            raise

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Open a run for reading, even while it is written. Raises UserError if there is none."""
        return cls(folder, open_for_reading(folder))

    def close(self) -> None:
        """Close the file and release the lock. Closing twice is allowed."""
        self._db.close()
        for handle in (self._lock, self._place):
            if handle is not None:
                locks.release(handle)
        self._lock = self._place = None

    @staticmethod
    def writer(folder: Path) -> int | None:
        """Return the id of the process that writes a run, None if there is none."""
        holder = locks.holder(folder / LOCK)
        return int(holder) if holder and holder.isdigit() else None

    @staticmethod
    def is_writer(folder: Path, process: int) -> bool:
        """Whether the process that has this number here is the one that writes a run."""
        return locks.is_open_in(folder / LOCK, process)

    @classmethod
    def describe_writer(cls, folder: Path) -> str:
        """Who holds a run's lock, as far as that is known: its number may be of a process before.

        Another program may have locked the file without writing in it.
        """
        process = cls.writer(folder)
        if process is not None and cls.is_writer(folder, process):
            return f"process {process}"
        return f"another program, which holds {LOCK},"

    def select(self, query: str, *values: Any) -> list[Any]:
        """Return the rows of a query; only `queries`, this file and backups write SQL."""
        return self._db.execute(query, values).fetchall()

    def select_value(self, query: str, *values: Any) -> Any:
        """Return the first value of the first row of a query, None without rows."""
        row = self._db.execute(query, values).fetchone()
        return row[0] if row else None

    def pack(self) -> None:
        """Return the free pages of the file and of its log to the disk."""
        self._db.execute("VACUUM")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def sync(self) -> None:
        """Make what was committed survive a power cut."""
        self._db.execute("PRAGMA wal_checkpoint(FULL)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- facts -----------------------------------------------------------------------------------

    def fact(self, name: str) -> Any:
        """Return a named fact of the run (a JSON value), None if it was never stated."""
        value = self.select_value("SELECT value FROM facts WHERE name = ?", name)
        return None if value is None else json.loads(value)

    def state(self, name: str, value: Any) -> None:
        """Set a fact, replacing an earlier value."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def settings(self) -> Settings:
        """Return the settings of the run.

        Raises UserError where it has only just started, or was made by a version that knows others.
        """
        stored = self.fact("settings")
        if stored is None:
            raise UserError(
                f"{self.folder.name} has no settings yet: it has only just started, or was stopped "
                "at once; try again in a moment, or start it again"
            )
        try:
            return parse(complete(stored))
        except ConfigError as error:
            raise UserError(
                f"{self.folder.name} was made by another version of selfreward_lite: use that, or "
                f"a new --name. This version ({__version__}) does not know its settings ({error})"
            ) from None

    @property
    def id_namespace(self) -> str:
        """The text that all ids of this run are derived from."""
        namespace: str = self.fact("run")
        return namespace

    # -- items and records -----------------------------------------------------------------------

    def commit(self, iteration: int, stage: str, item: str, outcome: Outcome) -> None:
        """Keep the outcome of one item, all of it or nothing. Existing rows stay as they are.

        Raises UserError, as a stage's begin and end do, where the folder was moved or removed.
        """
        self._check_place()
        with self.transaction():
            for record in outcome.records:
                self._insert(record)
            self._db.executemany(
                "INSERT OR IGNORE INTO drops VALUES (?,?,?,?,?)",
                [(iteration, stage, item, *drop) for drop in outcome.drops.items()],
            )
            self._db.execute("INSERT OR IGNORE INTO items VALUES (?,?,?)", (iteration, stage, item))

    def done_items(self, iteration: int, stage: str) -> set[str]:
        """Return the committed items of a stage."""
        query = "SELECT item FROM items WHERE iteration = ? AND stage = ?"
        return {item for (item,) in self.select(query, iteration, stage)}

    def has_items(self) -> bool:
        """Whether anything was committed."""
        return self.select_value("SELECT 1 FROM items LIMIT 1") is not None

    def records(self, kind: type[R], **where: Any) -> list[R]:
        """Return the records of a kind in order of commit; `where` gives values of columns."""
        names = self._names(kind)
        if not names:
            return []
        columns = ", ".join(f'"{name}"' for name in names)
        query = (
            f"SELECT {columns} FROM {table_name(kind)} WHERE {_conditions(where)} ORDER BY rowid"
        )
        rows = self._db.execute(query, tuple(where.values()))
        return [kind(**dict(zip(names, row, strict=True))) for row in rows]

    def made_by(self, kind: type[R], model: int, iteration: int | None = None) -> list[R]:
        """Return what a model made in an iteration; by default, in that in which it is measured."""
        made = ModelId(model)
        wanted = made.iteration if iteration is None else iteration
        return self.records(kind, iteration=wanted, model=made.name)

    def count(self, kind: type[Record], **where: Any) -> int:
        """Return how many records of a kind there are; `where` gives values of columns."""
        if not self._names(kind):
            return 0
        query = f"SELECT count(*) FROM {table_name(kind)} WHERE {_conditions(where)}"
        return int(self.select_value(query, *where.values()))

    def drops(self, iteration: int, stage: str) -> dict[str, int]:
        """Return how much a stage dropped, by reason, the most frequent first."""
        query = (
            "SELECT reason, sum(count) FROM drops WHERE iteration = ? AND stage = ? "
            "GROUP BY reason ORDER BY 2 DESC"
        )
        return dict(self.select(query, iteration, stage))

    def why_dropped(self, iteration: int, stage: str) -> dict[str, str]:
        """Return why an item of a stage dropped something, by item; one reason of each."""
        query = "SELECT item, reason FROM drops WHERE iteration = ? AND stage = ?"
        return dict(self.select(query, iteration, stage))

    # -- stages ----------------------------------------------------------------------------------

    def begin_stage(self, iteration: int, stage: str, total: int) -> None:
        """Keep how many items a stage has; a stage that is begun again is not done."""
        self._check_place()
        self._db.execute(
            "INSERT INTO stages (iteration, stage, total) VALUES (?,?,?) "
            "ON CONFLICT (iteration, stage) DO UPDATE SET total = excluded.total, done = 0",
            (iteration, stage, total),
        )

    def spend(self, iteration: int, stage: str, seconds: float) -> None:
        """Add working time to a stage; a resumed stage keeps the time it already took."""
        self._db.execute(
            "UPDATE stages SET seconds = seconds + ? WHERE iteration = ? AND stage = ?",
            (seconds, iteration, stage),
        )

    def seconds(self, iteration: int, stage: str) -> float:
        """Return the working time of a stage so far."""
        query = "SELECT seconds FROM stages WHERE iteration = ? AND stage = ?"
        return float(self.select_value(query, iteration, stage) or 0.0)

    def end_stage(self, iteration: int, stage: str) -> None:
        """Mark a stage as done, so that even a power cut keeps it."""
        self._check_place()
        self._db.execute(
            "UPDATE stages SET done = 1 WHERE iteration = ? AND stage = ?", (iteration, stage)
        )
        self.sync()

    def is_done(self, iteration: int, stage: str) -> bool:
        """Whether a stage has ended."""
        query = "SELECT done FROM stages WHERE iteration = ? AND stage = ?"
        return bool(self.select_value(query, iteration, stage))

    def stages(self) -> list[StageRow]:
        """Return every stage that has begun, in the order in which they began."""
        query = (
            "SELECT iteration, stage, (SELECT count(*) FROM items i WHERE i.iteration = "
            "s.iteration AND i.stage = s.stage), total, seconds, done, (SELECT "
            "json_group_object(reason, count) FROM (SELECT reason, sum(count) count FROM drops d "
            "WHERE d.iteration = s.iteration AND d.stage = s.stage GROUP BY 1 ORDER BY 2 DESC)) "
            "FROM stages s ORDER BY rowid"
        )
        return [
            StageRow(iteration, stage, done, total, seconds, bool(ended), json.loads(drops))
            for iteration, stage, done, total, seconds, ended, drops in self.select(query)
        ]

    # -- numbers ---------------------------------------------------------------------------------

    def measure(self, iteration: int, **values: float | None) -> None:
        """Keep measured numbers of an iteration."""
        rows = [(iteration, name, value) for name, value in values.items()]
        self._db.executemany("INSERT OR REPLACE INTO metrics VALUES (?,?,?)", rows)

    def metrics(self, iteration: int) -> dict[str, float | None]:
        """Return the measured numbers of an iteration."""
        return dict(self.select("SELECT name, value FROM metrics WHERE iteration = ?", iteration))

    def log_training(self, iteration: int, step: int, values: dict[str, float]) -> None:
        """Keep what a trainer reported at a step, so that even a power cut keeps it.

        A training resumes from a checkpoint behind it, and reports it only once.
        """
        rows = [(iteration, step, name, value) for name, value in values.items()]
        with self.transaction():
            self._db.executemany("INSERT OR REPLACE INTO training VALUES (?,?,?,?)", rows)
        self.sync()

    def forget_training(self, iteration: int, after: int) -> None:
        """Drop what a trainer reported of the steps after one: they are done again, otherwise."""
        self._db.execute(
            "DELETE FROM training WHERE iteration = ? AND step > ?", (iteration, after)
        )

    def training(self, iteration: int) -> list[tuple[int, str, float]]:
        """Return (step, name, value) of everything that a trainer reported."""
        query = "SELECT step, name, value FROM training WHERE iteration = ? ORDER BY step, name"
        return self.select(query, iteration)

    # -- gates and models ------------------------------------------------------------------------

    def record_gate(self, iteration: int, gate: str, passed: bool | None, reason: str) -> None:
        """Keep the decision of a gate, None for one that is off, replacing an earlier one."""
        self._db.execute(
            "INSERT OR REPLACE INTO gates VALUES (?,?,?,?)", (iteration, gate, passed, reason)
        )

    def gates(self, iteration: int) -> dict[str, tuple[bool | None, str]]:
        """Return what every gate decided about a model: whether it passed, and the reason.

        None stands for a gate that is off.
        """
        rows = self.select("SELECT gate, passed, reason FROM gates WHERE iteration = ?", iteration)
        return {
            gate: (None if passed is None else bool(passed), reason)
            for gate, passed, reason in rows
        }

    def refusals(self, iteration: int) -> dict[str, str]:
        """Return the gates that refused a model, and their reasons."""
        query = "SELECT gate, reason FROM gates WHERE iteration = ? AND NOT passed"
        return dict(self.select(query, iteration))

    def promote(self, iteration: int, by: str) -> None:
        """Make M<iteration> the newest model; `by` says who decided: the gates, or a person."""
        self._db.execute("INSERT OR IGNORE INTO promoted VALUES (?,?)", (iteration, by))
        self.sync()

    def newest(self) -> int | None:
        """Return the number of the newest promoted model, None before M0."""
        number: int | None = self.select_value("SELECT max(iteration) FROM promoted")
        return number

    def next_model(self) -> int:
        """Return the number of the model after the newest, 0 before M0."""
        return int(self.select_value("SELECT coalesce(max(iteration) + 1, 0) FROM promoted"))

    def models(self, first: int = 0) -> range:
        """Return the numbers of all models from M<first>, with the candidate after the newest."""
        return range(first, self.next_model() + 1)

    def model_dir(self, iteration: int) -> Path:
        """Return the folder of M<iteration>, which need not exist."""
        return self.folder / ModelId(iteration).name

    def model(self, number: int | None) -> tuple[int, Path]:
        """Return number and folder of a model (None: the newest). Raises UserError if missing."""
        number = self.newest() if number is None else number
        if number is None or not (self.model_dir(number) / "adapter.gguf").exists():
            raise UserError(
                f"{self.folder} has no model M{number or 0}; `status --name {self.folder.name}` "
                "shows what it has"
            )
        return number, self.model_dir(number)

    def faults(self) -> list[str]:
        """Return faults, a line each: damaged file, wrong ids, changed texts, incomplete models."""
        found = [row[0] for row in self.select("PRAGMA integrity_check") if row[0] != "ok"]
        for kind in KINDS:
            if not self._names(kind):
                continue
            hashes = dict(self.select(f"SELECT id, content_hash FROM {table_name(kind)}"))
            for record in self.records(kind):
                if record.id != derive_id(self.id_namespace, record):
                    found.append(
                        f"{kind.__name__} {record.id}: its id does not follow from its key"
                    )
                if hashes[record.id] != content_hash(record):
                    found.append(
                        f"{kind.__name__} {record.id}: its content was changed after it was written"
                    )
        base, pruned = self.folder / "base", self.fact("pruned")
        # A base that is not there was pruned, or is not in a copy: `run` makes it again.
        folders = [base] if self.is_done(0, "base") and base.exists() else []
        promoted = [self.model_dir(one) for (one,) in self.select("SELECT iteration FROM promoted")]
        folders += [folder for folder in promoted if folder.name not in (pruned or ())]
        return found + [fault for folder in folders for fault in find_manifest_faults(folder)]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the statements inside, or none of them."""
        with self._db:  # rolls back at an error
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")

    def _check_place(self) -> None:
        """Raise UserError where the folder is not there any more, or another process writes it.

        The database would go with it, or be gone, while models were written at the old place. A
        lock file that was removed is made anew: others see by it that this process writes.
        """
        path, who = self.folder / LOCK, f"{os.getpid()}"
        if self._lock is None or self._place is None or locks.is_in_place(self._lock, path, who):
            return
        if not locks.is_in_place(self._place, self.folder):
            raise UserError(
                f"{self.folder} was moved or removed while this wrote it; give the same command "
                "again, with the --name or --runs-dir under which it is found now"
            )
        lock = locks.take(path, who)
        if lock is None:
            raise UserError(
                f"{path} was removed or replaced while this wrote the run, and now "
                f"{self.describe_writer(self.folder)} writes it too, so this one ends. What was "
                "committed is kept: wait for the other, or stop it, and give the same command again"
            )
        locks.release(self._lock)
        self._lock = lock

    def _names(self, kind: type) -> list[str]:
        """The fields of a kind that this file holds: one that is only read may be older."""
        known = list_columns(self._db, kind)
        return [one.name for one in fields(kind) if one.name in known]

    def _insert(self, record: Record) -> None:
        values = {**asdict(record), "content_hash": content_hash(record)}
        columns = ", ".join(f'"{name}"' for name in values)
        marks = ",".join("?" * len(values))
        self._db.execute(
            f"INSERT OR IGNORE INTO {table_name(type(record))} ({columns}) VALUES ({marks})",
            tuple(values.values()),
        )


def _conditions(where: dict[str, Any]) -> str:
    return " AND ".join(f'"{name}" IS ?' for name in where) or "1"
