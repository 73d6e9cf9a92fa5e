"""Everything that can be set, with limits, defaults and their reasons.

It parses and checks, nothing else; it imports only `system.errors`.
Start: `settings.py`; presets are in `presets/`.
"""

from selfreward_lite.config.parsing import (
    PRESETS_DIR,
    check_preset,
    complete,
    load,
    override,
    parse,
    parse_overrides,
    presets,
)
from selfreward_lite.config.settings import Settings

__all__ = [
    "PRESETS_DIR",
    "Settings",
    "check_preset",
    "complete",
    "load",
    "override",
    "parse",
    "parse_overrides",
    "presets",
]
