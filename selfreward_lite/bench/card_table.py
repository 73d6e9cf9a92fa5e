"""The table of GPUs in docs/your-gpu.md: figures from files of `bench card`, and estimates."""

import re
from collections.abc import Sequence

from selfreward_lite import config
from selfreward_lite.bench.card_file import CardFile, iteration_hours
from selfreward_lite.models import memory
from selfreward_lite.models.hf_folder import SHAPES
from selfreward_lite.run import speed

UNKNOWN, TOO_SMALL = "not measured yet", "too small for it"
PRESET, SHAPE = "overnight", "llama-3-8b"

# Columns of tokens a second, alone or divided by others.
QUOTIENTS = (
    ("q8_0: 64 sequences", None),
    ("q8_0: 64 sequences", "q8_0: naive loop"),
    ("q8_0: 32 sequences", "q8_0: bare llama_decode, 32 sequences"),
)


def select_files(files: Sequence[CardFile]) -> dict[str, CardFile]:
    """The file to show of each GPU: of the complete GPU at this shape, with the most figures."""
    found: dict[str, CardFile] = {}
    for one in sorted(files, key=lambda one: len(one.found), reverse=True):
        if one.card and one.shape == SHAPE and one.vram is None:
            found.setdefault(one.card.short, one)
    return found


def build_table(files: Sequence[CardFile]) -> str:
    """The table as Markdown: what files measured of each GPU, and estimates from data sheets.

    Hours follow from a file's rates, whatever preset they were measured with.
    """
    settings, shape = config.load(PRESET), SHAPES[SHAPE]
    most = memory.largest_peak(memory.estimate_peaks(settings, shape))
    lines = [
        "| GPU | tokens/s, 64 sequences | times the naive loop | of raw llama.cpp, 32 | "
        f"seconds of a DPO pair, 1024 tokens | hours of an `{PRESET}` iteration | estimate |",
        f"|---|{'---|' * 6}",
    ]
    known = select_files(files)
    for name in dict.fromkeys((*speed.GPU_SPEEDS, *sorted(known))):
        one, hours, estimate = known.get(name), UNKNOWN, "–"
        if one and one.rates:
            costs = speed.costs_from_rates(settings, shape, one.rates)
            hours = _format(iteration_hours(settings, costs))
        if key := speed.gpu_key(name):
            speeds = speed.GPU_SPEEDS[key]
            costs = speed.estimate_costs(settings, shape, speeds)
            estimate = f"{iteration_hours(settings, costs):.1f}"
            if most > speeds.memory:
                hours = estimate = TOO_SMALL
        cells = _measured_cells(one) if one else [UNKNOWN] * 4
        lines.append(f"| {name} | {' | '.join([*cells, hours])} | {estimate} |")
    return "\n".join(lines) + "\n"


def _measured_cells(one: CardFile) -> list[str]:
    """The figures of one GPU; a quotient needs both of its parts."""
    rates = {name: figures.tokens_per_s for name, figures in one.found.items()}
    cells = []
    for over, under in QUOTIENTS:
        value, divisor = rates.get(over), rates.get(under) if under else 1.0
        failed = over in one.failed or under in one.failed
        cells.append(_format(value / divisor if value and divisor else None, failed))
    names = (*one.found, *one.failed)
    trained = [name for name in names if re.fullmatch("DPO, .* 1024 tokens", name)]
    seconds = [one.found[name].seconds_of_a_pair for name in trained if name in one.found]
    return [*cells, _format(min(filter(None, seconds), default=None), bool(trained))]


def _format(value: float | None, failed: bool = False) -> str:
    if value is None:
        return "failed" if failed else UNKNOWN
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"
