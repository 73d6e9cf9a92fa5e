"""Options that several commands share."""

import re
from pathlib import Path
from typing import Annotated, Any

from typer import Option
from typer.core import TyperGroup

from selfreward_lite import config
from selfreward_lite.system.arguments import (
    check_run_name,
    check_runs_dir,
    expand_homes,
    refuse_empty,
)
from selfreward_lite.system.errors import UserError

RUNS = Path("runs")
EXPORTED = Path("exported")


def check_name(name: str | None) -> str | None:
    """The name of a run, if one is given. Raises UserError for one that cannot name a run."""
    return None if name is None else check_run_name(name)


def check_preset(name: str | None) -> str | None:
    """The name of a preset, if one is given. Raises ConfigError for one that does not exist."""
    if name is not None:
        config.check_preset(name)
    return name


RunsDir = Annotated[Path, Option(help="Folder that holds all runs.", callback=check_runs_dir)]
RunName = Annotated[str, Option(help="Name of the run.", callback=check_name)]
Iterations = Annotated[int | None, Option(help="Iterations after the seed stage, in total.", min=0)]
Set = Annotated[
    list[str] | None, Option("--set", help="A setting, as in --set dpo.beta=0.2. May be repeated.")
]
SkipBad = Annotated[
    bool, Option("--skip-bad", help="Leave out bad lines of data files, and count them.")
]
Seeds = Annotated[str, Option(help="Seeds, as 100-104 or 7,9.")]
Number = Annotated[int | None, Option(help="Number of the model; by default the newest.", min=0)]
OutDir = Annotated[Path, Option(help="Folder in which the export gets a folder of its own.")]
GgufType = Annotated[
    str, Option("--type", help="Type of the weights: q4_k_m, q8_0, f16 and others.")
]


class Commands(TyperGroup):
    """All commands. Empty arguments are refused here, and ~ is expanded."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        refuse_empty(args)
        return super().parse_args(ctx, expand_homes(args))


def base_folder(name: str, out: Path = EXPORTED) -> Path:
    """The folder that `export base` writes for a run."""
    return out / f"{name}-base-hf"


def parse_seeds(text: str) -> list[int]:
    """The seeds that an option names; raises UserError for another form."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        named = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
        if not named:
            raise UserError(f"--seeds {text}: write them as 100-104 or 7,9")
        found += named
    return found
