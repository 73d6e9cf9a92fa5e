"""How fast servers generate for a run, beside the engine on this machine.

All are asked for the same, with the same seeds: answers to some of the run's prompts, or judgments
of some of its answers.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from selfreward_lite import config
from selfreward_lite.bench import Say
from selfreward_lite.config.settings import EngineSettings, Settings
from selfreward_lite.data.records import Prompt, Response
from selfreward_lite.data.store import Store
from selfreward_lite.engine.api import Engine, LlamaSpec, Request
from selfreward_lite.engine.process import ProcessEngine
from selfreward_lite.method.judgments import make_judge_request
from selfreward_lite.method.roles import Role
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.gguf_folder import find_base
from selfreward_lite.run import servers
from selfreward_lite.run.context import make_role
from selfreward_lite.system.errors import UserError

HERE = "this machine"


@dataclass
class Speed:
    """Generated tokens a second, one value a repeat; the samples that are those of this machine."""

    rates: list[float] = field(default_factory=list)
    equal: int = 0
    samples: int = 0


def measure(
    folder: Path,
    urls: Sequence[str],
    texts: int,
    samples: int,
    repeats: int,
    say: Say,
    judge: bool = False,
) -> dict[str, Speed]:
    """Measure the engine here and every server in turn, `repeats` times; by name or address.

    The newest model of the run answers so many `texts`, or judges them. Raises UserError for a run
    without models, or without prompts or answers.
    """
    with Store.read(folder) as store:
        settings = store.settings()
        engines = {HERE: settings.engine} | {url: _name_server(settings, url) for url in urls}
        chat = ChatFormat.load(find_base(settings.model.base))
        draw = (settings.judge if judge else settings.responses).draw
        number, _ = store.model(None)
        role = make_role(store, settings, chat, number, draw, number)
        requests = [*(_ask_judgments if judge else _ask_answers)(store, role, texts, samples)]
    if not requests:
        lacks = "answers" if judge else "prompts"
        raise UserError(f"{folder} has no {lacks} yet; give its `run` command again")
    found = {name: Speed() for name in engines}
    for repeat in range(repeats):
        expected: dict[tuple[str, int], tuple[int, ...]] = {}
        for name, speed in found.items():
            engine = _open_engine(folder / "base" / "base.gguf", engines[name], name)
            rate, drawn = measure_engine(engine, requests)
            expected = expected or drawn
            speed.rates.append(rate)
            speed.samples = len(drawn)
            speed.equal = sum(expected[key] == tokens for key, tokens in drawn.items())
            say(f"{repeat + 1} of {repeats}: {name}, {rate:.1f} tokens/s")
    return found


def _ask_answers(store: Store, role: Role, count: int, samples: int) -> Iterator[Request]:
    for prompt in store.records(Prompt)[:count]:
        seeds = [f"{prompt.id}:{index}" for index in range(samples)]
        yield role.make_request(prompt.text, prompt.id, seeds)


def _ask_judgments(store: Store, role: Role, count: int, samples: int) -> Iterator[Request]:
    prompts = {one.id: one for one in store.records(Prompt)}
    for response in store.records(Response)[:count]:
        yield make_judge_request(prompts[response.prompt_id], response, role, samples)


def measure_engine(
    engine: Engine, requests: Sequence[Request]
) -> tuple[float, dict[tuple[str, int], tuple[int, ...]]]:
    """Tokens a second, and the tokens of every sample; closes the engine.

    One request comes before, unmeasured: then the model is loaded, and checked on a server.
    """
    with closing(engine):
        list(engine.complete(requests[:1]))
        started = perf_counter()
        drawn = {(one.key, one.sample): one.tokens for one in engine.complete(requests)}
        return sum(map(len, drawn.values())) / (perf_counter() - started), drawn


def _name_server(settings: Settings, url: str) -> EngineSettings:
    """The engine's settings with one server; raises ConfigError for what is no address."""
    wanted = {"engine.kind": "server", "engine.servers": json.dumps([url])}
    return config.override(settings.model_dump(mode="json"), wanted).engine


def _open_engine(base: Path, settings: EngineSettings, name: str) -> Engine:
    if name != HERE:
        return servers.open_servers(base, settings)
    return ProcessEngine(LlamaSpec(model=base, **settings.model_dump()))
