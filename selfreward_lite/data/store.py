"""The run folder and its one SQLite file: keyed by item, resumable, readable while it is written.

Knows: tables, transactions, the lock. Does not know: stages' meaning, models, clocks other than for durations.

    runs/<name>/run.sqlite     every record, which items of which stage are done, what was dropped and why
    runs/<name>/run.lock       held by the one writer; names its process
    runs/<name>/base/          the base model as llama.cpp reads it
    runs/<name>/M<t>/          one model: adapter, GGUF adapter; its manifest is written last

A killed run loses what was under way, never what was committed; a power cut may
also take the last commits, up to the last end of a stage, and leaves the file whole.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from selfreward_lite.data.records import KINDS, ModelId, Outcome, Record, content_hash, derive_id
from selfreward_lite.system import locks
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import manifest_faults

SCHEMA_VERSION = 1
LOCK = "run.lock"
WHOLE = "all"  # the item name of a stage that is done in one piece
R = TypeVar("R", bound=Record)
_FIXED_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS items (iteration INTEGER, stage TEXT, item TEXT, PRIMARY KEY (iteration, stage, item))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS drops (iteration INTEGER, stage TEXT, item TEXT, reason TEXT, count INTEGER,
    PRIMARY KEY (iteration, stage, item, reason)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stages (iteration INTEGER, stage TEXT, total INTEGER, seconds REAL DEFAULT 0,
    done INTEGER DEFAULT 0, PRIMARY KEY (iteration, stage));
CREATE TABLE IF NOT EXISTS metrics (iteration INTEGER, name TEXT, value REAL, PRIMARY KEY (iteration, name))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS training (iteration INTEGER, step INTEGER, name TEXT, value REAL,
    PRIMARY KEY (iteration, step, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gates (iteration INTEGER, gate TEXT, passed INTEGER, reason TEXT, PRIMARY KEY (iteration, gate))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS promoted (iteration INTEGER PRIMARY KEY, by TEXT);
"""


class _Database(sqlite3.Connection):
    """A connection that says in words what a full, lost or write-protected disk means. Set `folder` before use."""

    folder: Path

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        with self._in_words():
            return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        with self._in_words():
            return super().executemany(*arguments)

    def executescript(self, script: str) -> sqlite3.Cursor:
        with self._in_words():
            return super().executescript(script)

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if not any(
                word in str(error) for word in ("full", "disk I/O", "readonly", "unable to open")
            ):
                raise
            free = shutil.disk_usage(self.folder).free / 1e6 if self.folder.exists() else 0.0
            raise UserError(
                f"{self.folder}: cannot write ({error}; {free:.1f} MB are free there). What was committed is kept: free space, "
                "or make the folder writable, and give the same command again"
            ) from None
        except sqlite3.DatabaseError as error:
            if not any(word in str(error) for word in ("malformed", "not a database", "corrupt")):
                raise
            raise UserError(
                f"{self.folder}: run.sqlite is damaged ({error}); restore the folder from a copy, or start a new --name"
            ) from None


class StageRow(NamedTuple):
    """A stage that has begun: items committed and in all, seconds spent, whether it has ended."""

    iteration: int
    stage: str
    done: int
    total: int
    seconds: float
    ended: bool


class Store:
    """A run's records. Open it with `Store.write` or `Store.read`; close it when done."""

    def __init__(self, folder: Path, connection: _Database, lock: int | None) -> None:
        self.folder = folder
        self._db = connection
        self._lock = lock

    @classmethod
    def write(cls, folder: Path) -> Store:
        """Open a run for writing, made if it is new. Raises UserError where another process writes it."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = locks.take(folder / LOCK, f"{os.getpid()}")
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written ({error.strerror}); give another --runs-dir"
            ) from None
        if lock is None:
            raise UserError(
                f"process {locks.holder(folder / LOCK)} is writing this run; wait for it, or stop it first ({folder / LOCK})"
            )
        try:
            connection = _connect(str(folder / "run.sqlite"), folder)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(
                "PRAGMA synchronous=NORMAL"
            )  # a stage's end makes it durable against power loss too
            _migrate(connection, folder)
        except BaseException:
            locks.release(lock)
            raise
        return cls(folder, connection, lock)

    @classmethod
    def read(cls, folder: Path) -> Store:
        """Open a run for reading, also while another process writes it. Raises UserError where there is none."""
        path = folder / "run.sqlite"
        if not path.exists():
            raise UserError(
                f"no run in {folder}; start one with `python -m selfreward_lite run --name {folder.name}`"
            )
        # SQLite's WAL wants a file of its own beside it; where none can be written, nobody can be writing the run either.
        still = "" if os.access(folder, os.W_OK) else "&immutable=1"
        connection = _connect(f"{path.absolute().as_uri()}?mode=ro{still}", folder)
        _check_version(connection, folder)
        return cls(folder, connection, None)

    def close(self) -> None:
        """Close the file and give the lock back. Closing twice is allowed."""
        self._db.close()
        if self._lock is not None:
            locks.release(self._lock)
            self._lock = None

    @staticmethod
    def writer(folder: Path) -> int | None:
        """Return the process that writes a run, None where none does."""
        said = locks.holder(folder / LOCK)
        return int(said) if said and said.isdigit() else None

    def select(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query, for views over more records than one wants to hold; a kind's table is `record_<kind>`."""
        return self._db.execute(query, values).fetchall()

    def backup(self, path: Path) -> None:
        """Write a copy of the file, whole as of now, to `path`."""
        path.unlink(missing_ok=True)
        target = sqlite3.connect(path)
        with closing(target):
            self._db.backup(target)

    def pack(self) -> None:
        """Give the file's free pages, and those of its log, back to the disk."""
        self._db.execute("VACUUM")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- facts -----------------------------------------------------------------------------------------------------

    def fact(self, name: str) -> Any:
        """Return a named fact of the run (a JSON value), None if it was never stated."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def state(self, name: str, value: Any) -> None:
        """State a fact; a later statement replaces an earlier one."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    @property
    def id_namespace(self) -> str:
        """The text that all ids of this run are derived from."""
        return str(self.fact("run"))

    # -- items and records -----------------------------------------------------------------------------------------

    def commit(self, iteration: int, stage: str, item: str, outcome: Outcome) -> None:
        """Keep what one item of a stage came to, all of it or nothing. What is there already stays as it is."""
        with self.transaction():
            for record in outcome.records:
                self._insert(record)
            for reason, count in outcome.dropped().items():
                self._db.execute(
                    "INSERT OR IGNORE INTO drops VALUES (?,?,?,?,?)",
                    (iteration, stage, item, reason, count),
                )
            self._db.execute("INSERT OR IGNORE INTO items VALUES (?,?,?)", (iteration, stage, item))

    def done_items(self, iteration: int, stage: str) -> set[str]:
        """Return the items of a stage that are committed."""
        rows = self._db.execute(
            "SELECT item FROM items WHERE iteration = ? AND stage = ?", (iteration, stage)
        )
        return {row[0] for row in rows}

    def has_items(self) -> bool:
        """Whether anything was committed at all."""
        return self._db.execute("SELECT count(*) FROM items").fetchone()[0] > 0

    def records(self, kind: type[R], **where: Any) -> list[R]:
        """Return the records of a kind, in the order in which they were committed; `where` names columns' values."""
        columns = ", ".join(f'"{field.name}"' for field in fields(kind))
        condition = " AND ".join(f'"{name}" IS ?' for name in where) or "1"
        query = f"SELECT {columns} FROM {_table(kind)} WHERE {condition} ORDER BY rowid"
        return [kind(*row) for row in self._db.execute(query, tuple(where.values()))]

    def count(self, kind: type[Record], **where: Any) -> int:
        """Return how many records of a kind there are."""
        condition = " AND ".join(f'"{name}" IS ?' for name in where) or "1"
        return self._db.execute(
            f"SELECT count(*) FROM {_table(kind)} WHERE {condition}", tuple(where.values())
        ).fetchone()[0]

    def drops(self, iteration: int, stage: str) -> dict[str, int]:
        """Return how much a stage dropped, by reason."""
        query = "SELECT reason, sum(count) FROM drops WHERE iteration = ? AND stage = ? GROUP BY reason ORDER BY 2 DESC"
        return dict(self._db.execute(query, (iteration, stage)).fetchall())

    # -- stages ----------------------------------------------------------------------------------------------------

    def begin_stage(self, iteration: int, stage: str, total: int) -> None:
        """Say how many items a stage has, so that others can show its progress."""
        self._db.execute(
            "INSERT INTO stages (iteration, stage, total) VALUES (?,?,?) "
            "ON CONFLICT (iteration, stage) DO UPDATE SET total = excluded.total, done = 0",
            (iteration, stage, total),
        )

    def spend(self, iteration: int, stage: str, seconds: float) -> None:
        """Add working time to a stage; a resumed stage keeps what it spent before."""
        self._db.execute(
            "UPDATE stages SET seconds = seconds + ? WHERE iteration = ? AND stage = ?",
            (seconds, iteration, stage),
        )

    def seconds(self, iteration: int, stage: str) -> float:
        """Return the working time of a stage so far."""
        rows = self.select(
            "SELECT seconds FROM stages WHERE iteration = ? AND stage = ?", iteration, stage
        )
        return rows[0][0] if rows else 0.0

    def end_stage(self, iteration: int, stage: str) -> None:
        """Mark a stage done, durably."""
        self._db.execute(
            "UPDATE stages SET done = 1 WHERE iteration = ? AND stage = ?", (iteration, stage)
        )
        self._db.execute("PRAGMA wal_checkpoint(FULL)")

    def is_done(self, iteration: int, stage: str) -> bool:
        """Whether a stage has ended."""
        row = self._db.execute(
            "SELECT done FROM stages WHERE iteration = ? AND stage = ?", (iteration, stage)
        ).fetchone()
        return bool(row and row[0])

    def stages(self) -> list[StageRow]:
        """Return every stage that has begun, in the order in which they began."""
        query = (
            "SELECT iteration, stage, (SELECT count(*) FROM items i WHERE i.iteration = s.iteration AND i.stage = s.stage),"
            " total, seconds, done FROM stages s ORDER BY rowid"
        )
        return [StageRow(*row[:5], bool(row[5])) for row in self._db.execute(query)]

    # -- numbers ---------------------------------------------------------------------------------------------------

    def measure(self, iteration: int, **values: float | None) -> None:
        """Keep measured numbers of an iteration."""
        rows = [(iteration, name, value) for name, value in values.items()]
        self._db.executemany("INSERT OR REPLACE INTO metrics VALUES (?,?,?)", rows)

    def metrics(self, iteration: int) -> dict[str, float | None]:
        """Return the measured numbers of an iteration."""
        return dict(
            self._db.execute(
                "SELECT name, value FROM metrics WHERE iteration = ?", (iteration,)
            ).fetchall()
        )

    def log_training(self, iteration: int, step: int, values: dict[str, float]) -> None:
        """Keep what a trainer reported at a step."""
        rows = [(iteration, step, name, value) for name, value in values.items()]
        with self.transaction():
            self._db.executemany("INSERT OR REPLACE INTO training VALUES (?,?,?,?)", rows)

    def training(self, iteration: int) -> list[tuple[int, str, float]]:
        """Return (step, name, value) of everything that a trainer reported."""
        query = "SELECT step, name, value FROM training WHERE iteration = ? ORDER BY step, name"
        return self._db.execute(query, (iteration,)).fetchall()

    # -- gates and models ------------------------------------------------------------------------------------------

    def record_gate(self, iteration: int, gate: str, passed: bool, reason: str) -> None:
        """Keep a gate's answer; a repeated question replaces it."""
        self._db.execute(
            "INSERT OR REPLACE INTO gates VALUES (?,?,?,?)", (iteration, gate, int(passed), reason)
        )

    def gates(self, iteration: int) -> dict[str, tuple[bool, str]]:
        """Return every gate's answer about a model: whether it passed, and the reason."""
        rows = self._db.execute(
            "SELECT gate, passed, reason FROM gates WHERE iteration = ?", (iteration,)
        )
        return {gate: (bool(passed), reason) for gate, passed, reason in rows}

    def promote(self, iteration: int, by: str) -> None:
        """Make M<iteration> the newest model; `by` says who decided: the gates, or a person."""
        self._db.execute("INSERT OR IGNORE INTO promoted VALUES (?,?)", (iteration, by))
        self._db.execute("PRAGMA wal_checkpoint(FULL)")

    def newest(self) -> int | None:
        """Return the number of the newest promoted model, None before the seed stage is over."""
        return self._db.execute("SELECT max(iteration) FROM promoted").fetchone()[0]

    def model_dir(self, iteration: int) -> Path:
        """Return the folder of M<iteration>, which need not exist."""
        return self.folder / ModelId(iteration).name

    def model(self, number: int | None) -> tuple[int, Path]:
        """Return number and folder of a model, the newest for None; UserError where there is none."""
        number = self.newest() if number is None else number
        if number is None or not (self.model_dir(number) / "adapter.gguf").exists():
            raise UserError(
                f"{self.folder} has no model M{number or 0}; `status --name {self.folder.name}` shows what it has"
            )
        return number, self.model_dir(number)

    # -- inside ----------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the statements inside, or none of them."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk has ended it already
                self._db.execute("ROLLBACK")
            raise

    def _insert(self, record: Record) -> None:
        places = ",".join("?" * (len(fields(record)) + 1))
        row = (*astuple(record), content_hash(record))
        self._db.execute(f"INSERT OR IGNORE INTO {_table(type(record))} VALUES ({places})", row)

    def faults(self) -> list[str]:
        """Return what is wrong with the run, one line each: damaged file, false ids, changed texts, broken models."""
        found = [row[0] for row in self._db.execute("PRAGMA integrity_check") if row[0] != "ok"]
        for kind in KINDS:
            hashes = dict(
                self._db.execute(f"SELECT id, content_hash FROM {_table(kind)}").fetchall()
            )
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
        folders = [base] if self.is_done(0, "base") and (base.exists() or pruned is None) else []
        promoted = [
            self.model_dir(row[0]) for row in self._db.execute("SELECT iteration FROM promoted")
        ]
        folders += [folder for folder in promoted if folder.name not in (pruned or ())]
        return found + [fault for folder in folders for fault in manifest_faults(folder)]


def _connect(name: str, folder: Path) -> _Database:
    try:
        connection = sqlite3.connect(
            name, uri=name.startswith("file:"), isolation_level=None, factory=_Database
        )
    except sqlite3.OperationalError as error:
        raise UserError(
            f"{folder}: cannot open run.sqlite ({error}); give another --runs-dir"
        ) from None
    connection.folder = folder
    return connection


def _table(kind: type[Record]) -> str:
    return f"record_{kind.__name__.lower()}"


def _migrate(connection: sqlite3.Connection, folder: Path) -> None:
    if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
        tables = _FIXED_TABLES + "".join(_record_tables())
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{tables}PRAGMA user_version = {SCHEMA_VERSION};\nCOMMIT;"
        )
    _check_version(connection, folder)


def _record_tables() -> Iterable[str]:
    affinity = {"int": "INTEGER", "float": "REAL", "int | None": "INTEGER", "float | None": "REAL"}
    for kind in KINDS:
        columns = ", ".join(
            f'"{field.name}" {affinity.get(str(field.type), "TEXT")}' for field in fields(kind)
        )
        yield f"CREATE TABLE {_table(kind)} ({columns}, content_hash TEXT NOT NULL, PRIMARY KEY (id));\n"
        parent = next((name for name in kind.KEY if name.endswith("_id")), "iteration")
        yield f"CREATE INDEX {_table(kind)}_by ON {_table(kind)} (iteration, {parent});\n"


def _check_version(connection: sqlite3.Connection, folder: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        raise UserError(f"{folder} is only just being made; try again in a moment")
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{folder} was written in store format {version}, this version reads {SCHEMA_VERSION}; "
            "use the version that made it, or a new --name"
        )
