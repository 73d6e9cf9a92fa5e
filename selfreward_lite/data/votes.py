"""What people thought of two models' answers, beside what a model thought of them as judge.

    add, all_votes     votes.sqlite in the run's folder: a file of its own, so that no vote waits for a run, or holds it up
    tally              how often one model was preferred to another, and how often the judge agreed with the people
    as_ranked          votes as ranked data in OASST's schema, which `seed_stage.ranked` and the evaluation of judges read

Knows: what a vote is. Does not know: pages, engines. A voter sees no verdict before the vote, so agreement is not agreement with
what was shown.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from selfreward_lite.data.records import Drop
from selfreward_lite.system.errors import UserError

FILE = "votes.sqlite"
Side = Literal["a", "b", "tie"]


@dataclass(frozen=True, slots=True)
class Vote:
    """Two answers to one prompt, and which was preferred. `verdict` is the judge's of both orders, None where it gave none.

    `at` is the time as ISO 8601, `blind` whether the models' names were hidden.
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


def add_vote(folder: Path, vote: Vote) -> None:
    """Keep a vote; the same id a second time changes nothing. Raises UserError where it cannot be written."""
    try:
        with closing(sqlite3.connect(folder / FILE)) as book, book:
            columns = ", ".join(
                f"{one.name} {_AFFINITY.get(one.name, 'TEXT')}" for one in fields(Vote)
            )
            book.execute(f"CREATE TABLE IF NOT EXISTS votes ({columns}, PRIMARY KEY (id))")
            book.execute(
                f"INSERT OR IGNORE INTO votes VALUES ({','.join('?' * len(fields(Vote)))})",
                astuple(vote),
            )
    except sqlite3.Error as error:
        raise UserError(
            f"{folder / FILE}: the vote could not be kept ({error}); make room or make it writable"
        ) from None


def add_verdict(folder: Path, vote: Vote) -> None:
    """Add to a vote that is kept what the judge said of it meanwhile. Raises UserError where it cannot be written."""
    try:
        with closing(sqlite3.connect(folder / FILE)) as book, book:
            values = (vote.verdict, vote.judged_ab, vote.judged_ba, vote.id)
            book.execute(
                "UPDATE votes SET verdict = ?, judged_ab = ?, judged_ba = ? WHERE id = ?", values
            )
    except sqlite3.Error as error:
        raise UserError(
            f"{folder / FILE}: the verdict could not be kept ({error}); the vote is"
        ) from None


def load_votes(folder: Path) -> list[Vote]:
    """Return the votes of a run, in the order in which they were given."""
    if not (folder / FILE).exists():
        return []
    names = ", ".join(one.name for one in fields(Vote))
    try:
        with closing(
            sqlite3.connect(f"{(folder / FILE).absolute().as_uri()}?mode=ro", uri=True)
        ) as book:
            rows = book.execute(f"SELECT {names} FROM votes ORDER BY rowid").fetchall()
    except sqlite3.Error as error:
        raise UserError(
            f"{folder / FILE} cannot be read ({error}); move it away, or put a copy back"
        ) from None
    blind = [one.name for one in fields(Vote)].index("blind")
    return [
        Vote(*(bool(value) if place == blind else value for place, value in enumerate(row)))
        for row in rows
    ]


def backup_votes(folder: Path, path: Path) -> None:
    """Write a copy of a run's votes, whole as of now, to `path`."""
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(folder / FILE)) as book, closing(sqlite3.connect(path)) as copy:
        book.backup(copy)


def build_ranked_rows(votes: Sequence[Vote]) -> tuple[list[dict[str, Any]], list[Drop]]:
    """Return decided votes as messages in OASST's schema, the preferred answer of rank 0; and what was left out, by reason.

    A prompt that was voted on again keeps its last vote.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    drops: list[Drop] = []
    for vote in votes:
        if vote.choice == "tie":
            drops.append(Drop("tie"))
            continue
        if vote.text_a == vote.text_b:
            drops.append(Drop("the same answer twice"))
            continue
        plain = " ".join(vote.prompt.split()).casefold()
        if plain in rows:
            drops.append(Drop("same prompt again"))
        texts = (vote.text_a, vote.text_b) if vote.choice == "a" else (vote.text_b, vote.text_a)
        rows[plain] = [
            {
                "message_id": vote.id,
                "parent_id": None,
                "text": vote.prompt,
                "role": "prompter",
                "rank": None,
            },
            *(
                {
                    "message_id": f"{vote.id}-{rank}",
                    "parent_id": vote.id,
                    "text": text,
                    "role": "assistant",
                    "rank": rank,
                }
                for rank, text in enumerate(texts)
            ),
        ]
    return [row for found in rows.values() for row in found], drops


_AFFINITY = {"seed": "INTEGER", "blind": "INTEGER"}
