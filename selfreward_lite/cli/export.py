"""`export …`: models, pairs and votes out of a run; uploads; GGUF files in smaller types."""

import json
import tempfile
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

from typer import Argument, Option, Typer

from selfreward_lite.cli.options import (
    EXPORTED,
    RUNS,
    GgufType,
    Number,
    OutDir,
    RunName,
    RunsDir,
    base_folder,
)
from selfreward_lite.cli.output import emit, say, show_downloads, show_tensors, write_file, writing
from selfreward_lite.data import hub, votes
from selfreward_lite.data.store import Store
from selfreward_lite.models import hf_export, merge, quantize
from selfreward_lite.models.gguf_folder import find_base
from selfreward_lite.models.hf_folder import read_config
from selfreward_lite.models.parity import CheckedModel
from selfreward_lite.report import model_card
from selfreward_lite.system.errors import ExportError, UserError
from selfreward_lite.system.files import check_disk, format_bytes
from selfreward_lite.training.worker import TaskFailed, TorchWorker, explain_failure

BASE_GGUF = Path("base/base.gguf")  # in the folder of a run
export = Typer(no_args_is_help=True, help="Get models, pairs and votes out of a run; publish them.")


@export.command()
def check(
    name: RunName = "tiny",
    runs_dir: RunsDir = RUNS,
    model: Number = None,
    gguf: Annotated[
        Path | None, Option(help="Another GGUF of the base, such as a smaller type.")
    ] = None,
    limit: Annotated[
        float | None,
        Option(
            help="Largest difference of a logit; by default 1e-3 for f32, else the run's setting "
            "gates.max_logit_difference."
        ),
    ] = None,
) -> None:
    """Compare token ids and logits of llama.cpp with PEFT's, on a set of conversations."""
    with Store.read(runs_dir / name) as store:
        number, folder = store.model(model)
        settings = store.settings()
    gates = settings.gates
    if limit is None:
        f32 = gguf is None and settings.model.gguf == "f32"
        limit = 1e-3 if f32 else gates.max_logit_difference
    answer = _work(
        "check",
        model_dir=find_base(settings.model.base),
        base=gguf or runs_dir / name / BASE_GGUF,
        adapter_dir=folder / "adapter",
        adapter=folder / "adapter.gguf",
        weights="nf4" if settings.model.quantisation == "nf4" else "original",
        limits={
            "limit": limit,
            "agreement": gates.min_agreement,
            "share_error": gates.max_share_error,
        },
    )
    found = CheckedModel(**answer)
    share = found.adapter_share
    arrived = (
        "too little to measure beside the base's rounding"
        if share is None
        else f"{share:.1%} of its effect in PEFT"
    )
    say(
        f"M{number}: same token ids in {found.conversations} conversations "
        f"({found.tokens} tokens). Largest difference of a logit: "
        f"{found.base_difference:.2g} without the adapter, {found.adapter_difference:.2g} "
        f"with it (limit {limit:g}). The adapter changes logits by up to "
        f"{found.adapter_change:.2g}, {arrived}. Same likeliest token at "
        f"{found.agreement:.1%} of the positions."
    )
    emit({"run": name, "model": number, "limit": limit, **asdict(found)})


@export.command()
def merged(
    name: RunName = "tiny",
    runs_dir: RunsDir = RUNS,
    model: Number = None,
    kind: GgufType = "q8_0",
    out: OutDir = EXPORTED,
    prove: Annotated[
        bool, Option(help="Compare logits with PEFT's; needs 4 bytes of memory per weight.")
    ] = True,
    into: Annotated[
        str | None, Option(help="Merge into this model instead, such as the same one in 16 bits.")
    ] = None,
) -> None:
    """Write base and adapter as one GGUF with an Ollama Modelfile; prints size and time first."""
    with Store.read(runs_dir / name) as store:
        number, folder = store.model(model)
        trained_on = store.settings().model
    source = runs_dir / name / BASE_GGUF
    stem = f"{name}-M{number}-{kind}"
    target = out / stem / f"{stem}.gguf"
    expected = quantize.estimate(source, target, kind)
    float16 = 0 if kind in merge.DIRECT else 2 * quantize.count_weights(source)  # bytes
    needs = {"file": expected.size, "float16 while it is made": float16}
    check_disk(target, needs, "the new file", "free space, or give another --out")
    say(f"{target} in {kind}: {expected}, for quantizing alone")
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    started = perf_counter()
    base = into or trained_on.base
    if repository := hub.parse_repository(base):
        with show_downloads() as show:
            hub.fetch(repository, "model", show)
    original = find_base(base)
    if into is None and read_config(original).packed:
        other = f"; for 16 bits add --into {trained_on.origin}" if trained_on.origin else ""
        say(f"merging into the 4-bit weights that were trained on{other}")
    answer = _work(
        "full_model",
        model_dir=original,
        adapter_dir=folder / "adapter",
        out=target,
        kind=kind,
        prove=prove,
    )
    found = merge.MergedModel(**answer)
    seconds = round(perf_counter() - started, 1)
    size = target.stat().st_size
    proof = ""
    if prove:
        proof = (
            f"; logits differ by at most {found.difference:.2g} from the model in full "
            f"precision, same likeliest token at {found.agreement:.1%} of the positions"
        )
    say(f"{target}: {size / 1e6:.2f} MB in {seconds} s; {found.tokens} token ids are right{proof}")
    modelfile = None if found.no_modelfile else str(target.parent / "Modelfile")
    why_not = f"no Modelfile: {found.no_modelfile}"
    say(f"for Ollama: ollama create NAME -f {modelfile}" if modelfile else why_not)
    emit(
        {
            "run": name,
            "model": number,
            "file": str(target),
            "modelfile": modelfile,
            "bytes": size,
            "seconds": seconds,
            **asdict(found),
        }
    )


@export.command("base")
def export_base(
    name: RunName = "tiny",
    runs_dir: RunsDir = RUNS,
    kind: Annotated[
        Literal["hf"], Option("--type", help="hf: a Hugging Face folder, which vLLM loads.")
    ] = "hf",
    dtype: Annotated[
        hf_export.FolderDtype, Option(help="Type of the weights; float16 for cards before Ampere.")
    ] = "bfloat16",
    out: OutDir = EXPORTED,
) -> None:
    """Write the base with the weights that training computes with, unpacked from 4 bits."""
    with Store.read(runs_dir / name) as store:
        model = store.settings().model
    source, folder = find_base(model.base), base_folder(name, out)
    if folder.exists():
        raise UserError(f"{folder} is there already: remove it, or give another --out")
    size = hf_export.count_bytes(read_config(source), dtype)
    check_disk(folder, {"weights": size}, "the new folder", "free space, or give another --out")
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    say(f"{folder} in {dtype}: {format_bytes(size)}")
    weights = "nf4" if model.quantisation == "nf4" else "original"
    tensors = _work("hf_folder", model_dir=source, out=folder, weights=weights, dtype=dtype)
    say(f"{folder}: {tensors} tensors; `doctor --servers {name}` says how vLLM serves it")
    facts = {"type": kind, "weights": weights, "dtype": dtype, "bytes": size}
    emit({"run": name, "folder": str(folder), **facts})


@export.command()
def adapter(
    name: RunName = "tiny", runs_dir: RunsDir = RUNS, model: Number = None, out: OutDir = EXPORTED
) -> None:
    """Write a model as a folder to publish: adapter for PEFT and llama.cpp, and a model card."""
    with Store.read(runs_dir / name) as store:
        number, _ = store.model(model)
        folder = out / f"{name}-M{number}-adapter"
        with writing(folder):
            model_card.write_adapter(store, number, folder)
    _say_how_to_publish(folder)
    emit({"run": name, "model": number, "folder": str(folder)})


@export.command()
def pairs(name: RunName = "tiny", runs_dir: RunsDir = RUNS, out: OutDir = EXPORTED) -> None:
    """Write the run's preference pairs as a data set to publish: Parquet for TRL, and a card."""
    with Store.read(runs_dir / name) as store:
        folder = out / f"{name}-pairs"
        with writing(folder):
            model_card.write_pairs(store, folder)
    _say_how_to_publish(folder)
    emit({"run": name, "folder": str(folder)})


def _say_how_to_publish(folder: Path) -> None:
    say(
        f"{folder}: read README.md, then publish it with "
        f"`python -m selfreward_lite export push {folder} OWNER/NAME`"
    )


@export.command("votes")
def export_votes(
    name: RunName = "tiny",
    runs_dir: RunsDir = RUNS,
    out: Annotated[Path, Option(help="File to write.")] = Path("votes.jsonl"),
) -> None:
    """Write votes given in the app as ranked data (JSON lines), for `seed_stage.ranked`."""
    Store.read(runs_dir / name).close()
    found = votes.load_votes(runs_dir / name)
    rows, drops = votes.build_ranked_rows(found)
    if not rows:
        raise UserError(
            f"{name} has no decided votes; compare two models in the app (`python app.py`) and vote"
        )
    write_file(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    why = "".join(f"; {count} left out: {reason}" for reason, count in drops.items())
    say(f"{out}: {len(rows) // 3} of {len(found)} votes{why}")
    emit({"run": name, "file": str(out), "prompts": len(rows) // 3, "left_out": drops})


@export.command()
def push(
    folder: Annotated[Path, Argument(help="Folder written by `export adapter` or `export pairs`.")],
    repository: Annotated[
        str, Argument(help="Repository on the hub, owner/name; made if it is new.")
    ],
    private: Annotated[
        bool, Option(help="Whether only its owner can see a new repository.")
    ] = True,
) -> None:
    """Upload a folder to a repository on the hub; needs HF_TOKEN in the environment."""
    address = model_card.push(folder, repository, private)
    say(f"{folder} is at {address}")
    emit({"folder": str(folder), "address": address})


@export.command("quantise", hidden=True)
@export.command("quantize")
def quantize_file(
    source: Annotated[Path, Argument(help="GGUF file in f32 or f16.")],
    out: Annotated[Path, Argument(help="File to write.")],
    kind: GgufType = "q4_k_m",
) -> None:
    """Write a GGUF in a smaller type with llama.cpp; prints size and time first."""
    quantize.check_source(source)
    if out.exists() and (not out.is_file() or out.samefile(source)):
        raise UserError(
            f"{out} is {'the source itself' if out.is_file() else 'not a file'}: give another name"
        )
    parents = out.absolute().parents
    if blocked := next((one for one in parents if one.exists() and not one.is_dir()), None):
        raise UserError(f"{blocked} is not a folder, so {out} cannot be made: give another name")
    expected = quantize.estimate(source, out, kind)
    check_disk(out, {"file": expected.size}, "the new file", "free space, or write it elsewhere")
    say(f"{out} in {kind}: {expected}")
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    started = perf_counter()
    _work("quantize", source=source, out=out, kind=kind)
    seconds = round(perf_counter() - started, 1)
    size = out.stat().st_size
    say(f"{out}: {size / 1e6:.2f} MB in {seconds} s")
    emit(
        {
            "file": str(out),
            "bytes": size,
            "seconds": seconds,
            "expected_bytes": expected.size,
            "expected_seconds": round(expected.seconds, 1),
        }
    )


def _work(task: str, **arguments: Any) -> Any:
    """The result of a torch task in a child process.

    Raises ExportError if it fails, UserError if that is for want of space where it wrote.
    """
    with (
        tempfile.TemporaryDirectory() as scratch,
        show_tensors() as show,
        closing(TorchWorker(bare=task == "quantize")) as worker,
    ):
        try:
            return worker.do(task, Path(scratch) / f"{task}.log", show, **arguments)
        except TaskFailed as failure:
            written = Path(arguments["out"]).parent if "out" in arguments else Path(scratch)
            raise explain_failure(ExportError, str(failure), written) from None
