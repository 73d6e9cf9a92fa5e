"""What a GPU does: engine, training and parity on random models of a named shape, in bounded time.

Nothing is downloaded. Each figure is written as soon as it is known, and a part that fails is one
line beside the others.
"""

import json
import math
import os
import platform
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import TypeAdapter

from selfreward_lite import config
from selfreward_lite.bench import Say, baselines, engine
from selfreward_lite.bench.card_file import PRECOMPUTED, CardFile, Figures
from selfreward_lite.engine.api import LlamaSpec
from selfreward_lite.models import chat_format, memory, probe, random_models
from selfreward_lite.models.hf_folder import SHAPES
from selfreward_lite.run import plan
from selfreward_lite.run.prepare import PACKAGES
from selfreward_lite.run.runtime import open_runtime
from selfreward_lite.system.cores import count_cores
from selfreward_lite.system.doctor import installed_version
from selfreward_lite.system.errors import EngineError
from selfreward_lite.system.files import format_bytes
from selfreward_lite.system.gpu import Gpu, list_gpus
from selfreward_lite.system.processes import (
    child_environment,
    describe_exit,
    open_wire,
    start_module,
)
from selfreward_lite.training.job import Job
from selfreward_lite.training.rows import Rows

PAIRS = 4  # in a training step that is timed; the first step chooses kernels and does not count
STEPS = 3
VOCAB = 508  # of the token ids that are drawn: every base has them
SOME_CANDIDATES = 1024  # as `paper` draws
LARGE_GPU = 20e9  # bytes from which on `overnight` is meant for a GPU
GRACE = 60.0  # seconds that a measurement under way may take beyond the time in total
POLL = 0.1  # seconds between two readings of the GPU's memory
Backend = Literal["unsloth", "transformers"]
Measurement = tuple[str, Callable[[], Figures]]  # its name, and what does it


@dataclass(frozen=True)
class CardBenchConfig:
    """What to measure.

    `gpu`: None for the CPU. `vram`: bytes of it to use, None for all. `seconds`: in total. `only`:
    one part, None for all. `folder`: for random models. `command`: as given, for the file.
    `sequences`: how many at once. `lengths`: of training rows, in tokens.
    """

    shape: str
    preset: str
    gpu: Gpu | None
    vram: int | None
    seconds: float
    only: Literal["engine", "train", "parity"] | None
    folder: Path
    command: str
    sequences: tuple[int, ...] = (1, 8, 32, 64, 128)
    lengths: tuple[int, ...] = (512, 1024, 2048)


CONFIG = TypeAdapter(CardBenchConfig)


def choose_preset(shape: str, memory: int | None) -> str:
    """The preset for models of a shape on a GPU of so many bytes (None: no GPU)."""
    if SHAPES[shape].hidden >= 4096:
        return "t4" if memory is not None and memory < LARGE_GPU else "overnight"
    return "small" if SHAPES[shape].hidden >= 2048 else "tiny"


def measure(wanted: CardBenchConfig, out: Path, say: Say) -> CardFile:
    """Measure what the time allows; each figure is written to `out` as soon as it is known."""
    ends = time.monotonic() + wanted.seconds
    settings, gpu = config.load(wanted.preset), wanted.gpu
    prediction = plan.predict(settings, SHAPES[wanted.shape], gpu.name if gpu else None)
    file = CardFile(
        card=gpu,
        cpu_cores=count_cores(),
        python=platform.python_version(),
        versions={
            name: found for name in (*PACKAGES, "unsloth") if (found := installed_version(name))
        },
        at=datetime.now(UTC).isoformat("T", "seconds"),
        command=wanted.command,
        shape=wanted.shape,
        preset=wanted.preset,
        vram=wanted.vram,
        predicted=prediction.to_json(),
        found={},
        failed={},
        left_out=[],
        seconds={},
    )
    file.write(out)  # the prediction, before any figure
    for name, _ in _list_parts(wanted):
        if time.monotonic() > ends:
            file.left_out.append(name)
            continue
        say(f"{name} …")
        began = time.monotonic()
        with watch_memory(gpu) as peak:
            result = run_in_child(wanted, name, ends - time.monotonic() + GRACE)
            taken = peak()
        if wanted.vram and taken and taken > wanted.vram and isinstance(result, Figures):
            result = (
                f"it took {format_bytes(taken)} of the GPU, more than {format_bytes(wanted.vram)}"
            )
        if isinstance(result, Figures):
            result.peak_bytes = taken
            file.found[name] = result
        else:
            file.failed[name] = result
            say(f"{name}: {result}")
        file.seconds[name] = round(time.monotonic() - began, 1)
        file.write(out)
    file.add_hours()
    file.write(out)
    return file


def run_in_child(wanted: CardBenchConfig, name: str, seconds: float) -> Figures | str:
    """The figures of one measurement, or why there are none.

    It runs in its own process, which may crash and is ended after `seconds`.
    """
    child = start_module(
        "selfreward_lite.bench.card",
        CONFIG.dump_json(wanted).decode(),
        name,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=child_environment(gpus="one"),
    )
    try:
        output, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"not done in time, and ended after {seconds:.0f} s"
    finally:
        child.kill()
        child.communicate()  # until it has ended; this closes its pipe
        # Gigabytes of a model that was being written, by the child or by a child of its own.
        for left in wanted.folder.rglob(".*.part"):
            left.unlink()
    if not output.endswith("\n"):
        return f"its process gave no answer: {describe_exit(child.returncode)}"
    answer = json.loads(output)["answer"]
    return answer if isinstance(answer, str) else Figures(**answer)


def _run_part(wanted: CardBenchConfig, name: str) -> dict[str, Any] | str:
    """What `run_in_child` starts: the figures, or the line of an error."""
    try:
        return dict(_list_parts(wanted))[name]().model_dump(exclude_unset=True)
    except Exception as error:  # noqa: BLE001 - any failure of a GPU, library or driver is a finding
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        # Others will see the file, and need not see folders.
        return text.replace(f"{wanted.folder}{os.sep}", "")


@contextmanager
def watch_memory(gpu: Gpu | None) -> Iterator[Callable[[], int | None]]:
    """A function for the most memory that came into use during the block.

    It returns None if the driver never answered, or without a GPU.
    """
    if gpu is None:
        yield lambda: None
        return
    before, seen, is_over = next(iter(list_gpus()), gpu).free, list[int](), threading.Event()

    def poll() -> None:
        while not is_over.wait(POLL):
            for gpu in list_gpus()[:1]:  # sometimes the driver does not answer
                seen.append(before - gpu.free)

    polling = threading.Thread(target=poll, daemon=True)
    polling.start()
    try:
        yield lambda: max(0, *seen) if seen else None
    finally:
        is_over.set()
        polling.join()


def _list_parts(wanted: CardBenchConfig) -> Iterator[Measurement]:
    """Every measurement by name, the most telling first."""
    first, then = _EngineParts(wanted, "q8_0"), _EngineParts(wanted, "q4_k_m")
    if wanted.only in (None, "engine"):
        yield "llama.cpp", partial(_probe, -1 if wanted.gpu else 0)
        yield from first.speeds()
    if wanted.only in (None, "train"):
        has_unsloth = wanted.gpu and installed_version("unsloth")
        for backend in ("transformers", "unsloth") if has_unsloth else ("transformers",):
            for length in wanted.lengths:
                yield f"DPO, {backend}, {length} tokens", partial(train, wanted, backend, length)
            length = wanted.lengths[len(wanted.lengths) // 2]
            early = partial(train, wanted, backend, length, precompute=True)
            yield f"DPO, {backend}, {length} tokens, {PRECOMPUTED}", early
    if wanted.only in (None, "engine"):
        yield from first.details()
        yield from then.speeds()
    if wanted.only in (None, "parity"):  # last: exporting an 8B base takes minutes of the CPU
        yield "NF4 against its GGUF", partial(check_parity, wanted)


def _probe(gpu_layers: int) -> Figures:
    """What llama.cpp did with a small model, and where. Raises EngineError if it failed."""
    found = probe.llama(gpu_layers)
    if found["error"]:
        raise EngineError(found["error"])
    return Figures(**found)


# -- the engine ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _EngineParts:
    """Measurements of the engine with a random model of one type, made when it is needed."""

    wanted: CardBenchConfig
    kind: random_models.Quantization

    def speeds(self) -> Iterator[Measurement]:
        """Tokens a second: the naive loop, more and more sequences, prompts alone."""
        yield (
            f"{self.kind}: naive loop",
            lambda: Figures(tokens_per_s=baselines.naive_rate(self.plan(1))),
        )
        for parallel in self.wanted.sequences:
            yield f"{self.kind}: {parallel} sequences", partial(self._generate, parallel)
        prompts = 32 if self.wanted.gpu else 8
        yield (
            f"{self.kind}: prompts alone",
            lambda: Figures(tokens_per_s=engine.prompt_rate(self.plan(32, new=1, prompts=prompts))),
        )

    def details(self) -> Iterator[Measurement]:
        """What is left to gain, and what an adapter, drawing and the KV cache cost."""
        yield (  # the name in files: raw llama.cpp
            f"{self.kind}: bare llama_decode, 32 sequences",
            lambda: Figures(tokens_per_s=engine.raw_rate(self.plan(32))),
        )
        without = partial(self._generate, 32, with_adapter=False)
        yield f"{self.kind}: 32 sequences, no adapter", without
        # A GPU has one cache for all, a CPU one each: here it is the other way round.
        other = "a KV cache each" if self.wanted.gpu else "one KV cache"
        yield f"{self.kind}: 32 sequences, {other}", partial(self._generate, 32, other_cache=True)
        yield f"{self.kind}: adapters", self._switch
        drawing = f"{self.kind}: drawing, 32 sequences"
        yield drawing, self._sample
        yield f"{drawing}, top_k {SOME_CANDIDATES}", partial(self._sample, SOME_CANDIDATES)
        yield f"{drawing}, all tokens", partial(self._sample, 0)

    def _generate(
        self, parallel: int, *, with_adapter: bool = True, other_cache: bool = False
    ) -> Figures:
        plan = self.plan(parallel, with_adapter=with_adapter)
        if other_cache:
            plan = replace(plan, spec=swap_cache(plan))
        rate, stats = engine.engine_rate(plan)
        return Figures(
            tokens_per_s=rate,
            sampling_share=stats.seconds_sample / stats.seconds_total,
            generated=stats.generated,
            read=stats.prompt_computed,
            seconds=stats.generated / rate,
        )

    def _switch(self) -> Figures:
        loaded, switched = baselines.switching(self.plan(32))
        return Figures(load_s=loaded, switch_s=switched)

    def _sample(self, top_k: int | None = None) -> Figures:
        plan = self.plan(32)
        if top_k is not None:
            first = plan.load.requests[0]  # whose sampling counts
            sampling = first.sampling.model_copy(update={"top_k": top_k})
            requests = [replace(first, sampling=sampling), *plan.load.requests[1:]]
            plan = replace(plan, load=replace(plan.load, requests=requests))
        return Figures(**baselines.drawing(plan))

    def plan(
        self,
        parallel: int,
        *,
        with_adapter: bool = True,
        new: int = 160,
        prompts: int | None = None,
    ) -> baselines.Plan:
        """A load that keeps so many sequences busy, sampled as the preset's judge samples.

        On a GPU the engine has the preset's settings, or more where so many sequences need more.
        """
        wanted, preset = self.wanted, config.load(self.wanted.preset)
        model, adapter = engine.prepare_model(
            None,
            wanted.shape,
            self.kind,
            Path("random") if with_adapter else None,
            wanted.folder,
            partial(print, file=sys.stderr),
        )
        load = engine.judge_load(
            baselines.vocabulary(model),
            prompts or max(1, parallel // (4 if wanted.gpu else 8)),
            new=new,
            adapter=adapter,
            draw=preset.judge.draw,
        )
        spec = engine.spec_for(model, load, parallel, -1 if wanted.gpu else 0)
        if wanted.gpu:
            own = preset.engine
            changes = {
                "batch": max(own.batch, spec.batch),
                "context": max(own.context, spec.context),
                "roots": own.roots,
            }
            spec = spec.model_copy(update=changes)
        return baselines.Plan(spec, load)


def swap_cache(plan: baselines.Plan) -> LlamaSpec:
    """The engine with a KV cache for each sequence instead of one for all, or the reverse.

    Of a cache that is divided, each part holds the longest request.
    """
    spec = plan.spec
    context = plan.load.cells * (spec.parallel + spec.roots) if spec.unified else spec.context
    return spec.model_copy(update={"unified": not spec.unified, "context": context})


# -- training and parity ---------------------------------------------------------------------------


def train(
    wanted: CardBenchConfig, backend: Backend, length: int, *, precompute: bool = False
) -> Figures:
    """Train on a few pairs of one length: seconds a pair, peak memory, the first margin."""
    settings = config.load(wanted.preset)
    base, work = _make_base(wanted), wanted.folder / f"{wanted.shape}-training"
    shutil.rmtree(work / "adapter", ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    rng, rows, half = random.Random(0), work / "rows.jsonl", length // 2
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    drawn = [
        {name: list(engine.draw_tokens(rng, VOCAB, half)) for name in names}
        for _ in range(PAIRS * STEPS)
    ]
    Rows(drawn).save(rows)
    changes = {
        "epochs": 1,
        "batch": PAIRS,
        "micro_batch": 1,
        "max_length": length,
        "precompute_reference": precompute,
    }
    job = Job(
        method="dpo",
        model_dir=base,
        quantization="nf4",
        adapter_in=None,
        adapter_out=work / "adapter",
        rows=rows,
        row_count=len(drawn),
        pad=chat_format.ChatFormat.load(base).pad,
        seed=0,
        lora=settings.lora,
        checkpoints=work / "checkpoints",
        settings=settings.dpo.model_copy(update=changes),
        backend=backend,
        memory=wanted.vram and int(wanted.vram - memory.DRIVER["training"]),  # torch's share
    )
    steps: list[tuple[float, float]] = []

    def report(message: Mapping[str, Any]) -> None:
        if "values" in message:
            steps.append((time.monotonic(), message["values"]["loss"]))

    with open_runtime(backend) as runtime:
        result = runtime.train(job, work, report)
    if wanted.gpu and result.peak_bytes is None:
        raise EngineError(
            "torch sees no GPU and trained on the CPU; `python -m selfreward_lite doctor` says "
            "what to do"
        )
    spent = [after - before for (before, _), (after, _) in pairwise(steps)]
    return Figures(
        seconds_of_a_pair=median(spent) / PAIRS,
        torch_peak_bytes=result.peak_bytes,
        micro_batch=result.micro_batch,
        first_margin=result.first_margin,
        losses=[loss for _, loss in steps],
        load_s=result.load_seconds,
        finite=all(math.isfinite(loss) for _, loss in steps),
        tokens_of_a_pair=4 * half,
    )


def check_parity(wanted: CardBenchConfig) -> Figures:
    """Export a random base and adapter as a run does; compare llama.cpp's logits with PEFT's."""
    adapter = wanted.folder / f"{wanted.shape}-training" / "adapter"
    if not adapter.exists():
        train(wanted, "transformers", wanted.lengths[0])
    base, out = _make_base(wanted), wanted.folder / "exported" / "base.gguf"
    model = config.load(wanted.preset).model.model_copy(update={"gguf_file": None})
    rng = random.Random(1)
    lists = [engine.draw_tokens(rng, VOCAB, count) for count in (16, 64)]
    with open_runtime("transformers") as runtime:
        began = time.monotonic()
        runtime.export_base(base, out, model)
        exported = time.monotonic()
        found = runtime.export_adapter(
            base, adapter, out, out.with_name("adapter.gguf"), lists, model
        )
    return Figures(
        **asdict(found),
        gguf=model.gguf,
        export_base_s=exported - began,
        export_adapter_s=time.monotonic() - exported,
    )


def _make_base(wanted: CardBenchConfig) -> Path:
    folder = wanted.folder / f"{wanted.shape}-nf4"
    if not (folder / "config.json").exists():
        random_models.write_folder(folder, wanted.shape)
    return folder


if __name__ == "__main__":
    send = open_wire()
    send({"answer": _run_part(CONFIG.validate_json(sys.argv[1]), sys.argv[2])})
    os._exit(0)  # not through interpreter shutdown, where a GPU's library may crash or hang
