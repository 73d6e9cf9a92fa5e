"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfreward_lite.system.errors import UserError

RUNS = Path("runs")
EXPORTED = Path("exported")

RunsDir = Annotated[Path, typer.Option(help="Folder that holds all runs.")]
RunName = Annotated[str, typer.Option(help="Name of the run.")]
Iterations = Annotated[
    int | None, typer.Option(help="Iterations after the seed stage, in total.", min=0)
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting, as in --set dpo.beta=0.2. May be repeated."),
]
Number = Annotated[
    int | None, typer.Option(help="Number of the model; by default the newest.", min=0)
]
OutDir = Annotated[Path, typer.Option(help="Folder in which the export gets a folder of its own.")]
GgufType = Annotated[
    str, typer.Option("--type", help="Type of the weights: q4_k_m, q8_0, f16 and others.")
]


def parse_seeds(text: str) -> list[int]:
    """The seeds that an option names; raises UserError for another form."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UserError(f"--seeds {text}: write them as 100-104 or 7,9")
        found += range(int(first), int(last or first) + 1)
    if not found:
        raise UserError(f"--seeds {text}: that names no seed; write them as 100-104 or 7,9")
    return found
