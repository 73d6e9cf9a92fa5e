"""Votes of people on two models' answers, each with the verdict of a model as judge.

Votes are in votes.sqlite in the run's folder, a file of its own, so that no vote waits for a run.
A voter sees no verdict before the vote, so people and judge decide independently.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from selfreward_lite.system.errors import UserError

FILE = "votes.sqlite"
Side = Literal["a", "b", "tie"]
_AFFINITY = {"seed": "INTEGER", "blind": "INTEGER"}


@dataclass(frozen=True)
class Vote:
    """Two answers to one prompt, and which one a person preferred.

    `at` is the time in ISO 8601, `blind` whether model names were hidden. `verdict` is the judge's,
    None without one; `judged_ab` and `judged_ba` are its texts for both orders.
    """

    id: str
    at: str
    prompt: str
    seed: int
    model_a: str
    model_b: str
    text_a: str
    text_b: str
    choice: Side
    blind: bool
    judge: str
    verdict: Side | None
    judged_ab: str
    judged_ba: str


_COLUMNS = [field.name for field in fields(Vote)]


def add_vote(folder: Path, vote: Vote) -> None:
    """Keep a vote, unless its id is already there. Raises UserError if it cannot be written."""
    advice = "the vote could not be kept ({}); free space, or make the file writable"
    columns = ", ".join(f"{name} {_AFFINITY.get(name, 'TEXT')}" for name in _COLUMNS)
    marks = ",".join("?" * len(_COLUMNS))
    with _open(folder, advice) as database:
        database.execute(f"CREATE TABLE IF NOT EXISTS votes ({columns}, PRIMARY KEY (id))")
        database.execute(f"INSERT OR IGNORE INTO votes VALUES ({marks})", astuple(vote))


def add_verdict(folder: Path, vote: Vote) -> None:
    """Add the judge's verdict to a vote that was kept. Raises UserError if it cannot be written."""
    with _open(folder, "the verdict could not be kept ({}); the vote is kept") as database:
        database.execute(
            "UPDATE votes SET verdict = ?, judged_ab = ?, judged_ba = ? WHERE id = ?",
            (vote.verdict, vote.judged_ab, vote.judged_ba, vote.id),
        )


def load_votes(folder: Path) -> list[Vote]:
    """Return the votes of a run, in order."""
    if not (folder / FILE).exists():
        return []
    query = f"SELECT {', '.join(_COLUMNS)} FROM votes ORDER BY rowid"
    with _open(folder, "cannot be read ({}); move it away, or restore a copy", "ro") as database:
        votes = [Vote(*row) for row in database.execute(query)]
    return [replace(vote, blind=bool(vote.blind)) for vote in votes]


def build_ranked_rows(votes: Sequence[Vote]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return decided votes as OASST messages, the preferred answer with rank 0, and drops.

    Of several votes on one prompt the last counts.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    drops = Counter[str]()
    for vote in votes:
        if vote.choice == "tie":
            drops["tie"] += 1
        elif vote.text_a == vote.text_b:
            drops["the same answer twice"] += 1
        else:
            plain = " ".join(vote.prompt.split()).casefold()
            if plain in rows:
                drops["same prompt again"] += 1
            ranked = [vote.text_a, vote.text_b]
            if vote.choice == "b":
                ranked.reverse()
            rows[plain] = [
                {
                    "message_id": vote.id if rank is None else f"{vote.id}-{rank}",
                    "parent_id": None if rank is None else vote.id,
                    "text": text,
                    "role": "prompter" if rank is None else "assistant",
                    "rank": rank,
                }
                for rank, text in [(None, vote.prompt), *enumerate(ranked)]
            ]
    return [row for messages in rows.values() for row in messages], drops


@contextmanager
def _open(folder: Path, failure: str, mode: str = "rwc") -> Iterator[sqlite3.Connection]:
    """The file of votes, committed at the end; UserError with `failure` if SQLite cannot use it."""
    path = folder / FILE
    address = f"{path.absolute().as_uri()}?mode={mode}"
    try:
        with closing(sqlite3.connect(address, uri=True)) as database, database:
            yield database
    except sqlite3.Error as error:
        raise UserError(f"{path}: {failure.format(error)}") from None
