"""Labelled ways to write a score and a verdict: what is read of them.

`judgment_forms.jsonl`: what a judge wrote that was asked for a last line `Score: <total>` from 0 to
5, and the grade that a careful person reads, or null. `verdict_forms.jsonl`: the same for a last
line `Winner: Judgement A` or `Winner: Judgement B`. The labels were set by reading the texts, not
by running a parser. The files `…_more.jsonl` were labelled later, by somebody who attacked the
parser: additive points, revised scores, quotations of the judged response, other scales. So was
`judgment_forms_third.jsonl`, by somebody else.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from selfreward_lite.method.parsing import parse_score, parse_verdict

FIXTURES = Path(__file__).parents[1] / "fixtures"
KINDS = {
    "final stop",
    "heading or list",
    "quotes",
    "out of five",
    "named otherwise",
    "next line",
    "other script",
    "thinking",
    "score first",
    "never: range or percent",
    "never: other scale",
    "never: two finals",
}


def read_rows(name: str) -> list[dict[str, Any]]:
    with (FIXTURES / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_the_judgments_are_enough_of_every_kind():
    rows = read_rows("judgment_forms.jsonl")
    counts = Counter(row["kind"] for row in rows)
    assert set(counts) == KINDS
    assert min(counts.values()) >= 10
    assert len(rows) >= 150
    assert sum(row["score"] is not None for row in rows) * 2 >= len(rows)


def test_every_judgment_has_a_text_of_its_own_and_a_grade_on_the_scale_or_none():
    rows = read_rows("judgment_forms.jsonl")
    assert len({row["text"] for row in rows}) == len(rows)
    for row in rows:
        assert {"kind", "text", "score"} <= set(row) <= {"kind", "text", "score", "response"}
        assert isinstance(row["text"], str) and isinstance(row.get("response", ""), str)
        assert row["score"] is None or 0 <= row["score"] <= 5


def test_every_verdict_has_a_text_of_its_own_and_a_winner_or_none():
    rows = read_rows("verdict_forms.jsonl")
    assert len(rows) >= 40
    assert len({row["text"] for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == {"kind", "text", "winner"}
        assert isinstance(row["kind"], str) and isinstance(row["text"], str)
        assert row["winner"] in ("A", "B", None)
    assert sum(row["winner"] is not None for row in rows) * 2 >= len(rows)


def read_all(rows: list[dict[str, Any]]) -> tuple[list[tuple[str, str, Any]], list[bool]]:
    """What is read wrongly, and of each row that a person reads whether it is read."""
    name, read = ("score", _read_score) if "score" in rows[0] else ("winner", _read_winner)
    found = [(row, read(row)) for row in rows]
    wrong = [
        (row["kind"], row["text"][-80:], one) for row, one in found if one not in (None, row[name])
    ]
    return wrong, [one is not None for row, one in found if row[name] is not None]


def _read_score(row: dict[str, Any]) -> float | None:
    return parse_score(row["text"], row.get("response", ""))


def _read_winner(row: dict[str, Any]) -> str | None:
    return parse_verdict(row["text"], row.get("noun", "Judgement"), row.get("response", ""))


# Wrong is worse than unread: a forced score is there for what cannot be read. More is left to it
# of what was written to attack the parser.
@pytest.mark.parametrize(
    ("name", "readable", "share"),
    [
        ("judgment_forms.jsonl", 75, 0.95),
        ("verdict_forms.jsonl", 20, 0.95),
        ("judgment_forms_more.jsonl", 118, 0.85),
        ("verdict_forms_more.jsonl", 20, 0.85),
        ("judgment_forms_third.jsonl", 118, 0.6),
    ],
)
def test_no_form_is_read_wrongly_and_few_are_unread(name, readable, share):
    wrong, read = read_all(read_rows(name))
    assert not wrong
    assert len(read) >= readable
    assert sum(read) >= share * len(read)


def test_attacks_are_all_different():
    rows = read_rows("judgment_forms_more.jsonl")
    assert len(rows) >= 250
    assert len({(row["text"], row.get("response")) for row in rows}) == len(rows)
