"""`python -m selfreward_lite plan`: reads arguments, prints what a run will need. The arithmetic is in `plan` and `memory`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from selfreward_lite import config
from selfreward_lite.cli.output import console, say
from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub
from selfreward_lite.run import plan, stages
from selfreward_lite.run.plan import Estimate
from selfreward_lite.system.files import format_bytes

ASSUMED = (
    f"assumed: responses of {stages.RESPONSE_SHARE:.0%} of their limit, judgments and battles of {stages.JUDGMENT_SHARE:.0%}; "
    f"{stages.PAIR_SHARE:.0%} of the prompts give a response pair, {stages.JUDGMENT_PAIR_SHARE:.0%} a judgment pair; of a card's "
    f"figures {plan.READ_SHARE:.0%} of its bandwidth are reached, and {plan.STEP_SHARE:.0%}, {plan.PREFILL_SHARE:.0%}, "
    f"{plan.TRAIN_SHARE:.0%} of its operations in steps, prompts, training. Nothing of it is measured on a card yet: estimates."
)


def show(
    preset: Annotated[str, typer.Option(help="What to plan.")] = "tiny",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, as in --set prompts.count=500.")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Iterations after the seed stage, in all.", min=0)
    ] = None,
    card: Annotated[
        str | None,
        typer.Option(help="For this card, as 'RTX 3090'; by default the one that is there."),
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="Folder that is to hold the run.")] = Path("runs"),
) -> None:
    """Say what a run will need, before anything starts: hours and card memory a stage, disk, download."""
    wanted = config.parse_overrides(set_ or []) | (
        {} if iterations is None else {"iterations": str(iterations)}
    )
    settings = config.load(preset, wanted)
    found = plan.estimate(settings, card, runs_dir)
    _print_hours(settings, found)
    _print_memory(found)
    parts = ", ".join(f"{what} {format_bytes(size)}" for what, size in found.disk.items())
    say(
        f"disk: {format_bytes(sum(found.disk.values()))} ({parts}), {format_bytes(found.free)} free; "
        f"download: {format_bytes(found.download) if found.download else 'nothing'}"
    )
    _print_cards(settings, found)
    file = hub.named(settings.model.gguf_file) if settings.model.gguf_file else None
    if file and not hub.is_here(file, "model"):
        say(
            f"{file} is not on this machine: counted as if it were {settings.model.gguf}, and not in the download"
        )
    say(ASSUMED)
    print(
        json.dumps(
            {
                "preset": preset,
                **found.prediction.to_json(),
                "disk": found.disk,
                "download": found.download,
            }
        )
    )


def _print_hours(settings: Settings, found: Estimate) -> None:
    expected = found.prediction
    if not expected.seconds:
        why = f"no figures of {expected.card}" if expected.card else "no card here"
        say(
            f"hours: {why}, so nothing is said of them; --card names one, `run --hours` fits a run to its own speed"
        )
        return
    whose = "" if expected.card in plan.GPU_SPEEDS else f": {expected.card}"
    table = Table("stage", "hours", title=f"{expected.source}{whose}", title_justify="left")
    for iteration in range(settings.iterations + 1):
        for (number, stage), spent in expected.seconds.items():
            if number == iteration and spent:
                table.add_row(f"M{number} {stage}", f"{spent / 3600:.2f}")
        table.add_row(
            f"M{iteration}, all of it", f"{expected.hours(iteration) or 0:.1f}", end_section=True
        )
    console.print(table)


def _print_memory(found: Estimate) -> None:
    table = Table("card memory", "at its peak", "of which", title="estimate", title_justify="left")
    for stage, parts in found.peaks.items():
        told = ", ".join(f"{what} {size / 1e9:.1f}" for what, size in parts.items())
        table.add_row(stage, f"{sum(parts.values()) / 1e9:.1f} GB", told)
    console.print(table)
    if found.room is not None and found.most > found.room:
        say(
            f"that is more than the {format_bytes(found.room)} there are: choose --preset small or t4, or lower engine.context, "
            "engine.parallel, dpo.max_length"
        )


def _print_cards(settings: Settings, found: Estimate) -> None:
    table = Table(
        "card",
        "memory",
        "seed stage, hours",
        "an iteration, hours",
        title="estimates",
        title_justify="left",
    )
    for name, speeds in plan.GPU_SPEEDS.items():
        costs = plan.estimate_costs(settings, found.llama, speeds, name)
        seed, one = (
            sum(stages.seconds_by_stage(settings, iteration, costs).values())
            for iteration in (0, 1)
        )
        fits = "" if found.most <= speeds.memory else " (too small)"
        table.add_row(
            name, f"{speeds.memory / 1e9:.0f} GB{fits}", f"{seed / 3600:.1f}", f"{one / 3600:.1f}"
        )
    console.print(table)
