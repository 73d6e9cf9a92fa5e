"""`python -m selfreward_lite export …`: reads arguments, prints answers. What is written or compared is in the modules above.

The last line of stdout is one JSON document.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from selfreward_lite.cli.output import console, downloads, say
from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub
from selfreward_lite.data import votes as vote_store
from selfreward_lite.data.store import Store
from selfreward_lite.models import merge, quantize
from selfreward_lite.models.hf_folder import read_config
from selfreward_lite.report import model_card
from selfreward_lite.system.errors import ExportError, UserError
from selfreward_lite.system.files import check_disk
from selfreward_lite.training.worker import TaskFailed, TorchWorker

export = typer.Typer(no_args_is_help=True, help="Models out of a run: checked, merged, quantised.")
RunsDir = Annotated[Path, typer.Option(help="Folder that holds all runs.")]
RunName = Annotated[str, typer.Option(help="The run.")]
Number = Annotated[
    int | None, typer.Option(help="Number of the model; by default the newest.", min=0)
]
Kind = Annotated[str, typer.Option("--type", help="Type of the matrices, as q4_k_m, q8_0 or f16.")]


@dataclass(frozen=True)
class _Model:
    """A model of a run: its number and folder, the run's base, its settings."""

    number: int
    folder: Path
    base: Path
    settings: Settings


@export.callback()
def _group() -> None:
    """Models out of a run: checked, merged, quantised."""


@export.command("check")
def check(
    name: RunName = "tiny",
    runs_dir: RunsDir = Path("runs"),
    model: Number = None,
    gguf: Annotated[
        Path | None, typer.Option(help="Another GGUF of the base, quantised otherwise.")
    ] = None,
    limit: Annotated[
        float | None, typer.Option(help="Largest difference of a logit; by default 1e-3 for f32.")
    ] = None,
) -> None:
    """Compare token ids and logits of llama.cpp with those of PEFT, on a set of conversations; fails with the numbers."""
    found_run = _model(runs_dir / name, model)
    settings, number = found_run.settings, found_run.number
    base = gguf or found_run.base
    f32 = gguf is None and settings.model.gguf == "f32"
    allowed = limit if limit is not None else 1e-3 if f32 else settings.gates.max_logit_difference
    weights = "nf4" if settings.model.quantisation == "nf4" else "original"
    found = _work(
        "check",
        model_dir=str(hub.model_folder(settings.model.base)),
        base=str(base),
        adapter_dir=str(found_run.folder / "adapter"),
        adapter=str(found_run.folder / "adapter.gguf"),
        weights=weights,
        limits={
            "limit": allowed,
            "agreement": settings.gates.min_agreement,
            "share_error": settings.gates.max_share_error,
        },
    )
    share = found["adapter_share"]
    arrived = (
        "less than the base is off by" if share is None else f"{share:.1%} of what it does in PEFT"
    )
    say(
        f"M{number}: the same token ids in {found['conversations']} conversations ({found['tokens']} tokens); largest difference "
        f"of a logit {found['base_difference']:.2g} without the adapter, {found['adapter_difference']:.2g} with it "
        f"(at most {allowed:g}); the adapter changes logits by up to {found['adapter_change']:.2g}, {arrived}; "
        f"{found['agreement']:.1%} same likeliest token"
    )
    print(json.dumps({"run": name, "model": number, "limit": allowed, **found}))


@export.command("merged")
def merged(
    name: RunName = "tiny",
    runs_dir: RunsDir = Path("runs"),
    model: Number = None,
    kind: Kind = "q8_0",
    out: Annotated[Path, typer.Option(help="Folder in which its own folder is made.")] = Path(
        "exported"
    ),
    prove: Annotated[
        bool, typer.Option(help="Compare its logits with PEFT's: 4 bytes of memory a weight.")
    ] = True,
    into: Annotated[
        str | None, typer.Option(help="Merge into this model instead, as the same one in 16 bits.")
    ] = None,
) -> None:
    """Write a model of the run, base and adapter in one, as a GGUF with an Ollama Modelfile; says size, time and disk first."""
    found_run = _model(runs_dir / name, model)
    stem = f"{name}-M{found_run.number}-{kind}"
    target = out / stem / f"{stem}.gguf"
    wanted = quantize.before(found_run.base, target, kind)
    between = (
        0 if kind in merge.DIRECT else 2 * quantize.weights(found_run.base)
    )  # bytes in float16
    needs = {"file": wanted.size, "float16 while it is made": between}
    check_disk(target, needs, "the new file", "free space, or give another --out")
    say(f"{target} in {kind}: {wanted}, for quantising alone")
    target.parent.mkdir(parents=True, exist_ok=True)
    started = perf_counter()
    original = _base(into or found_run.settings.model.base)
    if into is None and read_config(original).packed:
        origin = found_run.settings.model.origin
        other = f"; --into {origin} for 16" if origin else ""
        say(f"merged into the weights as they were trained on, which were in 4 bits{other}")
    weights = {"model_dir": str(original), "adapter_dir": str(found_run.folder / "adapter")}
    with _tensors() as show:
        task = {"out": str(target), "kind": kind, "prove": prove}
        found = _work("full_model", lambda at: show(at["done"], at["total"]), **weights, **task)
    seconds = round(perf_counter() - started, 1)
    say(
        f"{target}: {target.stat().st_size / 1e6:.2f} MB in {seconds} s; {found['tokens']} token ids as they should be"
        + (
            f"; a logit differs by {found['difference']:.2g} from the model's in full precision at most, "
            f"{found['agreement']:.1%} same likeliest token"
            if prove
            else ""
        )
    )
    modelfile = None if found["no_modelfile"] else str(target.parent / "Modelfile")
    say(
        f"for Ollama: ollama create NAME -f {modelfile}"
        if modelfile
        else f"no Modelfile: {found['no_modelfile']}"
    )
    document = {"run": name, "model": found_run.number, "file": str(target), "modelfile": modelfile}
    print(json.dumps({**document, "bytes": target.stat().st_size, "seconds": seconds, **found}))


@export.command("adapter")
def adapter(
    name: RunName = "tiny",
    runs_dir: RunsDir = Path("runs"),
    model: Number = None,
    out: Annotated[Path, typer.Option(help="Folder in which its own folder is made.")] = Path(
        "exported"
    ),
) -> None:
    """Write a model of the run as a folder to publish: the adapter for PEFT and llama.cpp, and a model card."""
    with Store.read(runs_dir / name) as store:
        number, _ = store.model(model)
        folder = model_card.write_adapter(store, number, out / f"{name}-M{number}-adapter")
    say(
        f"{folder}: read README.md, then publish it with `python -m selfreward_lite export push {folder} OWNER/NAME`"
    )
    print(json.dumps({"run": name, "model": number, "folder": str(folder)}))


@export.command("pairs")
def pairs(
    name: RunName = "tiny",
    runs_dir: RunsDir = Path("runs"),
    out: Annotated[Path, typer.Option(help="Folder in which its own folder is made.")] = Path(
        "exported"
    ),
) -> None:
    """Write the preference pairs of the run as a data set to publish: Parquet as TRL takes it, and a card."""
    with Store.read(runs_dir / name) as store:
        folder = model_card.write_pairs(store, out / f"{name}-pairs")
    say(
        f"{folder}: read README.md, then publish it with `python -m selfreward_lite export push {folder} OWNER/NAME`"
    )
    print(json.dumps({"run": name, "folder": str(folder)}))


@export.command("votes")
def votes(
    name: RunName = "tiny",
    runs_dir: RunsDir = Path("runs"),
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("votes.jsonl"),
) -> None:
    """Write the votes given in the app as ranked data in OASST's schema (JSON lines), which `seed_stage.ranked` reads."""
    Store.read(runs_dir / name).close()
    found = vote_store.all_votes(runs_dir / name)
    rows, drops = vote_store.as_ranked(found)
    if not rows:
        raise UserError(
            f"{name} has no decided votes; compare two models in the app (`python app.py`) and vote"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    left_out = Counter(drop.reason for drop in drops)
    why = "".join(f"; {count} left out: {reason}" for reason, count in left_out.items())
    say(f"{out}: {len(rows) // 3} of {len(found)} votes{why}")
    print(
        json.dumps({"run": name, "file": str(out), "prompts": len(rows) // 3, "left_out": left_out})
    )


@export.command("push")
def push(
    folder: Annotated[
        Path, typer.Argument(help="A folder written by `export adapter` or `export pairs`.")
    ],
    repository: Annotated[
        str, typer.Argument(help="Where to: owner/name on the hub. It is made if it is new.")
    ],
    private: Annotated[
        bool, typer.Option(help="Whether a new repository is for its owner alone.")
    ] = True,
) -> None:
    """Upload a folder to the hub, to the repository that is named and no other; HF_TOKEN says who you are."""
    address = model_card.push(folder, repository, private)
    say(f"{folder} is at {address}")
    print(json.dumps({"folder": str(folder), "address": address}))


@export.command("quantise")
def quantise(
    source: Annotated[Path, typer.Argument(help="A GGUF file in f32 or f16.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    kind: Kind = "q4_k_m",
) -> None:
    """Write a GGUF in a smaller type, by llama.cpp's quantiser; says size, time and disk first."""
    quantize.check_source(source)
    if out.exists() and (not out.is_file() or out.samefile(source)):
        raise UserError(
            f"{out} is {'the source itself' if out.is_file() else 'not a file'}: give another name"
        )
    if blocked := next(
        (folder for folder in out.absolute().parents if folder.exists() and not folder.is_dir()),
        None,
    ):
        raise UserError(f"{blocked} is not a folder, so {out} cannot be made: give another name")
    wanted = quantize.before(source, out, kind)
    check_disk(out, {"file": wanted.size}, "the new file", "free space, or write it elsewhere")
    say(f"{out} in {kind}: {wanted}")
    out.parent.mkdir(parents=True, exist_ok=True)
    started = perf_counter()
    with _tensors() as show:
        _work(
            "quantise",
            lambda at: show(at["done"], at["total"]),
            source=str(source),
            out=str(out),
            kind=kind,
        )
    seconds = round(perf_counter() - started, 1)
    say(f"{out}: {out.stat().st_size / 1e6:.2f} MB in {seconds} s")
    document = {"file": str(out), "bytes": out.stat().st_size, "seconds": seconds}
    print(
        json.dumps(
            {
                **document,
                "expected_bytes": wanted.size,
                "expected_seconds": round(wanted.seconds, 1),
            }
        )
    )


def _model(folder: Path, number: int | None) -> _Model:
    """A model of a run; UserError where there is none."""
    with Store.read(folder) as store:
        number, found = store.model(number)
        return _Model(
            number,
            found,
            folder / "base" / "base.gguf",
            Settings.model_validate(store.fact("settings")),
        )


def _base(name: str) -> Path:
    """The folder of a base, downloaded if it is on the hub and not here."""
    repository = hub.named(name)
    if repository is None:
        return hub.model_folder(name)
    with downloads() as show:
        return hub.fetch(repository, "model", show)[0]


@contextmanager
def _tensors() -> Iterator[Callable[[int, int], None]]:
    """A bar of how many tensors are quantised; gone when it is over."""
    with Progress("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
                  transient=True, disable=not console.is_terminal) as bars:  # fmt: skip
        bar = bars.add_task("tensors", total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def _work(
    task: str, report: Callable[[dict[str, Any]], None] | None = None, **arguments: Any
) -> dict[str, Any]:
    """Have a task of the workshop done in a child process; ExportError with its last words where it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        workshop = TorchWorker(bare=task == "quantise")
        try:
            return workshop.do(task, Path(scratch) / f"{task}.log", report, **arguments)
        except TaskFailed as failure:
            raise ExportError(str(failure)) from None
        finally:
            workshop.close()
