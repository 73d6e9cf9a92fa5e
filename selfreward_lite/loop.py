"""The order of the steps, written once; and what a run is: a folder that can be gone on with at any time.

Knows: which step follows which, when a run is new, unfinished or finished. Does not know: what a step does. Every step does
only what is missing, so going on after a kill is the same as starting: all of them are called again, in order.
"""

from __future__ import annotations

import math
import os
import platform
import uuid
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from jinja2 import TemplateError

from selfreward_lite import assess, budget, config, datafiles, hub, plan, steps, training_steps, tripwires
from selfreward_lite.cards import cards
from selfreward_lite.chat import ChatFormat, user
from selfreward_lite.config import Settings
from selfreward_lite.disk import check_disk
from selfreward_lite.errors import ConfigError, ExportError
from selfreward_lite.llama_folder import check_folder, read_config
from selfreward_lite.manifest import MANIFEST
from selfreward_lite.run import Run
from selfreward_lite.runner import Watch
from selfreward_lite.store import Store
from selfreward_lite.tools import Tools

Step = Callable[[Run, int], None]

# base → M0: the judge learns from judgments that agree with ranked human data.
SEED_STAGE: tuple[Step, ...] = (
    steps.read_ranked,
    steps.read_prompts,
    tripwires.lay_canaries,
    steps.export_base,
    steps.check_models,
    assess.measure_base,
    steps.lay_decoys,
    steps.judge_ranked,
    training_steps.train_seed,
    steps.export,
    assess.measure,
    assess.pass_gates,
    assess.promote,
)

# M(t−1) → M(t): the model answers, judges its answers, judges its judgments, and learns from both.
ITERATION: tuple[Step, ...] = (
    steps.export_base,
    steps.check_models,
    budget.fit,
    steps.new_prompts,
    steps.respond,
    steps.judge,
    steps.pair_responses,
    steps.battle,
    steps.rate,
    steps.pair_judgments,
    assess.pass_data_gates,
    training_steps.train,
    steps.export,
    assess.measure,
    assess.pass_gates,
    assess.promote,
)

# What may change when a run is gone on with: nothing that has a part in what its records mean.
_FREE = ("iterations", "engine", "gates", "backend", "checkpoint_minutes")
_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "llama-cpp-python", "gguf")


def run(store: Store, settings: Settings, tools: Tools, watch: Watch, deadline: float = math.inf) -> None:
    """Do whatever is missing of the seed stage and of `settings.iterations` iterations, those so large that they are done by
    `deadline` (on the clock of time.monotonic).

    Raises GateStop where a gate refuses a model; the run can be gone on with after it, as after a kill.
    """
    model_dir = hub.model_folder(settings.model.base)
    chat = ChatFormat.load(model_dir)
    if settings.judge.score == "expected" and any(len(chat.text_ids(digit)) != 1 for digit in "012345"):
        raise ConfigError(f"{model_dir}: a digit is not one token here, so there is no expected score; use judge.score=mean")
    newest = store.newest()
    left, whole = max(0, settings.iterations - (newest or 0)), newest is None
    base_written, llama = (store.folder / "base" / MANIFEST).exists(), read_config(model_dir)
    check_disk(store.folder, plan.disk(settings, llama, left, seed_stage=whole, base_written=base_written))
    if store.fact("plan") is None:
        there = cards()
        store.state("plan", plan.predicted(settings, llama, there[0].name if there else None))
    work = Run(store, settings, chat, model_dir, tools, watch, deadline)
    try:
        for iteration in range(settings.iterations + 1):
            newest = store.newest()
            if newest is not None and newest >= iteration:
                continue
            for step in ITERATION if iteration else SEED_STAGE:
                step(work, iteration)
    finally:
        work.release_engine()


def settle(
    store: Store, wanted: dict[str, str], preset: str | None, show: hub.Show = hub.quiet,
    check: Callable[[Settings], None] = lambda settings: None,
) -> Settings:
    """Return the settings of a run: those it was begun with, or for a new run the preset's, with `wanted` laid over.

    `wanted` are dotted overrides. After a `check`, what the settings name on the hub is downloaded, with `show` told how far it
    is, and from then on named by its commit. Raises ConfigError where they contradict what the run's records were made with.
    """
    begun = store.fact("settings")
    if begun is None or not store.has_items():
        settings = config.load(preset or "tiny", wanted)
        check(settings)
        settings = _downloaded(settings, NAMED, show)
        _check_folder(settings)
        _check_prompts(settings)
        store.state("run", f"seed {settings.seed}")
        store.state("birth", uuid.uuid4().hex)  # tells this run from every other of its name, wherever copies of it lie
        there = cards()
        store.state("hardware", f"{there[0].name}, driver {there[0].driver}" if there else f"{os.cpu_count()} CPU cores, no card")
        store.state("versions", {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}})
        store.state("settings", _lasting(settings))
        return settings
    if preset not in (None, begun["preset"]):
        raise ConfigError(f"{store.folder} was begun with preset {begun['preset']}; give another --name for {preset}")
    # What was read is in the records; of what the settings name, a run that goes on needs the model alone.
    needed = [entry for entry in NAMED if entry[0] == "model" or not store.is_done(0, "ranked")]
    settings = _as_begun(config.override(begun, wanted), begun)
    check(settings)
    settings = _downloaded(settings, needed, show)
    before = config.parse(begun).model_dump(mode="json")
    for key, value in settings.model_dump(mode="json").items():
        if key not in _FREE and value != before[key]:
            raise ConfigError(f"{store.folder} was begun with other settings ({key}); give another --name to change them")
    store.state("settings", _lasting(settings))
    return settings


# Settings that may name a repository of the hub, with what they expect there.
NAMED: tuple[tuple[str, str, hub.Kind], ...] = (
    ("model", "base", "model"), ("model", "gguf_file", "model"), ("seed_stage", "ranked", "dataset"),
    ("prompts", "file", "dataset"),
)


def _downloaded(settings: Settings, needed: Sequence[tuple[str, str, hub.Kind]], show: hub.Show) -> Settings:
    """The settings with every repository that is needed at the commit that lies on this machine now."""
    found: dict[str, dict[str, str]] = {section: {} for section, _, _ in needed}
    for section, name, kind in needed:
        text = getattr(getattr(settings, section), name)
        repository = hub.named(text) if text else None
        if repository is not None:
            found[section][name] = str(hub.fetch(repository, kind, show)[1])
    changed = {section: getattr(settings, section).model_copy(update=values) for section, values in found.items()}
    return settings.model_copy(update=changed)


def _as_begun(settings: Settings, begun: dict[str, Any]) -> Settings:
    """The settings with every repository that is named as it was when the run began at the commit that it had then."""
    changed: dict[str, dict[str, str]] = {}
    for section, name, _ in NAMED:
        text, before = getattr(getattr(settings, section), name), begun[section].get(name)
        asked, had = (hub.named(one) if one else None for one in (text, before))
        if asked and had and (asked.id, asked.file) == (had.id, had.file) and asked.revision is None:
            changed.setdefault(section, {})[name] = before
    return settings.model_copy(
        update={section: getattr(settings, section).model_copy(update=values) for section, values in changed.items()}
    )


def _lasting(settings: Settings) -> dict[str, Any]:
    """Going past refusing gates is said anew in every command: whoever resumes without a word is stopped by them."""
    return settings.model_copy(update={"gates": settings.gates.model_copy(update={"mode": "stop"})}).model_dump(mode="json")


def _check_folder(settings: Settings) -> None:
    """What cannot be served is better said now than after the first stage."""
    folder = hub.model_folder(settings.model.base)
    try:
        check_folder(folder)
        if settings.model.quantisation == "none" and read_config(folder).packed:
            raise ConfigError(f"{folder} holds 4-bit weights; set model.quantisation=nf4, or model.base to a folder in 16 bits")
        ChatFormat.load(folder).prompt_ids(user("Hello."))
    except ExportError as error:
        raise ConfigError(str(error)) from None
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, TemplateError) as error:
        # somebody else's JSON and Jinja: whatever is not where it belongs ends up here
        raise ConfigError(
            f"{folder}: its files are not those of a Llama with a chat template ({type(error).__name__}: {error}); "
            "download it again"
        ) from None


def _check_prompts(settings: Settings) -> None:
    """A bad line is better found before a run has settings that stick: the same name then takes --skip-bad, or another file."""
    if settings.prompts.file is not None:
        found = datafiles.prompts(datafiles.read_rows(hub.local(settings.prompts.file, "dataset"), skip_bad=settings.skip_bad))
        if len(found) <= (settings.iterations - 1) * settings.prompts.count:
            raise ConfigError(
                f"{settings.prompts.file} holds {len(found)} prompts: too few for {settings.iterations} iterations of "
                f"{settings.prompts.count}; set prompts.count={max(1, len(found) // settings.iterations)}, or --iterations lower"
            )


def finished(store: Store, settings: Settings) -> bool:
    """Whether nothing is left to do."""
    newest = store.newest()
    return newest is not None and newest >= settings.iterations
