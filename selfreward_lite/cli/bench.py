"""`bench …`: measures the method, the engine, a GPU and the app. The measuring is in `bench/`."""

import json
import os
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

from typer import Argument, Option, Typer

from selfreward_lite import config
from selfreward_lite.bench.card_file import CardFile
from selfreward_lite.cli.options import RUNS, RunName, RunsDir, Seeds, Set, parse_seeds
from selfreward_lite.cli.output import Display, emit, print_table, say, write_file
from selfreward_lite.data.records import BASE, ModelId
from selfreward_lite.method.statistics import format_with_error
from selfreward_lite.models.hf_folder import SHAPES
from selfreward_lite.report import summary
from selfreward_lite.system import cuda
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import format_bytes
from selfreward_lite.system.gpu import list_gpus
from selfreward_lite.system.processes import one_gpu

SAMPLERS = {"one_thread": "one thread", "threads": "all threads", "graph": "llama.cpp's graph"}
ModelsDir = Annotated[Path, Option(help="Folder for random models.")]
bench = Typer(
    no_args_is_help=True, help="Measure: does it learn, how fast are the engine, a GPU, the app."
)


@bench.command("tiny")
def bench_tiny(
    seeds: Seeds = "100-104",  # the published ones: no setting is chosen by what they show
    prompts: Annotated[int, Option(help="Held-out prompts per model.", min=2)] = 1000,
    runs_dir: Annotated[Path, Option(help="Folder for the runs of the seeds.")] = Path(
        "runs/bench-tiny"
    ),
    set_: Set = None,
) -> None:
    """Does the loop learn? The tiny run with several seeds: means and standard errors."""
    from selfreward_lite.bench import seeds as seed_bench

    overrides = config.parse_overrides(set_, {"evaluation.prompts": prompts})
    config.load("tiny", overrides)  # a mistyped setting leaves no folder behind
    with Display() as watch:
        trials = seed_bench.run_tiny(runs_dir, parse_seeds(seeds), overrides, watch, say)
    means = seed_bench.average_models(trials)
    limit = means[BASE].pop(seed_bench.LIMIT, None)
    reached = (sum(len(one.rows) > place for one in trials) for place in range(len(means)))
    rows = [["seeds that have it", *map(str, reached)]]
    for name in seed_bench.COLUMNS:
        cells = (format_with_error(columns.get(name)) for columns in means.values())
        rows.append([summary.title(name), *cells])
    print_table(["", *(ModelId(number).name for number in means)], rows)
    shown = (
        "win_rate_vs_seed",
        "exact_score",
        "answer_right",
        "judge_pair_accuracy",
        "longer_pair_accuracy",
    )
    rows = []
    for one in trials:
        values = ([row.values.get(name) for row in one.rows[1:]] for name in shown)
        cells = (" ".join(format_with_error((value, None)) for value in each) for each in values)
        rows.append([str(one.seed), *cells, str(one.seconds), one.stopped or ""])
    print_table(
        ["seed", *(summary.title(name) for name in shown), "seconds", "stopped because"], rows
    )
    say(f"highest possible win rate against these M0: {format_with_error(limit)}")
    verdicts = seed_bench.check_claims(trials)
    for claim, holds in verdicts.items():
        say(f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}")
    emit(
        {
            "seeds": [one.seed for one in trials],
            "mean_and_error": [*means.values()],
            "win_rate_limit": limit,
            "verdicts": verdicts,
        }
    )


@bench.command("engine")
def bench_engine(
    model: Annotated[Path | None, Option(help="A GGUF model.")] = None,
    synthetic: Annotated[
        str | None,
        Option(help="A random model of this shape: 10m, 250m, 1b, llama-3-8b, qwen3-8b."),
    ] = None,
    quantisation: Annotated[
        Literal["q8_0", "q4_k_m"], Option(help="Type of the random model's weights.")
    ] = "q8_0",
    adapter: Annotated[
        Path | None, Option(help="A GGUF LoRA for the model; `random` for a random model.")
    ] = None,
    load: Annotated[
        Literal["judge", "meta"],
        Option(help="What to generate: judgments of responses, or battles of judgments."),
    ] = "judge",
    parallel: Annotated[int, Option(help="Sequences generated at once.", min=1, max=240)] = 16,
    samples: Annotated[int, Option(help="Judgments per response, for both loads.", min=1)] = 8,
    prompt_tokens: Annotated[int, Option(help="Tokens per prompt.", min=8)] = 600,
    new_tokens: Annotated[
        int, Option(help="Most tokens of a judgment; the fewest are a quarter.", min=4)
    ] = 160,
    requests: Annotated[
        int | None, Option(help="Responses that are judged; by default 4, for meta 1.", min=1)
    ] = None,
    threads: Annotated[int | None, Option(help="CPU threads; by default all cores.", min=1)] = None,
    gpu_layers: Annotated[int, Option(help="Layers on the GPU; -1 = all.", min=-1)] = 0,
    repeats: Annotated[int, Option(help="Measurements of each.", min=1)] = 3,
    folder: ModelsDir = Path("runs/bench-engine"),
) -> None:
    """How fast is the engine? Compared with llama-cpp-python's usual API and raw llama.cpp."""
    cuda.open_libraries()  # this process loads llama.cpp too
    from selfreward_lite.bench import baselines, engine

    if gpu_layers:  # the same GPU as the engine's child process
        os.environ.update(one_gpu())
    model, name = engine.prepare_model(model, synthetic, quantisation, adapter, folder, say)
    vocab = baselines.vocabulary(model)
    if load == "judge":
        asked = engine.judge_load(
            vocab,
            requests or 4,
            samples=samples,
            tokens=prompt_tokens,
            new=new_tokens,
            adapter=name,
        )
    else:
        asked = engine.meta_load(
            vocab, requests or 1, judgments=samples, tokens=prompt_tokens, adapter=name
        )
    plan = baselines.Plan(engine.spec_for(model, asked, parallel, gpu_layers, threads), asked)
    found = engine.measure(plan, repeats, say)
    document = engine.document(plan, found)
    document["gpu"] = list_gpus()[0].name if gpu_layers and list_gpus() else None
    print_table(
        ["", *map(str, range(1, repeats + 1)), "median tokens/s"],
        [
            [engine.NAMES[key], *(f"{rate:.1f}" for rate in (*rates, median(rates)))]
            for key, rates in found.rates.items()
        ],
        f"{model.name}, {load} load",
    )
    say(
        f"{document['engine_over_naive']:.2f} times llama-cpp-python, "
        f"{document['engine_over_ceiling']:.3f} of raw llama.cpp ({found.layout}); "
        f"{document['slot_occupancy']:.0%} of the slots busy until the queue was empty; "
        f"{document['prefill_tokens_computed']} prompt tokens computed, "
        f"{document['prefill_tokens_unique']} different, "
        f"{document['prefill_tokens_requested']} requested; "
        f"sampling took {document['sampling_share']:.1%}"
    )
    sampled = baselines.drawing(plan)
    document["step_s"] = {who: round(seconds, 5) for who, seconds in sampled.items()}
    steps = (f"{1000 * seconds:.1f} ms ({SAMPLERS[who]})" for who, seconds in sampled.items())
    say(f"a step with one token per sequence, by what samples: {', '.join(steps)}")
    if name is not None:
        loaded, switched = baselines.switching(plan)
        say(f"the adapter loads in {loaded:.2f} s; a switch takes {switched * 1000:.1f} ms")
        document |= {"adapter_load_s": round(loaded, 4), "adapter_switch_s": round(switched, 5)}
    emit(document)


@bench.command("servers")
def bench_servers(
    name: RunName = "tiny",
    runs_dir: RunsDir = RUNS,
    server: Annotated[
        list[str] | None, Option(help="Address of a server of this run. May be repeated.")
    ] = None,
    judge: Annotated[
        bool, Option("--judge", help="Judge answers of the run, in place of answering its prompts.")
    ] = False,
    prompts: Annotated[
        int, Option(help="Prompts that are answered, or answers that are judged.", min=1)
    ] = 16,
    samples: Annotated[int, Option(help="Answers or judgments of each.", min=1)] = 8,
    repeats: Annotated[int, Option(help="Measurements of each.", min=1)] = 3,
) -> None:
    """How fast are servers for a run? The same texts here and on each of them."""
    from selfreward_lite.bench import servers

    if not server:
        raise UserError(
            "name at least one --server http://HOST:PORT; `doctor --servers` says how to start one"
        )
    found = servers.measure(runs_dir / name, server, prompts, samples, repeats, say, judge)
    rates = {where: median(one.rates) for where, one in found.items()}
    rows = [
        [
            where,
            *(f"{rate:.1f}" for rate in (*one.rates, rates[where])),
            f"{rates[where] / rates[servers.HERE]:.2f}",
            f"{one.equal} of {one.samples}",
        ]
        for where, one in found.items()
    ]
    numbers = map(str, range(1, repeats + 1))
    head = ["", *numbers, "median tokens/s", "of this machine", "same samples"]
    asked = ("answers", "judgments") if judge else ("prompts", "answers")
    print_table(head, rows, f"{name}, {prompts} {asked[0]}, {samples} {asked[1]} of each")
    emit({where: {"tokens_per_s": rates[where], **asdict(one)} for where, one in found.items()})


@bench.command("app")
def bench_app() -> None:
    """How fast is the app? Start, first token alone and among fifty users, a crowd."""
    from selfreward_lite.bench import app

    with tempfile.TemporaryDirectory() as scratch:
        found = app.measure(Path(scratch), say)
    rows = [
        ["" if number else group, name, _figure(group, name, value)]
        for group, figures in found.items()
        for number, (name, value) in enumerate(figures.items())
    ]
    print_table(["", "", ""], rows, "the app, on the tiny model")
    emit(found)


def _figure(group: str, name: str, value: float) -> str:
    if group == "memory":
        return format_bytes(value)
    if isinstance(value, int) or name == "tokens/s":
        return f"{value:,.0f}"
    if "times" in name:
        return f"{value:.2f}"
    return f"{1000 * value:,.1f} ms" if value < 1 else f"{value:.2f} s"


@bench.command("card")
def bench_card(
    shape: Annotated[
        str, Option(help="Shape of the random models: llama-3-8b, qwen3-8b, 3b, 1b, 250m, tiny.")
    ] = "llama-3-8b",
    vram: Annotated[
        float | None, Option(help="GB of the GPU's memory to use, to act as a smaller one.", min=1)
    ] = None,
    minutes: Annotated[
        float, Option(help="Time in total; what does not fit is left out, and named.", min=0)
    ] = 8,
    only: Annotated[
        Literal["engine", "train", "parity"] | None, Option(help="One part only.")
    ] = None,
    folder: ModelsDir = Path("runs/bench-card"),
    out: Annotated[
        Path | None, Option(help="File to write; by default card-NAME.json, here.")
    ] = None,
) -> None:
    """How fast is this GPU? Engine, training and parity at a model's real size, no download."""
    from selfreward_lite.bench import card

    gpu, size = next(iter(list_gpus()), None), "10m" if shape == "tiny" else shape
    if size not in SHAPES:
        raise UserError(f"--shape {shape}: no such shape; choose one of tiny, {', '.join(SHAPES)}")
    name = gpu.name if gpu else "cpu"
    parts = [name, "" if shape == "llama-3-8b" else shape, f"{vram:g}gb" if vram else "", only]
    words = re.findall(r"[a-z0-9]+", " ".join(part for part in parts if part).lower())
    out = out or Path(f"card-{'-'.join(words)}.json")
    given = f"bench card --shape {shape}"
    given += f" --vram {vram:g}" if vram else ""
    given += f" --minutes {minutes:g}" + (f" --only {only}" if only else "")
    for needed in (folder, out.parent):
        needed.mkdir(parents=True, exist_ok=True)
    limit = int(vram * 1e9) if vram else None
    preset = card.choose_preset(size, limit or (gpu.total if gpu else None))
    wanted = card.CardBenchConfig(
        size, preset, gpu, limit, minutes * 60, only, folder.absolute(), given
    )
    file = card.measure(wanted, out, say)
    rows = [
        [
            part,
            ", ".join(
                f"{name.replace('_', ' ')} {value:.4g}"
                for name, value in found.model_dump(exclude_unset=True).items()
                if isinstance(value, float) and not name.endswith("bytes")
            ),
            "–" if found.peak_bytes is None else format_bytes(found.peak_bytes),
        ]
        for part, found in file.found.items()
    ]
    print_table(["", "", "peak GPU memory"], rows, f"{name}, {shape}")
    for part in file.left_out:
        say(f"left out, no time: {part}")
    for part, why in file.failed.items():
        say(f"failed: {part}: {why}")
    if file.predicted_hours:
        say(f"the plan predicted {file.predicted_hours:.2f} hours")
    if len(file.hours) > 1:
        say(
            "Estimates for other GPUs: generation scales with memory bandwidth, prompts and "
            "training with operations per second."
        )
    for where, value in file.hours.items():
        say(f"{value:.2f} hours for an iteration of {file.preset}: {where}")
    kept = {"failed", "left_out", "hours", "predicted_hours"}
    emit({"out": str(out), **file.model_dump(include=kept)})


@bench.command("cards")
def bench_cards(
    files: Annotated[list[Path] | None, Argument(help="Files that `bench card` wrote.")] = None,
) -> None:
    """What is known of which GPU, as Markdown: measured in these files, or estimated."""
    from selfreward_lite.bench import card_table

    found = {path: CardFile.read(path) for path in sorted(files or ())}
    read = [*found.values()]
    say(card_table.build_table(read))
    shown = card_table.select_files(read).values()
    for path, one in found.items():
        if not any(one is each for each in shown):
            say(
                f"left out: {path}: it did not measure a complete GPU with llama-3-8b, or another "
                "file of that GPU has more"
            )
    emit({"cards": [one.card.name for one in read if one.card]})


@bench.command("rehearsal")
def bench_rehearsal(
    shape: Annotated[
        str, Option(help="Shape of the random model: llama-3-8b, qwen3-8b, 3b, 1b, …")
    ] = "llama-3-8b",
    layers: Annotated[int | None, Option(help="Fewer layers, for a trial.", min=1)] = None,
    hidden: Annotated[
        int | None, Option(help="Narrower layers, for a trial: a multiple of 256.", min=256)
    ] = None,
    tokenizer: Annotated[
        Path | None,
        Option(help="Folder with a real tokenizer's files; by default the tiny world's tokens."),
    ] = None,
    memory: Annotated[
        float, Option(help="GiB that the processes may hold; a step that holds more is ended.")
    ] = 20,
    folder: Annotated[
        Path, Option(help="Folder for its files: 16 GB at the size of an 8B.")
    ] = Path("runs/bench-rehearsal"),
    out: Annotated[
        Path | None, Option(help="File to write; by default rehearsal-SHAPE.json, here.")
    ] = None,
) -> None:
    """Does a model of a real size fit? NF4, GGUF, a DPO step, proof, judgments, all on the CPU.

    It takes a quarter of an hour at the size of an 8B on two cores, and resumes behind the last
    step that was done.
    """
    from selfreward_lite.bench import rehearsal

    if shape not in SHAPES:
        raise UserError(f"--shape {shape}: no such shape; choose one of {', '.join(SHAPES)}")
    if hidden and hidden % 256:
        raise UserError(f"--hidden {hidden}: give a multiple of 256")
    wanted = rehearsal.Rehearsal(
        folder=folder.absolute(),
        shape=shape,
        layers=layers,
        hidden=hidden,
        tokenizer=tokenizer and tokenizer.absolute(),
        memory=int(memory * 2**30),
    )
    steps = rehearsal.rehearse(wanted, say)
    rows = [
        [
            name,
            f"{step.seconds / 60:.1f}",
            format_bytes(step.held),
            format_bytes(step.mapped),
            format_bytes(step.disk),
            ", ".join(
                f"{what.replace('_', ' ')} {value:.4g}"
                for what, value in step.facts.items()
                if isinstance(value, int | float)
            ),
        ]
        for name, step in steps.items()
    ]
    print_table(["step", "minutes", "held", "files in memory", "disk", "found"], rows, shape)
    out = out or Path(f"rehearsal-{shape}.json")
    measured = {name: asdict(step) for name, step in steps.items()}
    model = {"shape": asdict(wanted.find_shape()), "tokenizer": tokenizer and tokenizer.name}
    write_file(out, json.dumps({"model": model, "steps": measured}, indent=1) + "\n")
    say(f"{out} has all figures; {folder} can be removed: nothing else needs it")
    emit({"out": str(out), **measured})


@bench.command("families")
def bench_families(
    tokenizers: Annotated[
        Path,
        Argument(
            help="Folder with a folder for each model: tokenizer.json, tokenizer_config.json."
        ),
    ],
) -> None:
    """Does llama.cpp compute what transformers does? Small random models of every family."""
    from selfreward_lite.bench import families

    with tempfile.TemporaryDirectory() as scratch:
        rows = families.measure_families(tokenizers, Path(scratch), say)
    say(families.build_table(rows))
    emit([asdict(row) for row in rows])
