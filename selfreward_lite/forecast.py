"""What a run will need on this machine, before anything starts, as one value: hours, card memory, disk, download.

Knows: which shape a base has, which card is there, what is on this disk. Does not know: the arithmetic (`plan`, `memory`), or how
it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from selfreward_lite import hub, memory, plan
from selfreward_lite.cards import cards
from selfreward_lite.config import Settings
from selfreward_lite.disk import free_bytes
from selfreward_lite.errors import UserError
from selfreward_lite.llama_folder import Llama, read_config
from selfreward_lite.shapes import BASES, SHAPES


@dataclass(frozen=True)
class Forecast:
    """Seconds and card memory a stage, disk by what needs it, in bytes; what the disk has free, what is to be downloaded.

    `seconds` is empty where nothing is known of the card, or there is none; `room` is the card's memory, None without one.
    """

    llama: Llama
    card: str | None
    source: str | None
    seconds: dict[str, float]
    peaks: dict[str, dict[str, int]]
    room: float | None
    disk: dict[str, int]
    free: int
    download: int

    @property
    def most(self) -> int:
        """Bytes of the card that the hungriest stage takes."""
        return memory.most(self.peaks)

    def hours(self, iteration: int) -> float | None:
        """Hours of the seed stage (0) or of an iteration; None where nothing is known."""
        return sum(spent for stage, spent in self.seconds.items() if stage.startswith(f"M{iteration} ")) / 3600 or None


def forecast(settings: Settings, card: str | None, runs_dir: Path) -> Forecast:
    """Return what a run with these settings will need, on a named `card` or on the one that is there.

    Raises UserError for a card of which nothing is known.
    """
    if card is not None and plan.known(card) is None:
        raise UserError(f"--card {card}: no figures of it; choose one of {', '.join(plan.KNOWN)}")
    llama, there = _shape(settings.model.base), cards()
    name = card or (there[0].name if there else None)
    expected = plan.predicted(settings, llama, name)
    known = plan.KNOWN[key].memory if (key := plan.known(name or "")) else None
    return Forecast(
        llama, name, expected["source"], expected["seconds"], memory.peaks(settings, llama),
        known if card or not there else float(there[0].free),
        plan.disk(settings, llama, settings.iterations, seed_stage=True, base_written=False), free_bytes(runs_dir),
        _download(settings, llama),
    )


def _shape(base: str) -> Llama:
    """The shape of a base that is here, or is known by name, or can be asked for."""
    repository = hub.named(base)
    if repository is None or hub.is_here(repository, "model"):
        return read_config(hub.model_folder(base))
    if repository.id in BASES:
        return SHAPES[BASES[repository.id]]
    return read_config(hub.config_folder(repository))


def _download(settings: Settings, llama: Llama) -> int:
    """Bytes of a base and of OASST1 that are not here yet, roughly."""
    size, repository = 0.0, hub.named(settings.model.base)
    if repository and not hub.is_here(repository, "model"):
        linear = memory.linear_weights(llama)
        size += linear * memory.NF4_BYTES + 2 * (memory.weights(llama) - linear)
    ranked = hub.named(settings.seed_stage.ranked)
    if ranked and not hub.is_here(ranked, "dataset"):
        size += 41.6e6  # OASST1's two Parquet files, by the hub's page
    return int(size)
