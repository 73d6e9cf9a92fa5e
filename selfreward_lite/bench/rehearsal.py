"""A rehearsal: a random model of a real one's size goes through what a run does with it, on a CPU.

base in NF4 → GGUF in Q8_0 → one step of DPO → adapter and its proof → judgments. The texts mean
nothing; that it fits into memory and onto the disk does. Every step is a process of its own and
leaves a small file, so that a rehearsal resumes behind the last one that was done.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from selfreward_lite import config
from selfreward_lite.bench import Say
from selfreward_lite.config.settings import Sampling
from selfreward_lite.data.records import Judgment, Prompt, Response
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.engine.api import LlamaSpec
from selfreward_lite.engine.process import ProcessEngine
from selfreward_lite.method.judgments import ask_for_judgments
from selfreward_lite.method.roles import Role
from selfreward_lite.models import memory, random_models
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.chat_template import user
from selfreward_lite.models.hf_folder import SHAPES, ModelShape
from selfreward_lite.run.ask import drive
from selfreward_lite.run.runtime import open_runtime
from selfreward_lite.system import process_memory
from selfreward_lite.system.errors import EngineError, ExportError, TrainingError, UserError
from selfreward_lite.system.files import format_bytes, free_bytes
from selfreward_lite.system.processes import (
    child_environment,
    describe_exit,
    open_wire,
    start_module,
)
from selfreward_lite.training.job import Job
from selfreward_lite.training.rows import build_rows

Facts = dict[str, Any]
POLL = 0.5  # seconds between two readings of memory and disk
SPARE_DISK = 1e9  # bytes for logs, checkpoints and rows
SPARE_MEMORY = 3e9  # libraries, one unpacked matrix and its gradients, a matrix that is read
RATE = 0.02  # so that the one step changes logits by more than Q8_0 does
MAX_SHARE_ERROR = 0.25  # as gates.max_share_error

# A question, an answer and a worse one.
TEXTS = (
    ("Name a color.", "Blue.", "A dog is a color."),
    ("What is two plus two?", "Four.", "Many."),
    ("Say hello in French.", "Bonjour.", "Hello."),
)


@dataclass(frozen=True)
class Rehearsal:
    """What to rehearse, where, and with how much.

    `shape` is a name in SHAPES, of which `layers`, `hidden` and `vocab` may be smaller. `tokenizer`
    is a folder with a real one's files, None for the tiny world's. `memory` is what the processes
    may hold in bytes. `judgments` of at most `new_tokens` are drawn of every answer.
    """

    folder: Path
    shape: str = "llama-3-8b"
    layers: int | None = None
    hidden: int | None = None
    vocab: int | None = None
    tokenizer: Path | None = None
    memory: int = 20 * 2**30
    judgments: int = 2
    new_tokens: int = 48

    def find_shape(self) -> ModelShape:
        """The model's shape; heads and inner width are as wide as `hidden` allows."""
        named = SHAPES[self.shape]
        hidden = self.hidden or named.hidden
        heads = max(1, hidden // named.head_dim)
        return replace(
            named,
            layers=self.layers or named.layers,
            hidden=hidden,
            ffn=-(-named.ffn * hidden // named.hidden // 256) * 256,
            heads=heads,
            kv_heads=max(1, heads * named.kv_heads // named.heads),
            vocab=self.vocab or named.vocab,
        )

    @property
    def base(self) -> Path:
        return self.folder / "nf4"

    @property
    def gguf(self) -> Path:
        return self.folder / "gguf" / "base.gguf"

    @property
    def adapter(self) -> Path:
        return self.folder / "training" / "adapter"

    @property
    def adapter_gguf(self) -> Path:
        return self.folder / "gguf" / "adapter.gguf"

    def same_model(self) -> Facts:
        """What the files of two rehearsals have in common if one resumes the other."""
        return {
            "shape": [self.shape, self.layers, self.hidden, self.vocab],
            "tokenizer": self.tokenizer and str(self.tokenizer),
        }


REHEARSAL = TypeAdapter(Rehearsal)


@dataclass(frozen=True)
class Step:
    """What a step took: seconds, the most memory and disk at any moment in bytes, and its facts."""

    seconds: float
    held: int
    mapped: int
    disk: int
    facts: Facts


# -- the steps, each in a process of its own ----------


def make_base(wanted: Rehearsal) -> Facts:
    """Write the base in NF4, a layer at a time."""
    shape = wanted.find_shape()
    random_models.write_model(wanted.base, shape, wanted.tokenizer or TINY_MODEL)
    return {"weights": memory.count_weights(shape), "bytes": _folder_bytes(wanted.base)}


def export_base(wanted: Rehearsal) -> Facts:
    """Write it as GGUF in Q8_0, and prove its token ids, as a run does."""
    with open_runtime("transformers", bare=True) as runtime:
        runtime.export_base(wanted.base, wanted.gguf, config.load("overnight").model)
    return {"bytes": wanted.gguf.stat().st_size}


def train(wanted: Rehearsal) -> Facts:
    """One step of DPO on short pairs, with the settings of `overnight`."""
    settings, chat = config.load("overnight"), ChatFormat.load(wanted.base)
    work = wanted.adapter.parent
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    rows = build_rows(TEXTS[:1], chat, settings.dpo.max_length)
    rows.save(work / "rows.jsonl")
    changes = {"epochs": 1, "batch": 1, "micro_batch": 1, "learning_rate": RATE, "warmup": 0.0}
    job = Job(
        method="dpo",
        model_dir=wanted.base,
        quantization="nf4",
        adapter_in=None,
        adapter_out=wanted.adapter,
        rows=work / "rows.jsonl",
        row_count=len(rows.rows),
        pad=chat.pad,
        seed=0,
        lora=settings.lora,
        checkpoints=work / "checkpoints",
        settings=settings.dpo.model_copy(update=changes),
        backend="transformers",
        min_moved_share=0.0,  # the first step moves one of the two matrices
    )
    with open_runtime("transformers", bare=True) as runtime:
        result = runtime.train(job, work, lambda message: None)
    if result.steps != 1 or not result.moved_share:
        raise TrainingError(f"{result.steps} steps moved {result.moved_share:.0%} of the adapter")
    return {
        "tokens": result.tokens,
        "first_margin": result.first_margin,
        "first_loss": result.first_loss,
        "moved_share": result.moved_share,
        "load_seconds": result.load_seconds,
        "train_seconds": result.train_seconds,
    }


def export_adapter(wanted: Rehearsal) -> Facts:
    """Write the adapter as GGUF; llama.cpp must show what it does in PEFT, at a few positions."""
    chat, model = ChatFormat.load(wanted.base), config.load("overnight").model
    lists = [
        [*chat.prompt_ids(user(question)), *chat.text_ids(answer)] for question, answer, _ in TEXTS
    ]
    with open_runtime("transformers", bare=True) as runtime:
        found = runtime.export_adapter(
            wanted.base, wanted.adapter, wanted.gguf, wanted.adapter_gguf, lists, model
        )
    if found.share is None or abs(found.share - 1) > MAX_SHARE_ERROR:
        raise ExportError(f"llama.cpp does not show what the adapter does in PEFT: {found}")
    return {**asdict(found), "positions": sum(map(len, lists))}


def judge(wanted: Rehearsal) -> Facts:
    """Judge the answers with the adapter through llama.cpp; every judgment must get a score."""
    chat = ChatFormat.load(wanted.base)
    draw = Sampling(temperature=0.8, top_p=0.95, max_tokens=wanted.new_tokens, top_k=128)
    templates = "compact" if wanted.tokenizer is None else "llama3"
    role = Role(
        model="M1",
        adapter=str(wanted.adapter_gguf),
        chat=chat,
        sampling=draw,
        templates=templates,
        id_namespace="rehearsal",
        seed=0,
        iteration=1,
        forces=True,
    )
    items = []
    for number, (question, answer, _) in enumerate(TEXTS):
        prompt = Prompt.make("rehearsal", 1, "imported", number, question)
        response = Response(f"{number}", 1, "M0", prompt.id, 0, answer, "stop", 1)
        items.append((prompt.id, ask_for_judgments(prompt, [response], role, wanted.judgments)))
    spec = LlamaSpec(model=wanted.gguf, parallel=len(TEXTS) * wanted.judgments, context=8192)
    with closing(ProcessEngine(spec)) as engine:
        found = [outcome for _, outcome, _ in drive(engine, items)]
        stats = engine.stats
    judgments = [one for outcome in found for one in outcome.records if isinstance(one, Judgment)]
    scored = [one for one in judgments if one.score is not None]
    if len(scored) < len(TEXTS) * wanted.judgments:
        raise EngineError(
            f"{len(scored)} of {len(TEXTS) * wanted.judgments} judgments have a score: "
            f"{[outcome.drops for outcome in found]}"
        )
    return {
        "judgments": len(judgments),
        "forced": sum(one.source == "forced" for one in judgments),
        "prompt_tokens": stats.prompt_computed,
        "new_tokens": stats.generated,
        "engine_seconds": stats.seconds_total,
    }


STEPS: dict[str, Callable[[Rehearsal], Facts]] = {
    "base": make_base,
    "gguf": export_base,
    "training": train,
    "adapter": export_adapter,
    "judging": judge,
}


# -- one after the other ----------


def rehearse(wanted: Rehearsal, say: Say) -> dict[str, Step]:
    """Do the steps that are missing; returns all of them by name.

    Raises UserError where memory or disk are too small or the folder holds another rehearsal, and
    EngineError where a step fails.
    """
    wanted.folder.mkdir(parents=True, exist_ok=True)
    done = {name: step for name in STEPS if (step := _read_step(wanted, name))}
    if missing := [name for name in STEPS if name not in done]:
        check_room(wanted)
    for name in missing:
        say(f"{name} …")
        done[name] = step = _do_step(wanted, name)
        _write_step(wanted, name, step)
        say(f"{name}: {step.seconds / 60:.1f} minutes, at most {format_bytes(step.held)} held")
    return done


def estimate_disk(wanted: Rehearsal) -> int:
    """Bytes that a complete rehearsal takes."""
    shape, lora = wanted.find_shape(), config.load("overnight").lora
    linear, weights = memory.count_linear_weights(shape), memory.count_weights(shape)
    base = linear * memory.NF4_BYTES + 2 * (weights - linear)
    adapters = memory.count_adapter_weights(shape, lora.rank) * 8  # two files in float32
    return int(base + weights * memory.GGUF_BYTES["q8_0"] + adapters + SPARE_DISK)


def estimate_memory(wanted: Rehearsal) -> int:
    """Bytes that the training holds, which holds most: on a CPU, embeddings in float32."""
    shape, lora = wanted.find_shape(), config.load("overnight").lora
    linear, weights = memory.count_linear_weights(shape), memory.count_weights(shape)
    adapter = memory.ADAPTER_BYTES + memory.REFERENCE_BYTES
    adapters = memory.count_adapter_weights(shape, lora.rank) * adapter
    return int(linear * memory.NF4_BYTES + 4 * (weights - linear) + adapters + SPARE_MEMORY)


def check_room(wanted: Rehearsal) -> None:
    """Raise UserError where memory or disk are too small for a rehearsal."""
    least, available = estimate_memory(wanted), process_memory.read_available()
    if min(wanted.memory, available) < least:
        raise UserError(
            f"a rehearsal holds about {format_bytes(least)}; --memory allows "
            f"{format_bytes(wanted.memory)}, and {format_bytes(available)} are available: raise "
            "--memory, end other programs, or take a smaller --shape"
        )
    needed = estimate_disk(wanted) - _folder_bytes(wanted.folder)
    if (free := free_bytes(wanted.folder)) < needed:
        raise UserError(
            f"{format_bytes(needed)} of disk are needed in {wanted.folder}, {format_bytes(free)} "
            "are free; choose another --folder"
        )


def _do_step(wanted: Rehearsal, name: str) -> Step:
    """Do a step in a child, which is ended if it and its own children hold too much memory."""
    began, held, mapped, disk = time.monotonic(), 0, 0, 0
    child = start_module(
        "selfreward_lite.bench.rehearsal",
        REHEARSAL.dump_json(wanted).decode(),
        name,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=child_environment(gpus="none"),
    )
    with child:
        try:
            while True:
                seen = process_memory.read_tree(child.pid)
                held, mapped = max(held, seen.held), max(mapped, seen.mapped)
                disk = max(disk, _folder_bytes(wanted.folder))
                if held > wanted.memory:
                    raise EngineError(
                        f"{name}: its processes held {format_bytes(held)}, more than the "
                        f"{format_bytes(wanted.memory)} of --memory"
                    )
                try:
                    child.wait(POLL)
                    break
                except subprocess.TimeoutExpired:
                    continue
        finally:
            child.kill()
        assert child.stdout
        output = child.stdout.read()
    if not output.endswith("\n"):
        raise EngineError(f"{name} gave no answer: {describe_exit(child.returncode)}")
    answer = json.loads(output)
    if "error" in answer:
        raise EngineError(f"{name}: {answer['error']}")
    return Step(round(time.monotonic() - began, 1), held, mapped, disk, answer["facts"])


def _step_file(wanted: Rehearsal, name: str) -> Path:
    return wanted.folder / f"{[*STEPS].index(name) + 1}-{name}.json"


def _read_step(wanted: Rehearsal, name: str) -> Step | None:
    """A step that was done; raises UserError if it was done with another model."""
    path = _step_file(wanted, name)
    if not path.exists():
        return None
    document = json.loads(path.read_bytes())
    if document.pop("model") != wanted.same_model():
        raise UserError(f"{path} is of another model; choose another --folder, or remove this one")
    return Step(**document)


def _write_step(wanted: Rehearsal, name: str, step: Step) -> None:
    """Write what a step took; the name appears when the file is complete."""
    path = _step_file(wanted, name)
    part = path.with_suffix(".part")
    document = {"model": wanted.same_model(), **asdict(step)}
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _folder_bytes(folder: Path) -> int:
    """The bytes of a folder's files; those that have just gone count as nothing."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _answer(wanted: Rehearsal, name: str) -> Facts:
    """What the child says: the facts, or the line of an error."""
    try:
        return {"facts": STEPS[name](wanted)}
    except Exception as error:  # noqa: BLE001 - whatever fails at a real size is the result
        return {"error": str(error) or type(error).__name__}


if __name__ == "__main__":
    send = open_wire()
    send(_answer(REHEARSAL.validate_json(sys.argv[1]), sys.argv[2]))
