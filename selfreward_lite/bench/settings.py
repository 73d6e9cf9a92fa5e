"""Is the result an accident of its settings? The tiny run again, with one setting changed at a time.

Knows: which settings are varied and how far. Does not know: how a run works. All variants of a seed share its seed stage,
which none of them touches: the folder of M0 is copied, and the iterations run from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from selfreward_lite import config
from selfreward_lite.bench.seeds import OpenTools, Result, Say, finish
from selfreward_lite.config.settings import Settings
from selfreward_lite.data.store import Store
from selfreward_lite.run import loop, prepare
from selfreward_lite.run.ask import Watch
from selfreward_lite.system.errors import UserError

SEEDS = (200, 201)  # none of the published ones


def variants(settings: Settings) -> dict[str, dict[str, str]]:
    """Return by name what each variant changes: K, N, the actor's temperature, learning rate, prompts, and the anchor.

    An anchor of 0 is what the papers do.
    """

    def scaled(key: str, value: float, factors: Iterable[float]) -> dict[str, dict[str, str]]:
        return {f"{key}={value * factor:g}": {key: f"{value * factor:g}"} for factor in factors}

    actor = settings.responses
    return {
        "as it is": {},
        **{f"responses.count={count}": {"responses.count": str(count)} for count in (3, 8)},
        **{f"judge.count={count}": {"judge.count": str(count)} for count in (2, 6)},
        **{
            f"responses.draw.temperature={temperature:g}": {
                "responses.draw.temperature": f"{temperature:g}"
            }
            for temperature in (actor.draw.temperature - 0.2, actor.draw.temperature + 0.2)
        },
        **scaled("dpo.learning_rate", settings.dpo.learning_rate, (0.5, 2)),
        **scaled("prompts.count", settings.prompts.count, (0.5, 2)),
        **{f"dpo.anchor={weight}": {"dpo.anchor": str(weight)} for weight in (0, 1)},
    }


def run_variants(
    folder: Path,
    seeds: Iterable[int],
    base: Mapping[str, str],
    open_tools: OpenTools,
    watch: Watch,
    say: Say,
) -> dict[str, list[Result]]:
    """Run, or finish, every variant with every seed. Returns the results by variant, one a seed."""
    seeds = list(seeds)
    changes = variants(config.load("tiny", dict(base)))
    results: dict[str, list[Result]] = {name: [] for name in changes}
    with open_tools() as tools:
        for seed in seeds:
            start = folder / f"seed-{seed}" / "seed-stage"
            say(f"seed {seed}: the seed stage that all variants share")
            with Store.write(start) as store:
                settings = prepare.settle(
                    store, {**base, "seed": str(seed), "iterations": "0"}, "tiny"
                )
                loop.run(store, settings, tools, watch)
            for number, (name, change) in enumerate(changes.items(), 1):
                say(f"seed {seed}: {name} ({number} of {len(changes)})")
                branch(start, folder / f"seed-{seed}" / name, {**change, "iterations": "3"})
                with Store.write(folder / f"seed-{seed}" / name) as store:
                    settings = prepare.settle(
                        store,
                        {key: value for key, value in base.items() if key == "gates.mode"},
                        None,
                    )
                    results[name].append(finish(store, settings, tools, watch))
    return results


def branch(start: Path, folder: Path, change: Mapping[str, str]) -> None:
    """Copy a run that has ended its seed stage, with other settings for what follows; nothing if it is there already.

    Raises UserError where what is there was begun with others.
    """
    if folder.exists():
        with Store.read(start) as store, Store.read(folder) as there:
            # Parsed, since a setting that a later version has was not written down then: it has its default.
            if config.parse(there.fact("settings")) != config.override(
                store.fact("settings"), dict(change)
            ):
                raise UserError(
                    f"{folder} was begun with other settings; move it away, or give another --runs-dir"
                )
        return
    half = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(start, half)
    with Store.write(half) as store:
        begun: dict[str, Any] = store.fact("settings")
        store.state("settings", config.override(begun, dict(change)).model_dump(mode="json"))
    half.rename(folder)
