"""The file that `bench card` writes for a GPU, and the hours that follow from its figures."""

import json
import re
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError

from selfreward_lite import config
from selfreward_lite.config.settings import Settings
from selfreward_lite.models.hf_folder import SHAPES
from selfreward_lite.run import speed
from selfreward_lite.run.stages import Costs, seconds_by_stage
from selfreward_lite.system.errors import DataError
from selfreward_lite.system.gpu import Gpu

PRECOMPUTED = "reference precomputed"  # its seconds a pair include loading


class Figures(BaseModel, extra="allow"):
    """What one measurement found; None: not measured. Figures that nothing reads have no field."""

    tokens_per_s: float | None = None
    generated: int | None = None
    read: int | None = None
    seconds: float | None = None
    seconds_of_a_pair: float | None = None
    tokens_of_a_pair: int | None = None
    peak_bytes: int | None = None


class CardFile(BaseModel):
    """A file of `bench card`: the machine, the figures by name, and what failed or had no time."""

    card: Gpu | None
    cpu_cores: int | None = None
    python: str = ""
    versions: dict[str, str] = {}
    at: str = ""
    command: str = ""
    shape: str
    preset: str = "overnight"
    vram: int | None
    predicted: dict[str, Any] = {}
    found: dict[str, Figures]
    failed: dict[str, str] = {}
    left_out: list[str] = []
    seconds: dict[str, float] = {}
    hours: dict[str, float] = {}
    predicted_hours: float | None = None
    rates: speed.Rates | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of `bench card`. Raises DataError if it is not one."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise DataError(
                f"{path} cannot be read ({error.strerror}); give files of `bench card`, such as "
                "docs/results/gpus/card-NAME.json"
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(
                f"{path} is not a file of `bench card`: {where and f'{where}: '}{first['msg']}"
            ) from error

    def write(self, path: Path) -> None:
        """Write what is known so far."""
        document = self.model_dump(exclude_unset=True)
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    def add_hours(self) -> None:
        """Add the hours of an iteration that follow, here and on other GPUs.

        Generation scales with memory bandwidth, prompts and training with operations a second.
        """
        settings, shape = config.load(self.preset), SHAPES[self.shape]
        self.hours, self.predicted_hours, self.rates = {}, None, None  # set: they are written
        rates = self._measure_rates(settings)
        if rates is None:
            return
        if rates.token <= 0:
            self.failed["hours"] = (
                "prompts took longer alone than with generation; measure again on a quiet machine"
            )
            return

        def hours(rates: speed.Rates) -> float:
            return iteration_hours(settings, speed.costs_from_rates(settings, shape, rates))

        self.hours, self.rates = {"here": hours(rates)}, rates
        spent = self.predicted["seconds"].items()
        first = [seconds for stage, seconds in spent if stage.startswith("M1 ")]
        self.predicted_hours = sum(first) / 3600 or None
        key = speed.gpu_key(self.card.name) if self.card else None
        if key is None:
            return
        own = speed.GPU_SPEEDS[key]
        for name, other in speed.GPU_SPEEDS.items():
            slower, busier = own.bandwidth / other.bandwidth, own.operations / other.operations
            scaled = speed.Rates(rates.token * slower, rates.read * busier, rates.dpo * busier)
            self.hours[f"{name} (estimate)"] = hours(scaled)

    def _measure_rates(self, settings: Settings) -> speed.Rates | None:
        """Seconds a token; None while a part is missing, negative if parts contradict each other.

        Presets make Q8_0 of NF4. Of the training libraries the faster one counts, at the length of
        a typical row: half of the longest.
        """
        found = self.found
        pattern = r"q8_0: (\d+) sequences"
        counts = [int(match[1]) for name in found if (match := re.fullmatch(pattern, name))]
        prompts = found.get("q8_0: prompts alone")
        trained = [
            (figures.tokens_of_a_pair, figures.seconds_of_a_pair)
            for name, figures in found.items()
            if name.startswith("DPO, ")
            and not name.endswith(PRECOMPUTED)
            and figures.tokens_of_a_pair
            and figures.seconds_of_a_pair
        ]
        if not counts or prompts is None or not prompts.tokens_per_s or not trained:
            return None
        nearest = min(counts, key=lambda count: abs(count - settings.engine.parallel))
        generation, read = found[f"q8_0: {nearest} sequences"], 1 / prompts.tokens_per_s
        if not generation.generated or generation.seconds is None or generation.read is None:
            return None
        typical = settings.dpo.max_length
        tokens, seconds = min(trained, key=lambda one: (abs(one[0] - typical), one[1]))
        return speed.Rates(
            token=(generation.seconds - generation.read * read) / generation.generated,
            read=read,
            dpo=seconds / tokens,
        )


def iteration_hours(settings: Settings, costs: Costs) -> float:
    """The hours of a first iteration at these costs."""
    return sum(seconds_by_stage(settings, 1, costs).values()) / 3600
