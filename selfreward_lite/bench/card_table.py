"""What is known of which card, as the README has it: figures from files of `bench card`, estimates in a column of their own.

Knows: which figures a reader wants. Does not know: how they were measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from selfreward_lite import config, plan
from selfreward_lite.bench.card import iteration_hours
from selfreward_lite.errors import DataError
from selfreward_lite.shapes import SHAPES

UNKNOWN = "not measured yet"


class Figures(BaseModel):
    """What one measurement found, as far as the table shows it."""

    tokens_per_s: float | None = None
    seconds_of_a_pair: float | None = None


class Named(BaseModel):
    """A card, as its driver names it."""

    name: str

    @property
    def short(self) -> str:
        """The name without its maker, and without how it is built in.

        >>> Named(name="NVIDIA GeForce RTX 4090").short, Named(name="NVIDIA A100-PCIE-40GB").short, Named(name="Tesla T4").short
        ('RTX 4090', 'A100', 'T4')
        """
        bare = re.sub(r"NVIDIA |GeForce |Tesla ", "", self.name)
        return re.sub(r"[ -](PCIe|SXM\d?|NVL|HBM\d\w*|\d+GB)\b", "", bare, flags=re.IGNORECASE)


class Measured(BaseModel):
    """A file of `bench card`, as far as the table shows it; `rates` are seconds a token (`plan.Rates`), by which hours follow."""

    card: Named | None
    shape: str
    vram: int | None
    found: dict[str, Figures]
    rates: dict[Literal["token", "read", "dpo"], float] | None = None

    def rate(self, name: str) -> float | None:
        """Return the tokens a second of a measurement with the run's own type of weights; None where there is none."""
        figures = self.found.get(f"q8_0: {name}")
        return figures.tokens_per_s if figures else None


def read(path: Path) -> Measured:
    """Read a file of `bench card`. Raises DataError where it is none."""
    try:
        return Measured.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there; give files that `bench card` wrote, as .github/cards/card-NAME.json") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path} is no file of `bench card`: {f'{where}: ' if where else ''}{first['msg']}") from error


def shown(measured: Measured, shape: str = "llama-3-8b") -> bool:
    """Whether a file is of a whole card, and of this shape."""
    return measured.card is not None and measured.shape == shape and measured.vram is None


def table(documents: Sequence[Measured], preset: str = "overnight", shape: str = "llama-3-8b") -> str:
    """Return, as Markdown, what files of this bench say of each card, at one shape; what none says of a known card is empty.

    Hours that no file measured stand in a column of their own: estimates from the vendor's figures (`plan`). What is not `shown`
    is left out.
    """
    settings, llama = config.load(preset), SHAPES[shape]
    lines = [
        f"| card | tokens/s, 64 sequences | times the naive loop | of bare llama.cpp, 32 | seconds of a DPO pair, 1024 tokens | "
        f"hours of an `{preset}` iteration | estimate |", f"|---|{'---|' * 6}",
    ]
    by_card: dict[str, list[Measured]] = {}
    for one in documents:
        if one.card is not None and shown(one, shape):
            by_card.setdefault(one.card.short, []).append(one)
    for name in dict.fromkeys((*plan.KNOWN, *sorted(by_card))):
        fullest = max(by_card.get(name, []), key=lambda one: len(one.found), default=None)
        hours, guess = None, "–"
        if fullest is not None and fullest.rates:
            hours = iteration_hours(settings, plan.priced(settings, llama, plan.Rates(**fullest.rates), "measured"))
        if key := plan.known(name):
            guess = f"{iteration_hours(settings, plan.estimated(settings, llama, plan.KNOWN[key], key)):.1f}"
        lines.append(f"| {name} | {' | '.join(_cells(fullest, hours))} | {guess} |")
    return "\n".join(lines) + "\n"


def _cells(measured: Measured | None, hours: float | None) -> list[str]:
    """The figures of one card; a quotient only where both of its parts were measured."""
    if measured is None:
        return [UNKNOWN] * 5

    def quotient(over: float | None, under: float | None) -> float | None:
        return over / under if over and under else None

    trained = [one for name, one in measured.found.items() if name.startswith("DPO, ") and name.endswith(" 1024 tokens")]
    values = (
        measured.rate("64 sequences"), quotient(measured.rate("64 sequences"), measured.rate("naive loop")),
        quotient(measured.rate("32 sequences"), measured.rate("bare llama_decode, 32 sequences")),
        min((one.seconds_of_a_pair for one in trained if one.seconds_of_a_pair is not None), default=None),
        hours,
    )
    return [UNKNOWN if value is None else f"{value:.0f}" if value >= 100 else f"{value:.2f}" for value in values]
