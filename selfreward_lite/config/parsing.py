"""Settings from presets, from what a run stored, and from `--set key=value`."""

import copy
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from selfreward_lite.config.settings import Settings
from selfreward_lite.config.wording import explain_fault, suggest
from selfreward_lite.system.errors import ConfigError

PRESETS_DIR = Path(__file__).parent / "presets"
MAY_BE_EMPTY = ("evaluation.tasks", "prompts.ignore")  # none
SEE = "docs/settings.md lists all settings"


def load(preset: str, overrides: dict[str, str] | None = None) -> Settings:
    """The settings of a preset, changed by `overrides` such as "dpo.beta" → "0.2".

    Raises ConfigError, in one line, for an unknown preset, an unknown key or a bad value.
    """
    check_preset(preset)
    path = PRESETS_DIR / f"{preset}.toml"
    tree = tomllib.loads(path.read_text(encoding="utf-8"))
    if "model.base" in (overrides or {}):
        tree["model"].pop("origin", None)  # it belongs to the preset's own base
    return override({**tree, "preset": preset}, overrides or {})


def check_preset(name: str) -> None:
    """Raise ConfigError, in one line, for a preset that does not ship with the package."""
    if name in presets():
        return
    if name.endswith(".toml") or "/" in name:
        raise ConfigError(
            f"{name}: a preset is one of {', '.join(presets())}; your own settings are given on "
            f"top of one, each with --set KEY=VALUE ({SEE})"
        )
    raise ConfigError(
        f"no preset {name!r}; choose one of {', '.join(presets())}{suggest(name, presets())}"
    )


def override(tree: dict[str, Any], overrides: dict[str, str]) -> Settings:
    """The settings of `tree`, changed by `overrides`; raises as `load` does."""
    tree = copy.deepcopy(tree)
    for dotted, value in overrides.items():
        _set(tree, dotted, value)
    return parse(tree)


def parse_overrides(
    options: Sequence[str] | None, others: Mapping[str, object] = {}
) -> dict[str, str]:
    """Key → value of each `--set key=value`, and of the `others` that are not None.

    Raises ConfigError for another form.
    """
    overrides = {}
    for option in options or ():
        key, equals, value = option.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"--set {option}: write it as --set key=value, for example --set dpo.beta=0.2"
            )
        overrides[key.strip()] = value.strip()
    return overrides | {key: str(value) for key, value in others.items() if value is not None}


def complete(stored: dict[str, Any]) -> dict[str, Any]:
    """The stored settings of a run; a setting that it lacks is what that version did."""
    return {**stored, "judge": {"close": "drop", **stored["judge"]}}


def parse(tree: dict[str, Any]) -> Settings:
    """Checked settings; raises ConfigError that names the first wrong key."""
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "settings"
        if first["type"] == "extra_forbidden":
            raise _unknown(key) from None
        has_parts = any(name.startswith(f"{key}.") for name in list_settings())
        if has_parts and first["type"] in ("model_type", "tuple_type", "list_type"):
            raise _is_group(key) from None
        end = "" if first["type"] == "value_error" else f"; {SEE}"
        raise ConfigError(f"{explain_fault(key, first)}{end}") from None


def presets() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(path.stem for path in PRESETS_DIR.glob("*.toml"))


def list_settings(group: type[BaseModel] = Settings, before: str = "") -> list[str]:
    """Return the names of all settings, as `--set` takes them; of lists, the first entry's."""
    found: list[str] = []
    for name, field in group.model_fields.items():
        part = _find_group(field.annotation)
        key = f"{before}{name}.0" if part and part is not field.annotation else f"{before}{name}"
        found += list_settings(part, f"{key}.") if part else [key]
    return found


def _find_group(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a type is, or has in a list."""
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def _set(tree: dict[str, Any], dotted: str, value: str) -> None:
    """Write `value` at "a.b" or, in the list of schedules, at "schedule.0.rho"."""
    known = f"{_first_entry(dotted)}."
    if not any(f"{name}.".startswith(known) for name in list_settings()):
        raise _unknown(dotted)
    *parents, last = dotted.split(".")
    node: Any = tree
    for name in parents:
        if isinstance(node, list):
            if name not in map(str, range(len(node))):
                raise ConfigError(
                    f"{dotted}: {name} is not an entry of that list (0 to {len(node) - 1})"
                )
            node = node[int(name)]
        elif isinstance(node, dict):
            node = node.setdefault(name, {})
        else:
            raise _unknown(dotted)
    if isinstance(node, list):
        raise _is_group(dotted)
    if not isinstance(node, dict):
        raise _unknown(dotted)
    found = _toml_value(value)
    if isinstance(found, str) and not found.strip() and dotted not in MAY_BE_EMPTY:
        raise ConfigError(f"{dotted} is empty: give it a value, or leave it out; {SEE}")
    node[last] = found


def _unknown(key: str) -> ConfigError:
    entry = re.search(r"\.\d+\.", key)  # of a list
    names = (name.replace(".0.", entry[0]) if entry else name for name in list_settings())
    meant = suggest(key, names)
    return ConfigError(f"{key}: no such setting{meant}{' ' if meant else '; '}{SEE}")


def _first_entry(key: str) -> str:
    """The same setting in the first entry of its list, if it is in one."""
    return re.sub(r"\.\d+(?=\.|$)", ".0", key)


def _is_group(key: str) -> ConfigError:
    known = [name for name in list_settings() if name.startswith(f"{_first_entry(key)}.")]
    example = f", as in --set {known[0]}=…" if known else ""
    return ConfigError(f"{key} is a group of settings: set one of them{example}; {SEE}")


def _toml_value(text: str) -> Any:
    """A number, boolean, list or quoted string as TOML reads it; else the text itself."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except (ValueError, RecursionError):  # no TOML, or numbers and lists beyond what Python reads
        return text
