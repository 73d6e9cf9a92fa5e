"""llama-server's file of models (--models-preset): the base, and the base with each adapter.

Sections are only ever added: a router that reads the file again would unload a model that changed.
"""

import re
from pathlib import Path

from selfreward_lite.system.errors import EngineError
from selfreward_lite.system.files import atomic_write

PRESETS = "llama-server.ini"


def build_head(slots: int, cells: int) -> str:
    """The beginning of the file: `slots` sequences at once, with `cells` tokens each.

    Without cache-ram = 0 an idle slot loses its prompt, which the next sample then computes again.
    """
    return f"version = 1\n\n[*]\nnp = {slots}\nc = {slots * cells}\ncache-ram = 0\n"


def write_head(file: Path, slots: int, cells: int) -> bool:
    """Write the file, or its beginning anew; returns whether another beginning was there.

    A llama-server that runs goes on as it was started.
    """
    head = build_head(slots, cells)
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if text.startswith(head):
        return False
    models = re.search(r"^\[(?!\*\])", text, re.MULTILINE)
    with atomic_write(file) as part:
        part.write_text(f"{head}\n{text[models.start() :]}" if models else head, encoding="utf-8")
    return bool(text)


def add_section(file: Path, name: str, model: str, adapter: str | None) -> None:
    """Add a model to the file, unless it is there.

    Raises EngineError if there is no file, if the name stands for other files there, or if a path
    cannot be written so.
    """
    if not file.exists():
        raise EngineError(
            f"{file} is missing: `doctor --servers RUN` writes it, and says how to start "
            "llama-server with it"
        )
    for path in (model, adapter or ""):
        if not path.isprintable() or path != path.strip():
            raise EngineError(f"{path!r} cannot be written into {file}; rename that folder")
    lines = [f"model = {model}", *([f"lora = {adapter}"] if adapter else [])]
    text = file.read_text(encoding="utf-8")
    sections = read_sections(text)
    if name in sections:
        if sections[name] != lines:
            raise EngineError(
                f"{file} has another [{name}]; remove that section, and start llama-server again"
            )
        return
    with atomic_write(file) as part:
        part.write_text("\n".join([text.rstrip(), "", f"[{name}]", *lines, ""]), encoding="utf-8")


def read_sections(text: str) -> dict[str, list[str]]:
    """The lines of every section that are neither blank nor comments.

    >>> read_sections("version = 1\\n[a]\\nmodel = m.gguf\\n; no\\n[b]\\n")
    {'a': ['model = m.gguf'], 'b': []}
    """
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            lines = sections.setdefault(line[1:-1], [])
        elif line and line[0] not in ";#":
            lines.append(line)
    return sections
