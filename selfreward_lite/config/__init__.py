"""Everything that can be set, with limits and the reason of each default.

Does nothing but parse and check; imports only `system.errors`.
Start: `settings.py`; presets are in `presets/`.
"""

from selfreward_lite.config.settings import (
    PRESETS_DIR,
    Settings,
    load,
    override,
    parse,
    parse_overrides,
    presets,
)

__all__ = ["PRESETS_DIR", "Settings", "load", "override", "parse", "parse_overrides", "presets"]
