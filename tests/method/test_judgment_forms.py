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


def test_no_form_is_read_wrongly_and_hardly_any_is_unread():
    """Wrong is worse than unread: a forced score is there for what cannot be read."""
    rows = read_rows("judgment_forms.jsonl")
    read = [parse_score(row["text"], row.get("response", "")) for row in rows]
    wrong = [
        (row["kind"], row["text"][-80:], found)
        for row, found in zip(rows, read, strict=True)
        if found is not None and found != row["score"]
    ]
    assert not wrong
    readable = [found for row, found in zip(rows, read, strict=True) if row["score"] is not None]
    assert sum(found is not None for found in readable) >= 0.95 * len(readable)


def test_no_verdict_is_read_wrongly_and_hardly_any_is_unread():
    rows = read_rows("verdict_forms.jsonl")
    read = [parse_verdict(row["text"], "Judgement") for row in rows]
    assert not [
        row for row, found in zip(rows, read, strict=True) if found not in (None, row["winner"])
    ]
    readable = [found for row, found in zip(rows, read, strict=True) if row["winner"]]
    assert sum(found is not None for found in readable) >= 0.95 * len(readable)


def test_no_form_of_an_attack_is_read_wrongly():
    rows = read_rows("judgment_forms_more.jsonl")
    assert len(rows) >= 250 and len({(row["text"], row.get("response")) for row in rows}) == len(
        rows
    )
    read = [parse_score(row["text"], row.get("response", "")) for row in rows]
    assert not [
        (row, found)
        for row, found in zip(rows, read, strict=True)
        if found not in (None, row["score"])
    ]
    readable = [found for row, found in zip(rows, read, strict=True) if row["score"] is not None]
    assert sum(found is not None for found in readable) >= 0.85 * len(readable) > 100


def test_no_form_of_a_later_attack_is_read_wrongly():
    """Labelled before the run; of those that a person reads, every third is left to closing."""
    rows = read_rows("judgment_forms_third.jsonl")
    read = [parse_score(row["text"], row.get("response", "")) for row in rows]
    assert not [
        (row, found)
        for row, found in zip(rows, read, strict=True)
        if found not in (None, row["score"])
    ]
    readable = [found for row, found in zip(rows, read, strict=True) if row["score"] is not None]
    assert sum(found is not None for found in readable) >= 0.6 * len(readable) > 60


def test_no_verdict_of_an_attack_is_read_wrongly():
    rows = read_rows("verdict_forms_more.jsonl")
    read = [
        parse_verdict(row["text"], row.get("noun", "Judgement"), row.get("response", ""))
        for row in rows
    ]
    assert not [
        (row, found)
        for row, found in zip(rows, read, strict=True)
        if found not in (None, row["winner"])
    ]
    readable = [found for row, found in zip(rows, read, strict=True) if row["winner"]]
    assert sum(found is not None for found in readable) >= 0.85 * len(readable)
