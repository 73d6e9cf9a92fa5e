"""Which runs and models there are."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from selfreward_lite.app.engine_pool import EnginePool
from selfreward_lite.app.talk import Reply, Score, Verdict, _known, written_out
from selfreward_lite.config.settings import Draw, Settings, load, parse
from selfreward_lite.data import hub, votes
from selfreward_lite.data.records import ModelId, Prompt, Response
from selfreward_lite.data.store import Store
from selfreward_lite.engine.api import Completion, Piece, Request, Sampling
from selfreward_lite.engine.live import Live
from selfreward_lite.method import comparisons, judgments
from selfreward_lite.method.roles import NO_TEXT_REASONS, Role
from selfreward_lite.models.chat_format import ChatFormat, Message
from selfreward_lite.run.runtime import open_runtime
from selfreward_lite.system.errors import SelfRewardError, UserError
from selfreward_lite.system.files import MANIFEST, write_manifest
from selfreward_lite.system.gpu import list_gpus

TINY = "the tiny model"  # stands for a run where there is none
BASE = "base"
FRAME = 0.04  # seconds between two looks at a reply that grows, for one or two who talk


@dataclass(frozen=True)
class RunModels:
    """Where the models of a run are, and what they were made with."""

    run: str
    model: Path
    base: Path
    settings: Settings
    adapters: dict[str, str | None]  # by name: base, M0, M1, …


class RunLibrary:
    """The runs of a folder, and one engine, which loads the base of whatever run is talked to."""

    def __init__(self, runs_dir: Path, most: int = 64) -> None:
        self.runs_dir, self.started = runs_dir, Path.cwd()
        self.cards = list_gpus()
        self.on_cpu = False  # whether to leave a card alone that is there
        self.engine = EnginePool(bool(self.cards), most)
        self._lock = threading.Lock()
        self._trouble = ""
        self._last = ""

    def runs(self) -> list[str]:
        """Return the names of all runs, the one that was written last first."""
        found: dict[str, float] = {}
        for path in self.runs_dir.glob("*/run.sqlite"):
            for written in (
                path,
                path.with_name("run.sqlite-wal"),
            ):  # the third of SQLite's files changes by looking
                with suppress(OSError):  # gone since it was listed
                    if written.stat().st_size:
                        found[path.parent.name] = max(
                            found.get(path.parent.name, 0.0), written.stat().st_mtime
                        )
        return sorted(found, key=lambda name: -found[name])

    def folder(self, run: str) -> Path:
        """Return the folder of a run, which need not exist. Raises UserError for a name that would lead anywhere else."""
        if not run or run != Path(run).name or run.startswith("."):
            raise UserError(f"no run {run!r} in {self.runs_dir}; choose one of the list")
        return self.runs_dir / run

    def place(self, run: str) -> RunModels:
        """Return where a run's models are. Raises UserError where there is no such run, or its base is not there."""
        if run == TINY:
            return RunModels(
                TINY, hub.model_folder("tiny"), self._tiny_base(), load("tiny"), {BASE: None}
            )
        if run not in self.runs():
            raise UserError(f"no run {run!r} in {self.runs_dir}; choose one of the list")
        with Store.read(self.folder(run)) as store:
            if store.fact("settings") is None:
                raise UserError(f"{run} has only just begun; try again in a moment")
            settings, newest = parse(store.fact("settings")), store.newest()
            folders = {
                ModelId(number).name: store.model_dir(number)
                for number in range((-1 if newest is None else newest) + 1)
            }
        base = self.runs_dir / run / "base" / "base.gguf"
        if not (base.parent / MANIFEST).exists():
            if Store.writer(self.folder(run)) is not None:
                raise UserError(f"{run} has no base yet: it is being made; try again in a moment")
            raise UserError(
                f"{run} has no base yet, or was pruned; `python -m selfreward_lite run --name {run}` makes it"
            )
        adapters: dict[str, str | None] = {
            name: str(folder / "adapter.gguf")
            for name, folder in folders.items()
            if (folder / MANIFEST).exists()
        }
        if "M0" in adapters and not settings.seed_stage.trains:
            adapters["M0"] = None  # the base itself
        named = (
            self.started / settings.model.base
        )  # a folder is named as from where `run` was given, which is here too
        model = hub.model_folder(
            str(named) if settings.model.base != "tiny" and named.exists() else settings.model.base
        )
        return RunModels(run, model, base, settings, {BASE: None, **adapters})

    def prepare(self) -> None:
        """Have the tiny model loaded before anybody asks for it, where there is no run. What goes wrong is in `words`."""
        if not self.runs():
            try:
                with closing(self._seat(self.place(TINY))) as seat:
                    next(one for one in seat if not isinstance(one, str)).load()
            except SelfRewardError as error:
                self._trouble = str(error)

    def words(self) -> str:
        """Return what talking runs on, in words."""
        live, trouble = self.engine.live, self._trouble and f"; {self._trouble}"
        if live is None or live.state == "not started":
            return f"llama.cpp is not loaded yet: the first reply takes a moment longer{trouble}"
        there = self.cards if live.spec["gpu_layers"] else []
        where = there[0].name if there else f"the CPU ({os.cpu_count()} cores)"
        again = (
            f"; it died {live.deaths} times and was started again ({live.last_death})"
            if live.deaths
            else ""
        )
        return f"llama.cpp on {where}: {live.state}{self._last}{again}{trouble}"

    def close(self) -> None:
        """Give the engine's memory back."""
        self.engine.close()

    def reply(
        self,
        place: RunModels,
        speaker: str,
        messages: Sequence[Message],
        draw: Draw,
        seed: int,
        caller: str,
    ) -> Iterator[Reply]:
        """Yield a model's reply to a conversation as it grows; the last one has a `finish`.

        At least once a second, so that closing the iterator stops it; `waits` says for what, before it begins. Raises UserError
        for a model that there is not.
        """
        chat = _chat(place)
        role = self._role(place, speaker, draw)
        asked = replace(
            role.make_request("", "reply", ["reply"]),
            key=uuid.uuid4().hex,
            tokens=chat.prompt_ids(messages),
            seeds=(seed,),
            stream=True,
        )
        said, began, told = Reply(""), time.monotonic(), 0.0
        with closing(self._ask(place, asked, caller)) as heard:
            for one in heard:
                said = replace(said, waits=one if isinstance(one, str) else "")
                if isinstance(one, Piece):
                    spent = (one.at or time.monotonic()) - began
                    first = spent if said.first is None else said.first
                    said = replace(
                        said,
                        text=said.text + one.text,
                        tokens=said.tokens + 1,
                        first=first,
                        seconds=spent,
                    )
                elif isinstance(one, Completion):
                    text = said.text if one.finish in NO_TEXT_REASONS else one.text
                    said = replace(
                        said, text=text, tokens=len(one.tokens) or said.tokens, finish=one.finish
                    )
                if said.finish and said.speed:
                    self._last = (
                        f"; {speaker} of {place.run} just spoke, {said.speed:,.0f} tokens a second"
                    )
                if said.finish or said.tokens == 1 or time.monotonic() - told >= self._pace():
                    told = time.monotonic()
                    yield said

    def score(
        self, place: RunModels, judge: str, messages: Sequence[Message], text: str, caller: str
    ) -> Iterator[Score]:
        """Yield what a model says of a reply as judge, judgment by judgment, with the run's own number of them and draw."""
        settings = place.settings
        role = self._role(place, judge, settings.judge.draw)
        prompt = Prompt("prompt", 0, "generated", 0, written_out(messages))
        # The same reply to the same words is judged with the same luck, so that two models, or two looks, can be compared.
        response = Response(_known(prompt.text, text), 0, judge, prompt.id, 0, text, "stop", 0)
        (asked,) = next(judgments.ask_for_judgments(prompt, response, role, settings.judge.count))
        found, told = Score(settings.judge.count), 0.0
        with closing(self._ask(place, replace(asked, key=uuid.uuid4().hex), caller)) as heard:
            for one in heard:
                if isinstance(one, Completion) and one.finish in NO_TEXT_REASONS:
                    found = replace(found, lost=found.lost + 1)
                elif isinstance(one, Completion):
                    read = judgments.read_judgment(one, f"{one.sample}", response, role, one.sample)
                    found = replace(found, judgments=(*found.judgments, read))
                if found.over or time.monotonic() - told >= self._pace():
                    told = time.monotonic()
                    yield found

    def verdict(
        self, place: RunModels, judge: str, prompt: str, texts: tuple[str, str], caller: str
    ) -> Iterator[Verdict | str | None]:
        """Yield what a model says of two replies to a prompt, as judge, once it has said it of both orders; until then what it
        waits for, or None.

        The same question, draw and reading as a frozen judge has in a run's evaluation (arXiv 2401.10020, section 3.2).
        """
        role = self._role(place, judge, place.settings.judge.draw)
        asked = Prompt(_known(prompt, "\0".join(texts)), 0, "generated", 0, prompt)
        # As with scores: the same texts have the same luck, whoever wrote them.
        a, b = (
            Response(_known(prompt, text), 0, "", asked.id, 0, text, "stop", 0) for text in texts
        )
        asking = comparisons.ask_for_comparison(asked, a, b, role)
        said: list[Completion] = []
        for request in next(asking):
            with closing(self._ask(place, replace(request, key=uuid.uuid4().hex), caller)) as heard:
                for one in heard:
                    if isinstance(one, Completion):
                        said.append(one)
                    yield one if isinstance(one, str) else None
        try:
            asking.send([[one] for one in said])
        except StopIteration as end:
            (found,) = end.value.records
            result: votes.Side | None = (
                "a" if found.result == 1 else "b" if found.result == 0 else "tie"
            )
            if any(one.finish in NO_TEXT_REASONS for one in said):
                result = None
            yield Verdict(judge, result, found.mine_first_text, found.theirs_first_text)

    def _ask(
        self, place: RunModels, request: Request, caller: str
    ) -> Iterator[Piece | Completion | str | None]:
        """What is said to a request, and before that, in words, what it waits for."""
        with closing(self._seat(place)) as seat:
            for found in seat:
                if not isinstance(found, str):
                    with closing(found.ask(request, caller)) as heard:
                        yield from heard
                    return
                yield found

    def _pace(self) -> float:
        """Seconds between two looks at what grows: a page costs its server some milliseconds each, however many talk at once."""
        return min(1.0, FRAME * max(1, self.engine.users / 2))

    def _seat(self, place: RunModels) -> Iterator[str | Live]:
        """The engine with a run's base in it, and before that, in words, what it waits for."""

        def spec() -> dict[str, Any]:
            settings = place.settings.engine.model_dump() | (
                {"gpu_layers": 0} if self.on_cpu else {}
            )
            return {"kind": "llama", "model": str(place.base), **settings}

        return self.engine.using(spec)

    def _role(self, place: RunModels, speaker: str, draw: Draw) -> Role:
        if speaker not in place.adapters:
            raise UserError(
                f"{place.run} has no model {speaker!r}; it has {', '.join(place.adapters)}"
            )
        sampling = Sampling(draw.temperature, draw.top_p, draw.max_tokens, draw.top_k)
        settings = place.settings
        return Role(
            speaker,
            place.adapters[speaker],
            _chat(place),
            sampling,
            settings.model.templates,
            "talk",
            settings.seed,
            0,
        )

    def _tiny_base(self) -> Path:
        """The tiny base as llama.cpp reads it, made once beside the runs: a few seconds."""
        out = self.runs_dir / ".tiny" / "base.gguf"
        with self._lock:
            if not (out.parent / MANIFEST).exists():
                with open_runtime(bare=True) as runtime:
                    runtime.export_base(hub.model_folder("tiny"), out, load("tiny").model)
                write_manifest(out.parent, {"base": "tiny"})
        return out


@lru_cache(maxsize=8)
def _format(folder: Path) -> ChatFormat:
    return ChatFormat.load(folder)


def _chat(place: RunModels) -> ChatFormat:
    return _format(place.model)
