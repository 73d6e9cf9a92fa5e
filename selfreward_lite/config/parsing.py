"""Settings from presets, from what a run stored, and from `--set key=value`."""

import copy
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from selfreward_lite.config.settings import Settings
from selfreward_lite.system.errors import ConfigError

PRESETS_DIR = Path(__file__).parent / "presets"


def load(preset: str, overrides: dict[str, str] | None = None) -> Settings:
    """The settings of a preset, changed by `overrides` such as "dpo.beta" → "0.2".

    Raises ConfigError, in one line, for an unknown preset, an unknown key or a bad value.
    """
    path = PRESETS_DIR / f"{preset}.toml"
    if not path.exists():
        raise ConfigError(f"no preset {preset!r}; choose one of {', '.join(presets())}")
    tree = tomllib.loads(path.read_text(encoding="utf-8"))
    if "model.base" in (overrides or {}):
        tree["model"].pop("origin", None)  # it belongs to the preset's own base
    return override({**tree, "preset": preset}, overrides or {})


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
        if not equals:
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
        raise ConfigError(
            f"{key}: {first['msg']}; see selfreward_lite/config/settings.py"
        ) from None


def presets() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(path.stem for path in PRESETS_DIR.glob("*.toml"))


def _set(tree: dict[str, Any], dotted: str, value: str) -> None:
    """Write `value` at "a.b" or, in the list of schedules, at "schedule.0.rho"."""
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
    if not isinstance(node, dict):
        raise _unknown(dotted)
    node[last] = _toml_value(value)


def _unknown(key: str) -> ConfigError:
    return ConfigError(f"{key}: no such setting; see selfreward_lite/config/settings.py")


def _toml_value(text: str) -> Any:
    """A number, boolean, list or quoted string as TOML reads it; else the text itself."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except (ValueError, RecursionError):  # no TOML, or numbers and lists beyond what Python reads
        return text
