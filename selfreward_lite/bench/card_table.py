"""What is known of which card, as the README has it: figures from files of `bench card`, estimates in a column of their own.

Knows: which figures a reader wants, how a file of them looks. Does not know: how they were measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from selfreward_lite import config
from selfreward_lite.bench.card import iteration_hours
from selfreward_lite.models import memory
from selfreward_lite.models.hf_folder import SHAPES
from selfreward_lite.run import plan
from selfreward_lite.system.errors import DataError

UNKNOWN, TOO_SMALL = "not measured yet", "too small for it"

# Columns of tokens a second, alone or over others.
QUOTIENTS = (
    ("q8_0: 64 sequences", None),
    ("q8_0: 64 sequences", "q8_0: naive loop"),
    ("q8_0: 32 sequences", "q8_0: bare llama_decode, 32 sequences"),
)


class Figures(BaseModel):
    """What one measurement found, as far as the table shows it."""

    tokens_per_s: float | None = None
    seconds_of_a_pair: float | None = None


class Named(BaseModel):
    """A card, as its driver names it."""

    name: str

    @property
    def short(self) -> str:
        """The name without its maker.

        >>> Named(name="NVIDIA GeForce RTX 4090").short, Named(name="Tesla T4").short
        ('RTX 4090', 'T4')
        """
        return re.sub(r"NVIDIA |GeForce |Tesla ", "", self.name)


class Measured(BaseModel):
    """A file of `bench card`, as far as the table shows it. Hours follow from its rates, whatever preset they were taken with."""

    card: Named | None
    shape: str
    vram: int | None
    found: dict[str, Figures]
    failed: dict[str, str] = {}
    rates: plan.Rates | None = None


def read(path: Path) -> Measured:
    """Read a file of `bench card`. Raises DataError where it is none."""
    try:
        return Measured.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); give files of `bench card`, as .github/cards/card-NAME.json"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path} is no file of `bench card`: {f'{where}: ' if where else ''}{first['msg']}"
        ) from error


def shown(documents: Sequence[Measured], shape: str = "llama-3-8b") -> dict[str, Measured]:
    """Return, by the card's name, the file that the table shows: of a whole card, at this shape, that with the most figures."""
    found: dict[str, Measured] = {}
    for one in documents:
        if one.card is not None and one.shape == shape and one.vram is None:
            before = found.get(one.card.short)
            if before is None or len(one.found) > len(before.found):
                found[one.card.short] = one
    return found


def table(
    documents: Sequence[Measured], preset: str = "overnight", shape: str = "llama-3-8b"
) -> str:
    """Return, as Markdown, what files of this bench say of each card, at one shape; what none says of a known card is empty.

    Hours that no file measured stand in a column of their own: estimates from the vendor's figures (`plan`). There are none
    where the preset does not fit a known card.
    """
    settings, llama = config.load(preset), SHAPES[shape]
    most = memory.largest_peak(memory.estimate_peaks(settings, llama))
    lines = [
        f"| card | tokens/s, 64 sequences | times the naive loop | of bare llama.cpp, 32 | seconds of a DPO pair, 1024 tokens | "
        f"hours of an `{preset}` iteration | estimate |",
        f"|---|{'---|' * 6}",
    ]
    known = shown(documents, shape)
    for name in dict.fromkeys((*plan.GPU_SPEEDS, *sorted(known))):
        one, hours, guess = known.get(name), UNKNOWN, "–"
        if one is not None and one.rates is not None:
            hours = _cell(
                iteration_hours(
                    settings, plan.costs_from_rates(settings, llama, one.rates, "measured")
                ),
                failed=False,
            )
        if key := plan.gpu_key(name):
            guess = f"{iteration_hours(settings, plan.estimate_costs(settings, llama, plan.GPU_SPEEDS[key], key)):.1f}"
            if most > plan.GPU_SPEEDS[key].memory:
                hours = guess = TOO_SMALL
        lines.append(f"| {name} | {' | '.join([*_measured(one), hours])} | {guess} |")
    return "\n".join(lines) + "\n"


def _measured(one: Measured | None) -> list[str]:
    """The figures of one card; a quotient only where both of its parts were measured."""
    if one is None:
        return [UNKNOWN] * 4

    def rate(name: str) -> float | None:
        figures = one.found.get(name)
        return figures.tokens_per_s if figures else None

    cells = []
    for over, under in QUOTIENTS:
        value, divisor = rate(over), 1.0 if under is None else rate(under)
        cells.append(
            _cell(
                value / divisor if value and divisor else None,
                failed=not {over, under}.isdisjoint(one.failed),
            )
        )
    trained = [
        name
        for name in (*one.found, *one.failed)
        if name.startswith("DPO, ") and name.endswith(" 1024 tokens")
    ]
    seconds = [one.found[name].seconds_of_a_pair for name in trained if name in one.found]
    best = min((value for value in seconds if value is not None), default=None)
    return [*cells, _cell(best, failed=bool(trained))]


def _cell(value: float | None, *, failed: bool) -> str:
    if value is None:
        return "failed" if failed else UNKNOWN
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"
