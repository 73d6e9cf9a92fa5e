"""`python -m selfreward_lite bench …`: reads arguments, prints tables. What is measured, and how, is in the files beside.

Tables go to stderr; the last line of stdout is one JSON document.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from selfreward_lite import config
from selfreward_lite.cli.output import Display, console, say
from selfreward_lite.data.records import ModelId
from selfreward_lite.method.statistics import format_with_error, nan_to_none
from selfreward_lite.models.hf_folder import SHAPES
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import format_bytes
from selfreward_lite.system.gpu import list_gpus
from selfreward_lite.system.processes import one_gpu

if TYPE_CHECKING:
    from selfreward_lite.bench.engine import Found, Plan

DRAWERS = {"one_thread": "one thread", "threads": "every thread", "graph": "llama.cpp's own graph"}
bench = typer.Typer(
    no_args_is_help=True,
    help="Measure: the loop, the engine, a GPU, the app.",
)


@bench.command("tiny")
def bench_tiny(
    seeds: Annotated[str, typer.Option(help="Seeds, as 100-104 or 7,9.")] = "100-104",
    prompts: Annotated[int, typer.Option(help="Held-out prompts a model.", min=2)] = 1000,
    runs_dir: Annotated[Path, typer.Option(help="Folder of the bench's runs.")] = Path(
        "runs/bench-tiny"
    ),
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting, as for run.")] = None,
) -> None:
    """Does the loop learn? The tiny run over several seeds, with standard errors, failures included."""
    from selfreward_lite.bench import seeds as tiny_seeds
    from selfreward_lite.run.runtime import open_runtime

    wanted = {**config.parse_overrides(set_ or []), "evaluation.prompts": str(prompts)}
    with Display(console) as watch:
        results = tiny_seeds.run_seeds(runs_dir, seeds_of(seeds), wanted, open_runtime, watch, say)
    means, verdicts = tiny_seeds.averages(results), tiny_seeds.verdicts(results)
    table = Table("", "base", *(ModelId(place).name for place in range(len(means) - 1)))
    table.add_row("seeds that have it", *map(str, tiny_seeds.reached(results)))
    for name in tiny_seeds.COLUMNS:
        table.add_row(
            name.replace("_", " "), *(format_with_error(mean.get(name)) for mean in means)
        )
    console.print(table)
    shown = ("win_rate_vs_seed", "exact_score", "answer_right", "judge_pair_accuracy")
    table = Table("seed", *(name.replace("_", " ") for name in shown), "seconds", "stopped")
    for result in results:
        columns = [" ".join(_short(row.get(name)) for row in result.rows[1:]) for name in shown]
        table.add_row(
            str(result.seed), *columns, str(result.document["seconds"]), result.stopped or ""
        )
    console.print(table)
    limit = tiny_seeds.win_rate_limit(results)
    say(f"the highest win rate against these M0 that there can be: {format_with_error(limit)}")
    for claim, holds in verdicts.items():
        say(f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}")
    print(
        json.dumps(
            {
                "seeds": [result.seed for result in results],
                "mean_and_error": [_pairs(one) for one in means],
                "win_rate_limit": None if limit is None else [*map(nan_to_none, limit)],
                "verdicts": verdicts,
            }
        )
    )


@bench.command("engine")
def bench_engine(
    model: Annotated[Path | None, typer.Option(help="A GGUF model of the Llama family.")] = None,
    synthetic: Annotated[
        str | None, typer.Option(help="A random model of this shape: 10m, 250m, 1b, llama-3-8b.")
    ] = None,
    quantisation: Annotated[
        Literal["q8_0", "q4_k_m"], typer.Option(help="Type of the random model's matrices.")
    ] = "q8_0",
    adapter: Annotated[
        Path | None, typer.Option(help="A GGUF LoRA for it, or `random` for a random model.")
    ] = None,
    load: Annotated[
        Literal["judge", "meta"],
        typer.Option(help="Judgments of responses, or battles of judgments."),
    ] = "judge",
    parallel: Annotated[int, typer.Option(help="Sequences decoded at once.", min=1, max=240)] = 16,
    samples: Annotated[int, typer.Option(help="Judgments a response; both loads.", min=1)] = 8,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of a prompt.", min=8)] = 600,
    new_tokens: Annotated[
        int, typer.Option(help="Tokens of a judgment at most; a quarter at least.", min=4)
    ] = 160,
    requests: Annotated[
        int | None,
        typer.Option(help="Responses that are judged; by default 4, meta-judged 1.", min=1),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; by default all cores.", min=1)
    ] = None,
    gpu_layers: Annotated[int, typer.Option(help="Layers on the card; -1 = all.", min=-1)] = 0,
    repeats: Annotated[int, typer.Option(help="How often each is measured.", min=1)] = 3,
    folder: Annotated[Path, typer.Option(help="Where random models are kept.")] = Path(
        "runs/bench-engine"
    ),
) -> None:
    """How fast is the engine? Against llama-cpp-python as most use it, and against bare llama.cpp, in one run."""
    from selfreward_lite.bench import baselines, engine

    if gpu_layers:
        os.environ.update(
            one_gpu(os.environ)
        )  # as for the engine's process, so for the others that measure
    model, adapter = _subject(model, synthetic, quantisation, adapter, folder)
    vocab, name = baselines.vocabulary(model), None if adapter is None else str(adapter)
    requests = requests or (4 if load == "judge" else 1)
    if load == "judge":
        new = (max(1, new_tokens // 4), new_tokens)
        asked = engine.judge_load(
            vocab, requests, samples=samples, tokens=prompt_tokens, new=new, adapter=name
        )
    else:
        asked = engine.meta_load(
            vocab, requests, judgments=samples, tokens=prompt_tokens, adapter=name
        )
    settings = engine.settings_for(asked, parallel=parallel, threads=threads, gpu_layers=gpu_layers)
    plan = engine.Plan(model, settings, asked, repeats)
    found = engine.measure(plan, say)
    document = engine.document(plan, found) | {
        "gpu": list_gpus()[0].name if gpu_layers and list_gpus() else None
    }
    _show_engine(plan, found, document)
    drawn = baselines.drawing(model, settings, asked.requests[0].sampling)
    say(
        "a step in which every sequence gets a token: "
        + ", ".join(
            f"{seconds * 1000:.1f} ms where {DRAWERS[who]} draws" for who, seconds in drawn.items()
        )
    )
    document["step_s"] = {who: round(seconds, 5) for who, seconds in drawn.items()}
    if name is not None:
        loaded, switched = baselines.switching(model, settings, name)
        say(
            f"the adapter was loaded and proved in {loaded:.2f} s; a switch takes {switched * 1000:.1f} ms"
        )
        document |= {"adapter_load_s": round(loaded, 4), "adapter_switch_s": round(switched, 5)}
    print(json.dumps(document))


def _subject(
    model: Path | None, synthetic: str | None, quantisation: str, adapter: Path | None, folder: Path
) -> tuple[Path, Path | None]:
    """The model and adapter that are measured, made where they are random."""
    from selfreward_lite.models import random_models

    if (model is None) == (synthetic is None):
        raise UserError("name a --model or a --synthetic shape, one of them")
    if model is not None and adapter == Path("random"):
        raise UserError(
            "a random adapter is made for a --synthetic shape; give the adapter's file with --model"
        )
    if model is None:
        model = folder / f"{synthetic}-{quantisation}.gguf"
        if not model.exists():
            say(f"making {model}")
            random_models.write_model(model, str(synthetic), quantisation)
        if adapter == Path("random"):
            adapter = random_models.write_adapter(
                folder / f"{synthetic}-adapter.gguf", str(synthetic)
            )
    return model, adapter


def _show_engine(plan: Plan, found: Found, document: dict[str, Any]) -> None:
    title = f"{plan.model.name}, {plan.load.name} load"
    table = Table(
        "", *(f"{number}" for number in range(1, plan.repeats + 1)), "median tokens/s", title=title
    )
    for arm, rates in (
        ("llama-cpp-python", found.naive),
        ("this engine", found.engine),
        ("bare llama.cpp", found.ceiling),
    ):
        table.add_row(arm, *(f"{rate:.1f}" for rate in rates), f"{median(rates):.1f}")
    console.print(table)
    say(
        f"{document['engine_over_naive']:.2f} times llama-cpp-python, {document['engine_over_ceiling']:.3f} of bare llama.cpp "
        f"({found.layout}); {document['slot_occupancy']:.0%} of the slots busy until the queue ran dry; "
        f"{document['prefill_tokens_computed']} prompt tokens computed, {document['prefill_tokens_unique']} different, "
        f"{document['prefill_tokens_requested']} asked for; sampling took {document['sampling_share']:.1%}"
    )


def seeds_of(text: str) -> list[int]:
    """Return the seeds that an option names; raises UserError for one that is written otherwise."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UserError(f"--seeds {text}: write them as 100-104 or 7,9")
        found += range(int(first), int(last or first) + 1)
    if not found:
        raise UserError(f"--seeds {text}: no seed is meant by that; write them as 100-104 or 7,9")
    return found


def _pairs(means: Mapping[str, Sequence[float]]) -> dict[str, list[float | None]]:
    return {name: [nan_to_none(value) for value in pair] for name, pair in means.items()}


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


@bench.command("app")
def bench_app() -> None:
    """How fast is the app? Its start, a first token alone and among fifty users, a stop, an overload, a large run to explore."""
    from selfreward_lite.bench import app

    with tempfile.TemporaryDirectory() as scratch:
        found = app.measure(Path(scratch), say)
    table = Table("", "", "", title="the app, on the tiny model", title_justify="left")
    for group, figures in found.items():
        for place, (name, value) in enumerate(figures.items()):
            table.add_row("" if place else group, name, _figure(group, name, value))
    console.print(table)
    print(json.dumps(found))


def _figure(group: str, name: str, value: float) -> str:
    if group == "memory":
        return format_bytes(value)
    if isinstance(value, int) or name == "tokens/s":
        return f"{value:,.0f}"
    return (
        f"{value:.2f}"
        if "times" in name
        else f"{1000 * value:,.1f} ms"
        if value < 1
        else f"{value:.2f} s"
    )


@bench.command("card")
def bench_card(
    shape: Annotated[
        str, typer.Option(help="Shape of the random models: llama-3-8b, 3b, 1b, 250m, tiny.")
    ] = "llama-3-8b",
    vram: Annotated[
        float | None,
        typer.Option(help="GB of the card that may be used, as of a smaller one.", min=1),
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="Time in all; what does not fit is left out, and named.", min=0)
    ] = 8,
    only: Annotated[
        Literal["engine", "train", "parity"] | None, typer.Option(help="One part alone.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where random models are kept.")] = Path(
        "runs/bench-card"
    ),
    out: Annotated[
        Path | None, typer.Option(help="The file to write; by default card-<name>.json, here.")
    ] = None,
) -> None:
    """What does this card do? Engine, training and agreement at a model's real size, without a download."""
    from selfreward_lite.bench import card

    there, size = next(iter(list_gpus()), None), "10m" if shape == "tiny" else shape
    if size not in SHAPES:
        raise UserError(f"--shape {shape}: no such shape; choose of tiny, {', '.join(SHAPES)}")
    name = there.name if there else "cpu"
    parts = [
        name,
        *([shape] if shape != "llama-3-8b" else []),
        *([f"{vram:g}gb"] if vram else []),
        *([only] if only else []),
    ]
    out = out or Path(f"card-{re.sub(r'[^a-z0-9]+', '-', ' '.join(parts).lower()).strip('-')}.json")
    given = " ".join(
        [
            "bench card",
            f"--shape {shape}",
            *([f"--vram {vram:g}"] if vram else []),
            f"--minutes {minutes:g}",
            *([f"--only {only}"] if only else []),
        ]
    )
    for needed in (folder, out.parent):
        needed.mkdir(parents=True, exist_ok=True)
    limit = None if vram is None else int(vram * 1e9)
    preset = card.preset_for(size, limit or (there.total if there else None))
    wanted = card.CardBenchConfig(
        size, preset, there, limit, minutes * 60, only, folder.absolute(), given
    )
    document = card.measure(wanted, out, say)
    table = Table("", "", "most of the card", title=f"{name}, {shape}", title_justify="left")
    for part, found in document["found"].items():
        table.add_row(
            part,
            _card_figures(found),
            "–" if found["peak_bytes"] is None else format_bytes(found["peak_bytes"]),
        )
    console.print(table)
    for part in document["left_out"]:
        say(f"left out, no time: {part}")
    for part, why in document["failed"].items():
        say(f"failed: {part}: {why}")
    if document["predicted_hours"]:
        say(f"{document['predicted_hours']:.2f} hours was what the plan had predicted")
    if len(document["hours"]) > 1:
        say(
            "estimates: generating scales as the cards' memory bandwidth, reading and training as their operations a second"
        )
    for where, value in document["hours"].items():
        say(f"{value:.2f} hours for an iteration of {document['preset']}: {where}")
    print(
        json.dumps(
            {
                "out": str(out),
                **{
                    name: document[name]
                    for name in ("failed", "left_out", "hours", "predicted_hours")
                },
            }
        )
    )


def _card_figures(found: dict[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in found.items()
        if isinstance(value, float) and not name.endswith("bytes")
    )


@bench.command("cards")
def bench_cards(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Files that `bench card` wrote.")
    ] = None,
) -> None:
    """What is known of which card, as Markdown: from files of `bench card`, and estimates beside them."""
    from selfreward_lite.bench import card_table

    documents = {path: card_table.read(path) for path in sorted(files or ())}
    say(card_table.table(list(documents.values())))
    shown = card_table.shown(list(documents.values())).values()
    for path, one in documents.items():
        if not any(one is each for each in shown):
            say(
                f"left out: {path}: not of a whole card at the size of llama-3-8b, or another file of that card has more"
            )
    print(json.dumps({"cards": [one.card.name for one in documents.values() if one.card]}))
