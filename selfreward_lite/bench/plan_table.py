"""The tables of estimates in docs/your-gpu.md: every preset on every GPU, and one first night."""

from selfreward_lite import config
from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub
from selfreward_lite.models import memory
from selfreward_lite.models.hf_folder import BASES, SHAPES, ModelShape
from selfreward_lite.run import plan, speed
from selfreward_lite.run.stages import seconds_by_stage

# Presets whose base is a model of the table of bases: those that a GPU is for.
NIGHT, NIGHT_GPU = "overnight", "RTX 3090"
LEAST_MINUTES = 0.5  # a shorter stage has no row


def list_presets() -> dict[str, tuple[Settings, ModelShape]]:
    """The presets for a GPU with their models, by name."""
    found = {}
    for name in config.presets():
        settings = config.load(name)
        repository = hub.parse_repository(settings.model.base)
        if repository is not None and repository.id in BASES:
            found[name] = settings, SHAPES[BASES[repository.id]]
    return found


def build_presets_table() -> str:
    """GPU memory by stage, disk, and hours of seed stage and first iteration, as Markdown."""
    names = list(speed.GPU_SPEEDS)
    lines = [
        f"| preset | asking | SFT | DPO | disk | {' | '.join(names)} |",
        f"|---|{'---|' * (4 + len(names))}",
    ]
    for preset, (settings, shape) in list_presets().items():
        peaks = memory.estimate_peaks(settings, shape)
        sizes = [sum(parts.values()) for parts in peaks.values()]
        disk = sum(plan.disk_needs(settings, shape).values())
        cells = [f"{size / 1e9:.1f} GB" for size in (*sizes, disk)]
        for speeds in speed.GPU_SPEEDS.values():
            costs = speed.estimate_costs(settings, shape, speeds)
            spent = (sum(seconds_by_stage(settings, number, costs).values()) for number in (0, 1))
            hours = " + ".join(_format_hours(seconds / 3600) for seconds in spent)
            cells.append(hours if memory.largest_peak(peaks) <= speeds.memory else "too small")
        lines.append(f"| `{preset}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def build_night_table() -> str:
    """Minutes of the stages of a first night, as Markdown."""
    settings, shape = list_presets()[NIGHT]
    costs = speed.estimate_costs(settings, shape, speed.GPU_SPEEDS[NIGHT_GPU])
    lines = ["| stage | minutes | since the start |", "|---|---|---|"]
    total = 0.0
    for iteration in (0, 1):
        for stage, seconds in seconds_by_stage(settings, iteration, costs).items():
            total += seconds / 3600
            if seconds / 60 >= LEAST_MINUTES:
                lines.append(f"| M{iteration} {stage} | {seconds / 60:.0f} | {total:.1f} h |")
    return "\n".join(lines) + "\n"


def _format_hours(hours: float) -> str:
    return f"{hours:.1f}" if hours < 100 else f"{hours:.0f}"
