"""`python -m selfreward_lite export …`: reads arguments, prints answers. What is written or compared is in the modules beside.

The last line of stdout is one JSON document.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from selfreward_lite.config import Settings
from selfreward_lite.display import say
from selfreward_lite.errors import ExportError, UserError
from selfreward_lite.store import Store
from selfreward_lite.workshop import TaskFailed, Workshop

export = typer.Typer(no_args_is_help=True, help="What llama.cpp runs: is it the model that was trained?")

RunsDir = Annotated[Path, typer.Option(help="Folder that holds all runs.")]


@export.callback()
def _group() -> None:
    """What llama.cpp runs: is it the model that was trained?"""


@export.command("check")
def check(
    name: Annotated[str, typer.Option(help="The run.")] = "tiny",
    runs_dir: RunsDir = Path("runs"),
    model: Annotated[int | None, typer.Option(help="Number of the model; by default the newest.", min=0)] = None,
    gguf: Annotated[Path | None, typer.Option(help="Another GGUF of the base, quantised otherwise.")] = None,
    limit: Annotated[float | None, typer.Option(help="Largest difference of a logit; by default 1e-3 for f32.")] = None,
) -> None:
    """Compare token ids and logits of llama.cpp with those of PEFT, on a set of conversations; fails with the numbers."""
    with Store.read(runs_dir / name) as store:
        settings = Settings.model_validate(store.fact("settings"))
        number = store.newest() if model is None else model
        folder, base = store.model_dir(number or 0), gguf or store.folder / "base" / "base.gguf"
        if number is None or not (folder / "adapter.gguf").exists():
            raise UserError(f"{store.folder} has no model M{number or 0}; `status --name {name}` shows what it has")
    f32 = gguf is None and settings.model.gguf == "f32"
    allowed = limit if limit is not None else 1e-3 if f32 else settings.gates.max_logit_difference
    weights = "nf4" if settings.model.quantisation == "nf4" else "original"
    with tempfile.TemporaryDirectory() as scratch:
        workshop = Workshop()
        try:
            found = workshop.do(
                "check", Path(scratch) / "check.log", model_dir=str(settings.model.folder), base=str(base),
                adapter_dir=str(folder / "adapter"), adapter=str(folder / "adapter.gguf"), weights=weights, limit=allowed,
            )
        except TaskFailed as failure:
            raise ExportError(str(failure)) from None
        finally:
            workshop.close()
    say(f"M{number}: the same token ids in {found['conversations']} conversations ({found['tokens']} tokens); largest difference "
        f"of a logit {found['base_difference']:.2g} without the adapter, {found['adapter_difference']:.2g} with it "
        f"(at most {allowed:g}); the adapter changes logits by up to {found['adapter_change']:.2g}; "
        f"{found['agreement']:.1%} same likeliest token")
    print(json.dumps({"run": name, "model": number, "limit": allowed, **found}))
