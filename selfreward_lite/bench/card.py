"""What a card does: engine, training and agreement of both sides, on random models of a named shape, in bounded time.

Knows: what is measured, in which order, what to do when time runs out. Does not know: how a measurement is made (`engine`,
`costs`, the run's own runtime), tables. Nothing is downloaded. Every figure is kept as soon as there is one, and a part that fails
is one line beside the others.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import platform
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from selfreward_lite import config
from selfreward_lite.bench import baselines, engine
from selfreward_lite.config.settings import Settings
from selfreward_lite.models import probe, random_models
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.hf_folder import SHAPES
from selfreward_lite.models.memory import DRIVER
from selfreward_lite.run import plan
from selfreward_lite.run.runtime import Runtime, open_runtime
from selfreward_lite.run.stages import StageCosts, seconds_by_stage
from selfreward_lite.system.errors import EngineError
from selfreward_lite.system.files import format_bytes
from selfreward_lite.system.gpu import Gpu, list_gpus
from selfreward_lite.system.processes import describe_exit, one_gpu
from selfreward_lite.training.job import Job

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "llama-cpp-python",
    "gguf",
    "unsloth",
)
PAIRS = 4  # of a step that is timed; the first step, in which kernels are chosen, is not
STEPS = 3
ROOMY = 20e9  # bytes of a card from which on `overnight` is meant for it
GRACE = 60.0  # seconds beyond its time that a measurement may take once it has begun
EARLY = "reference read beforehand"  # its time is that of loading
LOOK = 0.1  # seconds between two looks at the card's memory
Found = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class CardBenchConfig:
    """What is to be measured: a shape of SHAPES, the preset whose engine and training are, on which card (None: the CPU), bytes
    of it that may be used (None: all), seconds in all, one part (engine, train, parity) or None for all, a folder for the models,
    the command that asked for it; with how many sequences, at which lengths of a row."""

    shape: str
    preset: str
    card: Gpu | None
    vram: int | None
    seconds: float
    only: str | None
    folder: Path
    command: str
    sequences: tuple[int, ...] = (1, 8, 32, 64, 128)
    lengths: tuple[int, ...] = (512, 1024, 2048)


def preset_for(shape: str, memory: int | None) -> str:
    """Return which preset is meant for models of a shape on a card of so many bytes (None: no card)."""
    if SHAPES[shape].hidden >= 4096:
        return "t4" if memory is not None and memory < ROOMY else "overnight"
    return "small" if SHAPES[shape].hidden >= 2048 else "tiny"


def measure(wanted: CardBenchConfig, out: Path, say: Say) -> Found:
    """Measure whatever the time allows, write each figure to `out` as it comes, and return the document."""
    ends = time.monotonic() + wanted.seconds
    document = _head(wanted)
    out.write_text(
        json.dumps(document, indent=1) + "\n", encoding="utf-8"
    )  # the prediction, before there is a figure
    for name, _ in _parts(wanted, say):
        if time.monotonic() > ends:
            document["left_out"].append(name)
            continue
        say(f"{name} …")
        began = time.monotonic()
        with watched(wanted.card) as peak:
            found, why = in_child(wanted, name, ends - time.monotonic() + GRACE)
            taken = peak()
        if why is None and wanted.vram is not None and taken is not None and taken > wanted.vram:
            why = (
                f"it took {format_bytes(taken)} of the card, more than {format_bytes(wanted.vram)}"
            )
        if why is None:
            document["found"][name] = found | {"peak_bytes": taken}
        else:
            document["failed"][name] = why
            say(f"{name}: {why}")
        document["seconds"][name] = round(time.monotonic() - began, 1)
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    document |= hours(wanted, document)
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


def in_child(wanted: CardBenchConfig, name: str, seconds: float) -> tuple[Found, str | None]:
    """Do one measurement in a process of its own, which may crash, or be ended after `seconds`: its figures, or why not."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    child = spawn.Process(target=_measured, args=(wanted, name, theirs))
    child.start()
    theirs.close()
    try:
        found = (
            ours.recv()
            if ours.poll(seconds)
            else f"not done in time, and ended after {seconds:.0f} s"
        )
    except EOFError:
        child.join()
        found = f"its process failed: {describe_exit(child.exitcode or 0)}"
    finally:
        child.kill()
        child.join()
        for left in wanted.folder.rglob(
            ".*.part"
        ):  # of a model that was being written, by it or a child of its own; gigabytes
            left.unlink()
    return (found, None) if isinstance(found, dict) else ({}, found)


def _measured(wanted: CardBenchConfig, name: str, answer: Any) -> None:
    """What `in_child` starts."""
    os.environ.update(one_gpu(os.environ))
    try:
        work = dict(_parts(wanted, lambda words: print(words, file=sys.stderr)))[name]
        answer.send(work())
    except Exception as error:  # noqa: BLE001 - of a card, a library and a driver, every way to fail is a finding
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        answer.send(
            words.replace(f"{wanted.folder}{os.sep}", "")
        )  # the file is for others to see, folders are not


def _head(wanted: CardBenchConfig) -> Found:
    """What is known before anything is measured, the prediction among it."""
    there, settings, llama = wanted.card, config.load(wanted.preset), SHAPES[wanted.shape]
    return {
        "card": asdict(there) if there else None,
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "at": datetime.now(UTC).isoformat("T", "seconds"),
        "command": wanted.command,
        "shape": wanted.shape,
        "preset": wanted.preset,
        "vram": wanted.vram,
        "predicted": plan.predict(settings, llama, there.name if there else None).to_json(),
        "found": {},
        "failed": {},
        "left_out": [],
        "seconds": {},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@contextmanager
def watched(there: Gpu | None) -> Iterator[Callable[[], int | None]]:
    """Watch how much of the card is in use while the block runs; give what returns the most that came, beyond what was before,
    or None where nothing was seen."""
    if there is None:
        yield lambda: None
        return
    before, seen, over = next(iter(list_gpus()), there).free, list[int](), threading.Event()

    def look() -> None:
        while not over.wait(LOOK):
            seen.extend(
                before - one.free for one in list_gpus()[:1]
            )  # the driver may not answer for a moment

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield lambda: max(0, *seen) if seen else None
    finally:
        over.set()
        looking.join()


def _parts(wanted: CardBenchConfig, say: Say) -> Iterator[tuple[str, Callable[[], Found]]]:
    """Every measurement by name, the most telling first; models are made when they are first needed."""
    first, then = _Engine(wanted, "q8_0", say), _Engine(wanted, "q4_k_m", say)
    if wanted.only in (None, "engine"):
        yield "llama.cpp", lambda: _proved(probe.llama(-1 if wanted.card else 0))
        yield from first.rates()
    if wanted.only in (None, "train"):
        for backend in (
            "transformers",
            *(["unsloth"] if _version("unsloth") and wanted.card else []),
        ):
            for length in wanted.lengths:
                yield (
                    f"DPO, {backend}, {length} tokens",
                    lambda backend=backend, length=length: train(wanted, backend, length),
                )
            length = wanted.lengths[len(wanted.lengths) // 2]
            yield (
                f"DPO, {backend}, {length} tokens, {EARLY}",
                lambda backend=backend, length=length: train(wanted, backend, length, early=True),
            )
    if wanted.only in (None, "engine"):
        yield from first.details()
        yield from then.rates()
    if wanted.only in (None, "parity"):  # last: a base of 8B is exported on the CPU, in minutes
        yield "NF4 against its GGUF", lambda: parity(wanted)


def _proved(probed: Found) -> Found:
    """What llama.cpp said of a small model, the line about layers on the card among it; raises EngineError where it failed."""
    if probed["error"]:
        raise EngineError(probed["error"])
    return probed


# -- the engine -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Engine:
    """What is measured of the engine with a random model of one type, made when it is first needed."""

    wanted: CardBenchConfig
    kind: random_models.Quantisation
    say: Say

    def rates(self) -> Iterator[tuple[str, Callable[[], Found]]]:
        """Tokens a second: one after another as most people ask, ours with more and more sequences, and of prompts."""
        yield f"{self.kind}: naive loop", lambda: {"tokens_per_s": engine.naive_rate(self.plan(1))}
        for parallel in self.wanted.sequences:
            yield (
                f"{self.kind}: {parallel} sequences",
                lambda parallel=parallel: _rate(self.plan(parallel)),
            )
        yield (
            f"{self.kind}: prompts alone",
            lambda: _prefill(self.plan(32, new=(1, 1), prompts=32 if self.wanted.card else 8)),
        )

    def details(self) -> Iterator[tuple[str, Callable[[], Found]]]:
        """What is left to gain, and what an adapter and drawing cost."""
        yield (
            f"{self.kind}: bare llama_decode, 32 sequences",
            lambda: {"tokens_per_s": engine.bare_rate(self.plan(32))},
        )
        yield (
            f"{self.kind}: 32 sequences, no adapter",
            lambda: _rate(self.plan(32, with_adapter=False)),
        )
        yield f"{self.kind}: adapters", lambda: _switch(self.plan(32))
        yield f"{self.kind}: drawing, 32 sequences", lambda: _drawing(self.plan(32))

    @property
    def model(self) -> Path:
        """The random model's file."""
        return self.wanted.folder / f"{self.wanted.shape}-{self.kind}.gguf"

    def plan(
        self,
        parallel: int,
        *,
        with_adapter: bool = True,
        new: tuple[int, int] = (40, 160),
        prompts: int | None = None,
    ) -> engine.Plan:
        """Return a load that keeps so many sequences busy, drawn as the preset's judge draws, and the settings for it: on a card
        the preset's own, with more where so many sequences need more."""
        if not self.model.exists():
            self.say(f"making {self.model}")
            random_models.write_gguf(self.model, self.wanted.shape, self.kind)
        adapter = self.wanted.folder / f"{self.wanted.shape}-adapter.gguf"
        if with_adapter and not adapter.exists():
            random_models.write_gguf_adapter(adapter, self.wanted.shape)
        vocab, prompts = (
            baselines.vocabulary(self.model),
            prompts or max(1, parallel // (4 if self.wanted.card else 8)),
        )
        load = engine.judge_load(
            vocab, prompts, samples=8, new=new, adapter=str(adapter) if with_adapter else None
        )
        preset, layers = config.load(self.wanted.preset), -1 if self.wanted.card else 0
        draw = preset.judge.draw.model_dump(exclude={"max_tokens"})
        load = replace(
            load,
            requests=tuple(
                replace(one, sampling=replace(one.sampling, **draw)) for one in load.requests
            ),
        )
        spec = engine.spec_for(self.model, load, parallel=parallel, threads=None, gpu_layers=layers)
        if layers:
            own = preset.engine
            larger = {
                "batch": max(own.batch, spec.batch),
                "context": max(own.context, spec.context),
            }
            spec = spec.model_copy(update={**larger, "roots": own.roots})
        return engine.Plan(spec, load, 1)


def _rate(asked: engine.Plan) -> Found:
    rate, stats = engine.engine_rate(asked)
    generated = sum(request.sampling.max_tokens for request in asked.load.requests)
    return {
        "tokens_per_s": rate,
        "sampling_share": stats.seconds_sample / stats.seconds_total,
        "generated": generated,
        "read": stats.prompt_computed,
        "seconds": generated / rate,
    }


def _prefill(asked: engine.Plan) -> Found:
    """Prompts read a second, once a quarter of them has been read: by then kernels are loaded and chosen."""
    _, stats = engine.engine_rate(asked, warm=len(asked.load.requests) // 4)
    return {"tokens_per_s": stats.prompt_computed / stats.seconds_total}


def _drawing(asked: engine.Plan) -> Found:
    return baselines.drawing(asked.spec, asked.load.requests[0].sampling)


def _switch(asked: engine.Plan) -> Found:
    loaded, switched = baselines.switching(asked.spec, asked.load.requests[0].adapter or "")
    return {"load_s": loaded, "switch_s": switched}


# -- training, and whether both sides agree -------------------------------------------------------------------------------


def train(wanted: CardBenchConfig, backend: str, length: int, *, early: bool = False) -> Found:
    """Train on a few pairs of one length: seconds of a pair, the most memory, and whether it began as DPO must."""
    with open_runtime(backend) as runtime:
        return _trained(wanted, runtime, backend, length, early=early)


def _trained(
    wanted: CardBenchConfig, runtime: Runtime, backend: str, length: int, *, early: bool = False
) -> Found:
    settings = config.load(wanted.preset)
    base, work = _base(wanted), wanted.folder / f"{wanted.shape}-training"
    shutil.rmtree(work / "adapter", ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    rng, rows, half = random.Random(0), work / "rows.jsonl", length // 2
    some = [
        {
            name: [rng.randrange(256, 500) for _ in range(half)]
            for name in ("prompt_ids", "chosen_ids", "rejected_ids")
        }
        for _ in range(PAIRS * STEPS)
    ]
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in some), encoding="utf-8")
    job = Job(
        method="dpo",
        model_dir=base,
        quantization="nf4",
        adapter_in=None,
        adapter_out=work / "adapter",
        rows=rows,
        row_count=len(some),
        pad=ChatFormat.load(base).pad,
        seed=0,
        lora=settings.lora,
        checkpoints=work / "checkpoints",
        settings=settings.dpo.model_copy(
            update={
                "epochs": 1,
                "batch": PAIRS,
                "micro_batch": 1,
                "max_length": length,
                "precompute_reference": early,
            }
        ),
        backend=backend,  # type: ignore[arg-type]
        memory=None
        if wanted.vram is None
        else int(wanted.vram - DRIVER["training"]),  # torch's share of what is looked at
    )
    steps: list[tuple[float, float]] = []

    def report(said: Any) -> None:
        if "values" in said:
            steps.append((time.monotonic(), said["values"]["loss"]))

    result = runtime.train(job, work, report)
    if wanted.card and result.peak_bytes is None:
        raise EngineError(
            "torch sees no card and trained on the CPU; `python -m selfreward_lite doctor` says what to do"
        )
    spent = [after - before for (before, _), (after, _) in zip(steps, steps[1:], strict=False)]
    return {
        "seconds_of_a_pair": median(spent) / PAIRS,
        "torch_peak_bytes": result.peak_bytes,
        "micro_batch": result.micro_batch,
        "first_margin": result.first_margin,
        "losses": [loss for _, loss in steps],
        "load_s": result.load_seconds,
        "finite": all(math.isfinite(loss) for _, loss in steps),
        "tokens_of_a_pair": 4 * half,
    }


def parity(wanted: CardBenchConfig) -> Found:
    """Export the random base and an adapter as a run does, and compare llama.cpp's logits with those that were trained."""
    with open_runtime("transformers") as runtime:
        settings = config.load(wanted.preset)
        adapter = wanted.folder / f"{wanted.shape}-training" / "adapter"
        if not adapter.exists():
            _trained(wanted, runtime, "transformers", wanted.lengths[0])
        base, rng = _base(wanted), random.Random(1)
        out, began = wanted.folder / "exported" / "base.gguf", time.monotonic()
        model = settings.model.model_copy(update={"gguf_file": None})
        runtime.export_base(base, out, model)
        exported = time.monotonic() - began
        lists = [[rng.randrange(256, 500) for _ in range(count)] for count in (16, 64)]
        found = runtime.export_adapter(
            base, adapter, out, out.with_name("adapter.gguf"), lists, model
        )
    return {
        **asdict(found),
        "gguf": model.gguf,
        "export_base_s": exported,
        "export_adapter_s": time.monotonic() - began - exported,
    }


def _base(wanted: CardBenchConfig) -> Path:
    folder = wanted.folder / f"{wanted.shape}-nf4"
    return (
        folder
        if (folder / "config.json").exists()
        else random_models.write_folder(folder, wanted.shape)
    )


# -- hours ----------------------------------------------------------------------------------------------------------------


def hours(wanted: CardBenchConfig, document: Found) -> Found:
    """Return the hours of an iteration that follow from the figures, here and, by the ratio of vendors' figures, on other cards.

    What is bound by memory (generating) scales with bandwidth, what is bound by computing (reading, training) with operations.
    """
    rates = _rates(wanted, document)
    if rates is None or rates.token <= 0:
        why = (
            {
                "hours": "prompts took longer alone than with generating; measure again on a calm machine"
            }
            if rates
            else {}
        )
        return {
            "hours": {},
            "rates": None,
            "predicted_hours": None,
            "failed": document["failed"] | why,
        }
    settings, llama = config.load(wanted.preset), SHAPES[wanted.shape]
    here = plan.gpu_key(document["card"]["name"]) if document["card"] else None
    found = {
        "here": iteration_hours(settings, plan.costs_from_rates(settings, llama, rates, "measured"))
    }
    for name, speeds in plan.GPU_SPEEDS.items() if here else ():
        own = plan.GPU_SPEEDS[here]
        slower, busier = own.bandwidth / speeds.bandwidth, own.operations / speeds.operations
        scaled = replace(
            rates, token=rates.token * slower, read=rates.read * busier, dpo=rates.dpo * busier
        )
        found[f"{name} (estimate)"] = iteration_hours(
            settings, plan.costs_from_rates(settings, llama, scaled, "scaled")
        )
    predicted = plan.Prediction.from_json(document["predicted"]).hours(1)
    return {"hours": found, "predicted_hours": predicted, "rates": asdict(rates)}


def _rates(wanted: CardBenchConfig, document: Found) -> plan.Rates | None:
    """Seconds a token, from the parts that were measured; None while one is missing. Below 0 where they contradict each other."""
    found, settings = document["found"], config.load(wanted.preset)
    kind = "q8_0"  # what presets make of NF4
    ways = [count for count in wanted.sequences if f"{kind}: {count} sequences" in found]
    trained = [
        found[name] for name in found if name.startswith("DPO, ") and not name.endswith(EARLY)
    ]
    if not ways or f"{kind}: prompts alone" not in found or not trained:
        return None
    nearest = found[
        f"{kind}: {min(ways, key=lambda count: abs(count - settings.engine.parallel))} sequences"
    ]
    read = 1 / found[f"{kind}: prompts alone"]["tokens_per_s"]
    typical = (
        settings.dpo.max_length
    )  # of a pair's two rows, each half as long as the longest; of the libraries, the faster
    best = min(
        trained, key=lambda one: (abs(one["tokens_of_a_pair"] - typical), one["seconds_of_a_pair"])
    )
    return plan.Rates(
        token=(nearest["seconds"] - nearest["read"] * read) / nearest["generated"],
        read=read,
        dpo=best["seconds_of_a_pair"] / best["tokens_of_a_pair"],
    )


def iteration_hours(settings: Settings, costs: StageCosts) -> float:
    """The hours of a first iteration at these costs."""
    return sum(seconds_by_stage(settings, 1, costs).values()) / 3600
