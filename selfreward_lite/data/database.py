"""The SQLite file of a run: its tables, how it is opened, and disk errors as advice."""

import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from selfreward_lite.data.records import KINDS, Record
from selfreward_lite.system.errors import UserError, refuse_reading

FILE = "run.sqlite"
SCHEMA_VERSION = 1
_BEGINNING = b"SQLite format 3\0"
_CANNOT_WRITE = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
PATIENCE = 5.0  # seconds to wait for another connection
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_FIXED_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS items (iteration INTEGER, stage TEXT, item TEXT,
    PRIMARY KEY (iteration, stage, item)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS drops (iteration INTEGER, stage TEXT, item TEXT, reason TEXT,
    count INTEGER,
    PRIMARY KEY (iteration, stage, item, reason)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stages (iteration INTEGER, stage TEXT, total INTEGER,
    seconds REAL DEFAULT 0,
    done INTEGER DEFAULT 0, PRIMARY KEY (iteration, stage));
CREATE TABLE IF NOT EXISTS metrics (iteration INTEGER, name TEXT, value REAL,
    PRIMARY KEY (iteration, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS training (iteration INTEGER, step INTEGER, name TEXT, value REAL,
    PRIMARY KEY (iteration, step, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gates (iteration INTEGER, gate TEXT, passed INTEGER, reason TEXT,
    PRIMARY KEY (iteration, gate)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS promoted (iteration INTEGER PRIMARY KEY, by TEXT);
"""


class Database(sqlite3.Connection):
    """A connection whose errors say what to do about a full or damaged disk, or a held file."""

    folder: Path

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        with self.explain_errors():
            return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        with self.explain_errors():
            return super().executemany(*arguments)

    @contextmanager
    def explain_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            # The low byte is the primary code; errors of the sqlite3 module itself have none.
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_CANTOPEN and _lacks_index(self.folder):
                raise UserError(
                    f"{self.folder}: its last records are in {FILE}-wal, which can be read only in "
                    "a folder that can be written; copy the whole folder to such a place"
                ) from None
            if code in _CANNOT_WRITE:
                free = shutil.disk_usage(self.folder).free / 1e6 if self.folder.exists() else 0.0
                raise UserError(
                    f"{self.folder}: cannot write ({error}; {free:.1f} MB free there). What was "
                    "committed is kept: free space, or make the folder writable, and run the same "
                    "command again"
                ) from None
            if code in _BUSY:
                raise UserError(
                    f"{self.folder / FILE}: another program holds it ({error}), such as a database "
                    "browser or a backup. What was committed is kept: close that program, and give "
                    "the same command again"
                ) from None
            if code in _DAMAGED:
                raise UserError(
                    f"{self.folder}: {FILE} is damaged ({error}); restore the folder from a copy, "
                    "or start a new --name"
                ) from None
            raise


def open_for_writing(folder: Path) -> Database:
    """Open the file of a run, with all its tables."""
    path = folder / FILE
    if not path.exists() or not path.stat().st_size:
        _refuse_orphans(folder)  # before SQLite makes files that would not fit one put back here
    # SQLite takes a relative path that begins with "file:" for an address.
    database = _connect(str(path.absolute()), folder)
    database.execute("PRAGMA journal_mode=WAL")
    # A power cut may lose commits since the last checkpoint, which every end of a stage makes.
    database.execute("PRAGMA synchronous=NORMAL")
    if _read_version(database) == 0:
        _refuse_orphans(folder)  # its log was lost
        tables = _FIXED_TABLES + "".join(
            statement for kind in KINDS for statement in _define_record_table(kind)
        )
        with database.explain_errors():
            database.executescript(
                f"BEGIN IMMEDIATE;\n{tables}PRAGMA user_version = {SCHEMA_VERSION};\nCOMMIT;"
            )
    _check_version(database)
    _add_what_is_missing(database)
    return database


def open_for_reading(folder: Path) -> Database:
    """Open the file of a run while another process may write it; UserError where there is none."""
    path = folder / FILE
    if not _exists(path):
        raise UserError(
            f"no run in {folder}; start one with `python -m selfreward_lite run --name "
            f"{folder.name}`"
        )
    # To read in WAL mode, SQLite needs two files next to the database, and makes them. In a folder
    # that this user cannot write they are there while another user writes the run, or where a kill
    # left them. Else nothing changes the database, so it may be opened as immutable.
    logs = [path.with_name(f"{FILE}{end}") for end in ("-wal", "-shm")]
    may_change = os.access(folder, os.W_OK) or any(one.exists() for one in logs)
    mode = "mode=ro" if may_change else "mode=ro&immutable=1"
    database = _connect(f"{path.absolute().as_uri()}?{mode}", folder)
    _check_version(database)
    return database


def _lacks_index(folder: Path) -> bool:
    """Whether there is a log without its index, which SQLite must make to read it."""
    return not os.access(folder, os.W_OK) and (folder / f"{FILE}-wal").exists()


def _exists(path: Path) -> bool:
    """Whether a file is there; UserError where this user may not read it."""
    try:
        if not path.exists() or os.access(path, os.R_OK):
            return path.exists()
    except PermissionError:  # of its folder
        pass
    raise refuse_reading(path)


def is_database(path: Path) -> bool:
    """Whether a file is one of SQLite's."""
    with path.open("rb") as file:
        return file.read(len(_BEGINNING)) == _BEGINNING


def table_name(kind: type) -> str:
    """Return the name of the table that holds records of a kind."""
    return f"record_{kind.__name__.lower()}"


def _connect(name: str, folder: Path) -> Database:
    try:
        database = sqlite3.connect(
            name,
            timeout=PATIENCE,
            uri=name.startswith("file:"),
            isolation_level=None,
            factory=Database,
        )
    except sqlite3.OperationalError as error:
        raise UserError(
            f"{folder}: cannot open {FILE} ({error}); give another --runs-dir"
        ) from None
    database.folder = folder
    return database


def list_columns(database: Database, kind: type) -> set[str]:
    """Return the columns of a kind's table; none where an older run has no such table."""
    return {row[1] for row in database.execute(f"PRAGMA table_info({table_name(kind)})")}


def _define_record_table(kind: type[Record]) -> Iterable[str]:
    table = table_name(kind)
    columns = ", ".join(_define_column(one) for one in fields(kind))
    yield (
        f"CREATE TABLE IF NOT EXISTS {table} ({columns}, content_hash TEXT NOT NULL, "
        "PRIMARY KEY (id));\n"
    )
    parent = next((name for name in kind.KEY if name.endswith("_id")), "iteration")
    yield f"CREATE INDEX IF NOT EXISTS {table}_by ON {table} (iteration, {parent});\n"


def _define_column(column: Field[Any]) -> str:
    affinity: dict[Any, str] = {
        int: "INTEGER",
        float: "REAL",
        int | None: "INTEGER",
        float | None: "REAL",
    }
    text = f'"{column.name}" {affinity.get(column.type, "TEXT")}'
    if not column.metadata.get("added") or column.default is None:
        return text
    default = column.default
    return f"{text} DEFAULT " + (f"'{default}'" if isinstance(default, str) else str(default))


def _add_what_is_missing(database: Database) -> None:
    """Give an older run the tables and columns that were added since."""
    for kind in KINDS:
        known = list_columns(database, kind)
        if not known:
            for statement in _define_record_table(kind):
                database.execute(statement)
            continue
        for column in fields(kind):
            if column.name not in known:
                database.execute(
                    f"ALTER TABLE {table_name(kind)} ADD COLUMN {_define_column(column)}"
                )


def _refuse_orphans(folder: Path) -> None:
    """Raise UserError for models without records; a new run would be written over them.

    Records of the first model's data are synced before its folder is made.
    """
    models = sorted(one.name for one in folder.glob("M[0-9]*"))
    if models:
        raise UserError(
            f"{folder} holds {', '.join(models)} and no records: {FILE} is missing or empty. Put "
            "it back from a copy; or move the folder away, and give the same command again, with "
            "--restore-from where there is a mirror"
        )


def _read_version(database: Database) -> int:
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    return version


def _check_version(database: Database) -> None:
    version = _read_version(database)
    if version == 0:
        raise UserError(
            f"{database.folder} is only just being made; try again in a moment. If nobody makes "
            f"it, its {FILE} was emptied, or copied without {FILE}-wal: `python -m "
            f"selfreward_lite run --name {database.folder.name}` starts it, or says what is missing"
        )
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{database.folder} was written in store format {version}, this version reads "
            f"{SCHEMA_VERSION}; use the version that made it, or a new --name"
        )
