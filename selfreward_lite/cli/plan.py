"""`plan`: what a run will need. The arithmetic is in `run/plan.py` and `models/memory.py`."""

from typing import Annotated

from typer import Option

from selfreward_lite import config
from selfreward_lite.bench import plan_table
from selfreward_lite.cli.options import RUNS, Iterations, RunsDir, Set
from selfreward_lite.cli.output import emit, print_table, say
from selfreward_lite.cli.prompts import SkipBad, read_own_prompts
from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub
from selfreward_lite.run import plan, speed, stages
from selfreward_lite.run.plan import Estimate
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import format_bytes

LENGTHS = ", ".join(f"{text}s {mean:.0f}" for text, (mean, _) in stages.TEXTS.items())
ASSUMED = (
    f"Assumed: tokens before the limit cuts them, in the mean: {LENGTHS}; "
    f"{stages.PAIR_SHARE:.0%} of the prompts give a response pair, "
    f"{stages.JUDGMENT_PAIR_SHARE:.0%} a judgment pair. Of its nominal figures a GPU reaches "
    f"{speed.READ_SHARE:.0%} of the memory bandwidth, and of the operations "
    f"{speed.INT8_SHARE:.0%} of those in 8 bits on quantized weights, "
    f"{speed.ATTENTION_SHARE:.0%} of those in 16 bits in attention and {speed.TRAIN_SHARE:.0%} in "
    "training; a training begins with "
    f"{(speed.LOAD_SECONDS + speed.COMPILE_SECONDS) / 60:.0f} minutes of loading and compiling. "
    "These are estimates: nothing has been measured on a GPU yet."
)

DIVIDED = (
    "Training in {0} processes, each on a GPU of its own, is assumed to be {0} times as fast as in "
    "one; exchanging gradients takes some of that. Only the first GPU generates and judges."
)


def show(
    preset: Annotated[str, Option(help="Preset to plan for.")] = "tiny",
    set_: Set = None,
    iterations: Iterations = None,
    card: Annotated[
        str | None, Option(help="GPU to plan for, such as 'RTX 3090'; by default this machine's.")
    ] = None,
    runs_dir: RunsDir = RUNS,
    tables: Annotated[
        bool, Option(help="Print every preset on every GPU, as Markdown, and nothing else.")
    ] = False,
    prompts: Annotated[
        str | None,
        Option(help="Only read your own prompts, and say what is used of them and what is not."),
    ] = None,
    skip_bad: SkipBad = False,
) -> None:
    """Estimate hours, GPU memory, disk and download of a run before it starts."""
    if tables:
        say(f"{plan_table.build_presets_table()}\n{plan_table.build_night_table()}")
        emit({"presets": list(plan_table.list_presets())})
        return
    options = {"iterations": iterations, "skip_bad": "true" if skip_bad else None}
    settings = config.load(preset, config.parse_overrides(set_, options))
    if prompts is not None:
        _read_prompts(prompts, settings)
        return
    found = plan.estimate(settings, card, runs_dir)
    _print_hours(settings, found)
    rows = [
        [
            stage,
            f"{sum(parts.values()) / 1e9:.1f} GB",
            ", ".join(f"{what} {size / 1e9:.1f}" for what, size in parts.items()),
        ]
        for stage, parts in found.peaks.items()
    ]
    several = settings.training.processes > 1
    what = "memory of each GPU" if several else "GPU memory"
    print_table([what, "at its peak", "of which"], rows, "estimate")
    if found.room is not None and found.most > found.room:
        say(
            f"That is more than the {format_bytes(found.room)} there are: choose --preset small or "
            "t4, or lower engine.context, engine.parallel or dpo.max_length."
        )
    parts = ", ".join(f"{what} {format_bytes(size)}" for what, size in found.disk.items())
    say(
        f"disk: {format_bytes(sum(found.disk.values()))} ({parts}), {format_bytes(found.free)} "
        f"free; download: {format_bytes(found.download) if found.download else 'nothing'}"
    )
    rows = []
    for name, speeds in speed.GPU_SPEEDS.items():
        costs = speed.estimate_costs(settings, found.shape, speeds)
        spent = (stages.seconds_by_stage(settings, iteration, costs) for iteration in (0, 1))
        hours = [f"{sum(seconds.values()) / 3600:.1f}" for seconds in spent]
        fits = "" if found.most <= speeds.memory else " (too small)"
        rows.append([name, f"{speeds.memory / 1e9:.0f} GB{fits}", *hours])
    print_table(["GPU", "memory", "seed stage, hours", "an iteration, hours"], rows, "estimates")
    if settings.model.base == hub.PACKAGED:
        try:
            hub.find_packaged()
        except UserError as error:
            say(str(error))
    if file := hub.find_missing(settings.model.gguf_file, "model"):
        say(
            f"{file} is not on this machine yet: its size is assumed to be that of a base in "
            f"{settings.model.gguf}, and the download does not include it"
        )
    say(ASSUMED)
    if several:
        say(DIVIDED.format(settings.training.processes))
    emit(
        {
            "preset": preset,
            **found.prediction.to_json(),
            "disk": found.disk,
            "download": found.download,
        }
    )


def _read_prompts(prompts: str, settings: Settings) -> None:
    """Read a file of prompts as a run does, and say what was found."""
    from selfreward_lite.method.new_prompts import count_different

    texts, skipped, _ = read_own_prompts(prompts, settings)
    different = count_different(texts)
    say(f"{prompts}: {different:,} different prompts, {len(texts) - different:,} repeated ones")
    emit({"prompts": different, "repeated": len(texts) - different, "left_out": dict(skipped)})


def _print_hours(settings: Settings, found: Estimate) -> None:
    expected = found.prediction
    if not expected.seconds:
        why = f"speed of {expected.card} unknown" if expected.card else "no GPU here"
        if not expected.card and (time := plan.CPU_TIMES.get(settings.preset)):
            say(f"hours: {why}; a run of this preset takes {time}")
            return
        say(
            f"hours: {why}, so there is no estimate. --card names another GPU; `run --hours` fits "
            "a run to the speed that it measures"
        )
        return
    rows = []
    for iteration in range(settings.iterations + 1):
        rows += [
            [f"M{iteration} {stage}", f"{seconds / 3600:.2f}"]
            for stage, seconds in expected.seconds[iteration].items()
            if seconds
        ]
        rows += [[f"M{iteration}, in total", f"{expected.hours(iteration) or 0:.1f}"], []]
    busy = (
        f"{text}s {slots:.0f}, {cells:,.0f}"
        for text, asked in speed.list_questions(settings).items()
        for slots, cells in [speed.occupancy(settings.engine, asked)]
    )
    card = "" if expected.card in speed.GPU_SPEEDS else f": {expected.card}"
    print_table(["stage", "hours"], rows, f"{expected.source}{card}")
    say(
        f"of {settings.engine.parallel} sequences those that run at once, and of "
        f"{settings.engine.context:,} cells those that each reads: {'; '.join(busy)}"
    )
