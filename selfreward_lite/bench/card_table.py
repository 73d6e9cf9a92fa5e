"""What is known of which card, as the README has it: figures from files of `bench card`, estimates in a column of their own.

Knows: which figures a reader wants. Does not know: how they were measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from selfreward_lite import config, plan
from selfreward_lite.bench.card import Found, iteration_hours
from selfreward_lite.shapes import SHAPES

UNKNOWN = "not measured yet"


def table(documents: Sequence[Found], preset: str = "overnight", shape: str = "llama-3-8b") -> str:
    """Return, as Markdown, what files of this bench say of each card that plans know, at one shape; what none says is empty.

    Hours that no file measured stand in a column of their own: estimates from the vendor's figures (`plan`).
    """
    settings, llama = config.load(preset), SHAPES[shape]
    lines = [
        f"| card | tokens/s, 64 sequences | times the naive loop | of bare llama.cpp, 32 | seconds of a DPO pair, 1024 tokens | "
        f"hours of an `{preset}` iteration | estimate |", f"|---|{'---|' * 6}",
    ]
    for name, speeds in plan.KNOWN.items():
        of_it = [one for one in documents if one["shape"] == shape and one["vram"] is None and _is(one, name)]
        found = max(of_it, key=lambda one: len(one["found"]), default={})
        guess = iteration_hours(settings, plan.estimated(settings, llama, speeds, name))
        lines.append(f"| {name} | {' | '.join(_cells(found))} | {guess:.1f} |")
    return "\n".join(lines) + "\n"


def _is(document: Found, name: str) -> bool:
    """Whether a file is of this very card: "RTX 4090 Laptop GPU" is another."""
    words = (document["card"] or {}).get("name", "").removeprefix("NVIDIA ").removeprefix("GeForce ").removeprefix("Tesla ")
    return re.fullmatch(rf"{name}([ -](PCIe|SXM\d?|HBM\d|\d+GB).*)?", words) is not None


def _cells(document: Found) -> list[str]:
    """The figures of one card; a quotient only where both of its parts were measured."""
    found = document.get("found", {})

    def rate(name: str) -> float | None:
        return found.get(f"q8_0: {name}", {}).get("tokens_per_s")

    def quotient(over: float | None, under: float | None) -> float | None:
        return over / under if over and under else None

    pairs = [found[name]["seconds_of_a_pair"] for name in found if name.startswith("DPO, ") and name.endswith(" 1024 tokens")]
    values = (
        rate("64 sequences"), quotient(rate("64 sequences"), rate("naive loop")),
        quotient(rate("32 sequences"), rate("bare llama_decode, 32 sequences")), min(pairs, default=None),
        document.get("hours", {}).get("here"),
    )
    return [UNKNOWN if value is None else f"{value:.0f}" if value >= 100 else f"{value:.2f}" for value in values]
