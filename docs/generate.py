"""Writes docs/commands.md, docs/settings.md and the index of docs/log/README.md.

They follow from the command line's help, from the settings, and from the headings of the log.

python docs/generate.py            write them
python docs/generate.py --check    exit with code 1 if one of them is out of date
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pydantic import BaseModel  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402
from pydantic_core import PydanticUndefined  # noqa: E402
from typer.main import get_command  # noqa: E402

from selfreward_lite import config  # noqa: E402
from selfreward_lite.cli.main import app  # noqa: E402

LOG, INDEX = ROOT / "docs" / "log", "## Index"
PROGRAM = "python -m selfreward_lite"
NOTICE = "<!-- Made by `python docs/generate.py`: change the code and run it again. -->"
# The smallest first; others follow.
ORDER = ("tiny", "smol", "t4", "small", "qwen3-small", "overnight", "qwen3", "paper")
PRESETS = sorted(config.presets(), key=lambda name: (*ORDER, name).index(name))
LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}

COMMANDS_HEAD = f"""# Commands

{NOTICE}

Every command is `{PROGRAM} COMMAND`. With the package installed (`pip install .`),
`selfreward-lite COMMAND` is the same.
Progress and tables go to stderr; the last line of stdout is one JSON document.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a failure |
| 2 | a mistake in the command, the settings or the data; the message says what to do |
| 3 | a gate refused the new model; the run can be resumed |
| 130 | interrupted; the same command resumes |
"""

SETTINGS_HEAD = f"""# Settings

{NOTICE}

`{PROGRAM} run --set KEY=VALUE` changes a setting, as in `--set dpo.beta=0.2`; `--set` may
be repeated. A value is read as TOML, else as plain text. `--preset NAME` chooses a preset, a file
in `selfreward_lite/config/presets/` with the reason for each value. A setting without a default is
set by every preset. `schedule.0` is the first iteration, `schedule.1` the second, and so on.

SR is [Self-Rewarding](https://arxiv.org/abs/2401.10020), MR is [Meta-Rewarding](https://arxiv.org/abs/2407.19594).
"""


def build_commands_page() -> str:
    """docs/commands.md: every command and option with its help text."""
    return "\n".join([COMMANDS_HEAD, *_describe_command(get_command(app), [])])


def _describe_command(command: Any, path: list[str]) -> Iterator[str]:
    with command.make_context(" ".join([PROGRAM, *path]), [], resilient_parsing=True) as context:
        options = [option.get_help_record(context) for option in command.get_params(context)]
        usage = " ".join([PROGRAM, *path, *command.collect_usage_pieces(context)])
    rows = [record for record in options if record and not record[0].startswith("--help")]
    if path:
        yield f"{'#' * (len(path) + 1)} {' '.join(path)}\n\n{_one_line(command.help)}\n"
        yield f"```\n{usage}\n```\n"
    if rows:
        yield _table(["option", "meaning"], [[f"`{name}`", text] for name, text in rows])
    for name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from _describe_command(inner, [*path, name])


def build_settings_page() -> str:
    """docs/settings.md: every setting with type, limits, default, sentence and presets."""
    trees = {
        name: tomllib.loads((config.PRESETS_DIR / f"{name}.toml").read_text(encoding="utf-8"))
        for name in PRESETS
    }
    presets = {name: dict(_flatten(tree)) for name, tree in trees.items()}
    sections: dict[str, list[list[str]]] = {}
    about = {"general": ""}
    for key, field in _list_fields(config.Settings):
        section, dot, _ = key.partition(".")
        inner = _get_model(field)
        if not dot and inner:
            about[section] = "" if inner.__doc__ == BASE_DOC else _one_line(inner.__doc__)
        elif key != "preset":
            rows = sections.setdefault(section if dot else "general", [])
            rows.append(_describe_setting(key, field, presets))
    head = ["setting", "type and limits", "default", "meaning", "presets"]
    pages = [SETTINGS_HEAD]
    for section in ("general", *(name for name in sections if name != "general")):
        text = f"{about[section]}\n\n" if about[section] else ""
        pages.append(f"## {section}\n\n{text}{_table(head, sections[section])}")
    return "\n".join(pages)


def build_log_page() -> str:
    """docs/log/README.md: what is written there, with an index of all entries at its end."""
    page = (LOG / "README.md").read_text(encoding="utf-8")
    lines = [page[: page.index(INDEX) + len(INDEX)]]
    names = re.findall(r"^\| \[([a-z-]+\.md)\]", page, re.MULTILINE)
    if others := {path.name for path in LOG.glob("*.md")} - {"README.md", *names}:
        sys.exit(f"docs/log/README.md has no row for {', '.join(sorted(others))}")
    for name in names:
        text = (LOG / name).read_text(encoding="utf-8")
        lines.append(f"\n**[{name}]({name})**\n")
        for heading in re.findall(r"^## (.+)$", text, re.MULTILINE):
            anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            date, _, title = heading.partition(" ")
            lines.append(f"- {date} [{title}]({name}#{anchor})")
    return "\n".join(lines) + "\n"


BASE_DOC = config.Settings.__mro__[1].__doc__


def _list_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field
        if inner := _get_model(field):
            yield from _list_fields(inner, f"{prefix}{name}.")


def _get_model(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a section, also of a list of sections; None for a value."""
    candidates = (field.annotation, *get_args(field.annotation))
    models = (one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel))
    return next(models, None)


def _describe_setting(
    key: str, field: FieldInfo, presets: dict[str, dict[str, list[str]]]
) -> list[str]:
    shown = key.replace("schedule.", "schedule.N.")
    values: dict[str, list[str]] = {}
    for name, tree in presets.items():
        if key in tree:
            values.setdefault(", ".join(tree[key]), []).append(name)
    by_preset = "; ".join(f"{', '.join(names)}: {value}" for value, names in values.items())
    inner = _get_model(field)
    kind = "" if inner else _describe_type(field)
    default = "" if field.default is PydanticUndefined else _show(field.default)
    return [f"`{shown}`", kind, default, field.description or "", by_preset]


def _describe_type(field: FieldInfo) -> str:
    annotation, many = field.annotation, ""
    if get_origin(annotation) is tuple:
        annotation, many = get_args(annotation)[0], "any of "
    kinds = [one for one in get_args(annotation) or [annotation] if one is not NoneType]
    names = many + " or ".join(
        one.__name__ if isinstance(one, type) else f"`{one}`" for one in kinds
    )
    limits = [
        f"{sign} {getattr(one, name)}"
        for one in field.metadata
        for name, sign in LIMITS.items()
        if hasattr(one, name)
    ]
    return ", ".join([names, *limits])


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Key → values as text; entries of a list of tables are gathered, "–" where one is not set."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            for key in dict.fromkeys(key for entry in value for key in entry):
                entries = [_show(entry[key]) if key in entry else "–" for entry in value]
                yield f"{prefix}{name}.{key}", entries
        else:
            yield f"{prefix}{name}", [_show(value)]


def _show(value: object) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`" if isinstance(value, str) else f"{value}"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_one_line(cell) for cell in row] for row in rows)]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines
    )


def main() -> None:
    """Write the pages, or check them."""
    pages = {
        "commands.md": build_commands_page(),
        "settings.md": build_settings_page(),
        "log/README.md": build_log_page(),
    }
    for name, text in pages.items():
        path = ROOT / "docs" / name
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"docs/{name} is out of date: run `python docs/generate.py`")


if __name__ == "__main__":
    main()
