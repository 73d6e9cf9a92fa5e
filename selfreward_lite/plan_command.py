"""`python -m selfreward_lite plan`: reads arguments, prints what a run will need. The arithmetic is in `plan` and `memory`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from selfreward_lite import config, hub, memory, plan
from selfreward_lite.cards import cards
from selfreward_lite.config import Settings
from selfreward_lite.disk import free_bytes, in_words
from selfreward_lite.display import console, say
from selfreward_lite.errors import UserError
from selfreward_lite.llama_folder import Llama, read_config
from selfreward_lite.shapes import BASES, SHAPES

ASSUMED = (
    f"assumed: responses of {plan.RESPONSE_SHARE:.0%} of their limit, judgments and battles of {plan.JUDGMENT_SHARE:.0%}; "
    f"{plan.PAIR_SHARE:.0%} of the prompts give a response pair, {plan.JUDGMENT_PAIR_SHARE:.0%} a judgment pair; of a card's "
    f"figures {plan.READ_SHARE:.0%} of its bandwidth are reached, and {plan.STEP_SHARE:.0%}, {plan.PREFILL_SHARE:.0%}, "
    f"{plan.TRAIN_SHARE:.0%} of its operations in steps, prompts, training. Nothing of it is measured on a card yet: estimates."
)


def show(
    preset: Annotated[str, typer.Option(help="What to plan.")] = "tiny",
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting, as in --set prompts.count=500.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Iterations after the seed stage, in all.", min=0)] = None,
    card: Annotated[str | None, typer.Option(help="For this card, as 'RTX 3090'; by default the one that is there.")] = None,
    runs_dir: Annotated[Path, typer.Option(help="Folder that is to hold the run.")] = Path("runs"),
) -> None:
    """Say what a run will need, before anything starts: hours and card memory a stage, disk, download."""
    wanted = config.parse_overrides(set_ or []) | ({} if iterations is None else {"iterations": str(iterations)})
    settings = config.load(preset, wanted)
    llama = _shape(settings.model.base)
    name = _card(card)
    expected = plan.predicted(settings, llama, name)
    _print_hours(settings, expected, name)
    peaks = memory.peaks(settings, llama)
    total = plan.KNOWN[known].memory if (known := plan.known(name or "")) else None
    _print_memory(peaks, total if card or not cards() else float(cards()[0].free))
    needs = plan.disk(settings, llama, settings.iterations, seed_stage=True, base_written=False)
    download = _download(settings, llama)
    free = free_bytes(runs_dir)
    say(f"disk: {in_words(sum(needs.values()))} ({', '.join(f'{what} {in_words(size)}' for what, size in needs.items())}), "
        f"{in_words(free)} free; download: {in_words(download) if download else 'nothing'}")
    _print_cards(settings, llama)
    file = hub.named(settings.model.gguf_file) if settings.model.gguf_file else None
    if file and not hub.is_here(file, "model"):
        say(f"{file} is not on this machine: counted as if it were {settings.model.gguf}, and not in the download")
    say(ASSUMED)
    print(json.dumps({"preset": preset, **expected, "disk": needs, "download": download}))


def _shape(base: str) -> Llama:
    """The shape of a base that is here, or is known by name, or can be asked for."""
    repository = hub.named(base)
    if repository is None or hub.is_here(repository, "model"):
        return read_config(hub.model_folder(base))
    if repository.id in BASES:
        return SHAPES[BASES[repository.id]]
    return read_config(hub.config_folder(repository))


def _card(asked: str | None) -> str | None:
    if asked is not None:
        if plan.known(asked) is None:
            raise UserError(f"--card {asked}: no figures of it; choose one of {', '.join(plan.KNOWN)}")
        return asked
    there = cards()
    return there[0].name if there else None


def _print_hours(settings: Settings, expected: dict[str, Any], name: str | None) -> None:
    if not expected["seconds"]:
        why = f"no figures of {name}" if name else "no card here"
        say(f"hours: {why}, so nothing is said of them; --card names one, `run --hours` fits a run to its own speed")
        return
    whose = "" if name in plan.KNOWN else f": {name}"
    table = Table("stage", "hours", title=f"{expected['source']}{whose}", title_justify="left")
    for iteration in range(settings.iterations + 1):
        mine = {stage: spent for stage, spent in expected["seconds"].items() if stage.startswith(f"M{iteration} ") and spent}
        for stage, spent in mine.items():
            table.add_row(stage, f"{spent / 3600:.2f}")
        table.add_row(f"M{iteration}, all of it", f"{sum(mine.values()) / 3600:.1f}", end_section=True)
    console.print(table)


def _print_memory(peaks: dict[str, dict[str, int]], total: float | None) -> None:
    table = Table("card memory", "at its peak", "of which", title="estimate", title_justify="left")
    for stage, parts in peaks.items():
        told = ", ".join(f"{what} {size / 1e9:.1f}" for what, size in parts.items())
        table.add_row(stage, f"{sum(parts.values()) / 1e9:.1f} GB", told)
    console.print(table)
    worst = max(sum(parts.values()) for parts in peaks.values())
    if total is not None and worst > total:
        say(f"that is more than the {in_words(total)} there are: choose --preset small or t4, or lower engine.context, "
            "engine.parallel, dpo.max_length")


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


def _print_cards(settings: Settings, llama: Llama) -> None:
    table = Table("card", "memory", "seed stage, hours", "an iteration, hours", title="estimates", title_justify="left")
    peak = max(sum(parts.values()) for parts in memory.peaks(settings, llama).values())
    for name, speeds in plan.KNOWN.items():
        costs = plan.estimated(settings, llama, speeds, name)
        seed = sum(plan.seconds(plan.counts(settings, range(0), seed_stage=True), costs).values())
        one = sum(plan.seconds(plan.counts(settings, range(1, 2), seed_stage=False), costs).values())
        fits = "" if peak <= speeds.memory else " (too small)"
        table.add_row(name, f"{speeds.memory / 1e9:.0f} GB{fits}", f"{seed / 3600:.1f}", f"{one / 3600:.1f}")
    console.print(table)
