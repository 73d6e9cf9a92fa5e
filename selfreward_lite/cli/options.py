"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
