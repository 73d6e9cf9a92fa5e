"""New or resumed: settings, downloads, checks before the first step."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from jinja2 import TemplateError

from selfreward_lite import config
from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub, prompt_files
from selfreward_lite.data.store import Store
from selfreward_lite.models.chat_format import ChatFormat, user
from selfreward_lite.models.hf_folder import check_folder, read_config
from selfreward_lite.system.errors import ConfigError, ExportError
from selfreward_lite.system.gpu import list_gpus

# What may change when a run is gone on with: nothing that has a part in what its records mean.
_FREE = ("iterations", "engine", "gates", "backend", "checkpoint_minutes")
_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "llama-cpp-python", "gguf")


def load_or_create_settings(
    store: Store,
    wanted: dict[str, str],
    preset: str | None,
    show: hub.Show = hub.show_nothing,
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
        store.state(
            "birth", uuid.uuid4().hex
        )  # tells this run from every other of its name, wherever copies of it lie
        there = list_gpus()
        store.state(
            "hardware",
            f"{there[0].name}, driver {there[0].driver}"
            if there
            else f"{os.cpu_count()} CPU cores, no card",
        )
        store.state(
            "versions",
            {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        )
        store.state("settings", _lasting(settings))
        return settings
    if preset not in (None, begun["preset"]):
        raise ConfigError(
            f"{store.folder} was begun with preset {begun['preset']}; give another --name for {preset}"
        )
    # What was read is in the records; of what the settings name, a run that goes on needs the model alone.
    needed = [entry for entry in NAMED if entry[0] == "model" or not store.is_done(0, "ranked")]
    settings = _as_begun(config.override(begun, wanted), begun)
    check(settings)
    settings = _downloaded(settings, needed, show)
    before = config.parse(begun).model_dump(mode="json")
    for key, value in settings.model_dump(mode="json").items():
        if key not in _FREE and value != before[key]:
            raise ConfigError(
                f"{store.folder} was begun with other settings ({key}); give another --name to change them"
            )
    store.state("settings", _lasting(settings))
    return settings


# Settings that may name a repository of the hub, with what they expect there.
NAMED: tuple[tuple[str, str, hub.Kind], ...] = (
    ("model", "base", "model"),
    ("model", "gguf_file", "model"),
    ("seed_stage", "ranked", "dataset"),
    ("prompts", "file", "dataset"),
)


def _downloaded(
    settings: Settings, needed: Sequence[tuple[str, str, hub.Kind]], show: hub.Show
) -> Settings:
    """The settings with every repository that is needed at the commit that lies on this machine now."""
    found: dict[str, dict[str, str]] = {section: {} for section, _, _ in needed}
    for section, name, kind in needed:
        text = getattr(getattr(settings, section), name)
        repository = hub.parse_repository(text) if text else None
        if repository is not None:
            found[section][name] = str(hub.fetch(repository, kind, show)[1])
    changed = {
        section: getattr(settings, section).model_copy(update=values)
        for section, values in found.items()
    }
    return settings.model_copy(update=changed)


def _as_begun(settings: Settings, begun: dict[str, Any]) -> Settings:
    """The settings with every repository that is named as it was when the run began at the commit that it had then."""
    changed: dict[str, dict[str, str]] = {}
    for section, name, _ in NAMED:
        text, before = getattr(getattr(settings, section), name), begun[section].get(name)
        asked, had = (hub.parse_repository(one) if one else None for one in (text, before))
        if (
            asked
            and had
            and (asked.id, asked.file) == (had.id, had.file)
            and asked.revision is None
        ):
            changed.setdefault(section, {})[name] = before
    return settings.model_copy(
        update={
            section: getattr(settings, section).model_copy(update=values)
            for section, values in changed.items()
        }
    )


def _lasting(settings: Settings) -> dict[str, Any]:
    """Going past refusing gates is said anew in every command: whoever resumes without a word is stopped by them."""
    return settings.model_copy(
        update={"gates": settings.gates.model_copy(update={"mode": "stop"})}
    ).model_dump(mode="json")


def _check_folder(settings: Settings) -> None:
    """What cannot be served is better said now than after the first stage."""
    folder = hub.find_model_folder(settings.model.base)
    try:
        check_folder(folder)
        if settings.model.quantisation == "none" and read_config(folder).packed:
            raise ConfigError(
                f"{folder} holds 4-bit weights; set model.quantisation=nf4, or model.base to a folder in 16 bits"
            )
        ChatFormat.load(folder).prompt_ids(user("Hello."))
    except ExportError as error:
        raise ConfigError(str(error)) from None
    except (
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        ArithmeticError,
        TemplateError,
    ) as error:
        # somebody else's JSON and Jinja: whatever is not where it belongs ends up here
        raise ConfigError(
            f"{folder}: its files are not those of a Llama with a chat template ({type(error).__name__}: {error}); "
            "download it again"
        ) from None


def _check_prompts(settings: Settings) -> None:
    """A bad line is better found before a run has settings that stick: the same name then takes --skip-bad, or another file."""
    if settings.prompts.file is not None:
        found = prompt_files.extract_prompts(
            prompt_files.read_rows(
                hub.find_local(settings.prompts.file, "dataset"), skip_bad=settings.skip_bad
            )
        )
        if len(found) <= (settings.iterations - 1) * settings.prompts.count:
            raise ConfigError(
                f"{settings.prompts.file} holds {len(found)} prompts: too few for {settings.iterations} iterations of "
                f"{settings.prompts.count}; set prompts.count={max(1, len(found) // settings.iterations)}, or --iterations lower"
            )
