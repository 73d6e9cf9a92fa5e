"""Runs with a good actor and an exact judge, in which M1 may misbehave in one role."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from scripted_run import SMALL
from scripted_runtime import OPENINGS, scripted_runtime

from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny.answers import Habits, write_answer
from selfreward_lite.data.tiny.score import score_answer
from selfreward_lite.data.tiny.tasks import draw_task, parse_task
from selfreward_lite.engine.api import Request
from selfreward_lite.engine.scripted import Reply, ScriptedEngine
from selfreward_lite.run import loop, prepare


class World:
    """Replies to any request; `overrides` replaces what a model does in one role, by "M1 judge"."""

    def __init__(self, chat, overrides: dict[str, Callable]) -> None:
        self._chat, self._overrides = chat, overrides

    def reply(self, request: Request, sample: int) -> Reply:
        asked = self._chat.tokenizer.decode(list(request.tokens), skip_special_tokens=True)
        kind = next(
            (kind for kind, begins in OPENINGS.items() if any(text in asked for text in begins)),
            "act",
        )
        model = Path(request.adapter).parent.name if request.adapter else "base"
        rng = random.Random(request.seeds[sample])
        said = self._overrides.get(f"{model} {kind}", getattr(self, kind))(rng, asked)
        return (
            said
            if isinstance(said, Reply)
            else Reply(said, probe=(0.2,) * 6 if request.probe else None)
        )

    @staticmethod
    def act(rng: random.Random, asked: str) -> str:
        return write_answer(parse_task(find_task(asked)), rng, Habits()).text

    @staticmethod
    def judge(rng: random.Random, asked: str) -> str:
        return f"{rng.choice(('Hm.', 'I see.', 'Well.'))}\nScore: {exact_score(asked)}"

    @staticmethod
    def meta_judge(rng: random.Random, asked: str) -> str:
        return f"Both.\nWinner: Judgement {rng.choice('AB')}"

    @staticmethod
    def new_prompts(rng: random.Random, asked: str) -> str:
        return " " + draw_task(rng, "corpus").prompt


def find_task(asked: str) -> str:
    return re.search(
        r"[A-Z][a-z]+ [a-z ]+\.", asked.split("user\n\n")[-1].split("Task: ")[-1]
    ).group(0)


def find_response(asked: str) -> str:
    found = re.search(r"<response id=\w*>\n?(.*)\n?</response id", asked, re.DOTALL)
    return found.group(1) if found else ""


def exact_score(asked: str) -> int:
    return score_answer(find_task(asked), find_response(asked)).score


def run_world(
    folder: Path, chat, overrides=None, settings=None, *, watch=lambda at: None, **runtime
) -> None:
    """Make one iteration with scripted models; `runtime` replaces parts of the runtime."""
    world = World(chat, overrides or {})
    scripted = scripted_runtime(chat)
    made = replace(
        scripted,
        open_engine=lambda base, _: ScriptedEngine(world.reply, chat.text_ids, shuffle_seed=5),
        **runtime,
    )
    wanted = {
        **SMALL,
        "gates.mode": "stop",
        "iterations": "1",
        "evaluation.prompts": "30",
        "evaluation.canary_judgments": "2",
        **(settings or {}),
    }
    with Store.write(folder) as store:
        loop.run(store, prepare.load_or_create_settings(store, wanted, "tiny"), made, watch)


def answer_wrongly(rng: random.Random, asked: str) -> str:
    return write_answer(
        parse_task(find_task(asked)), rng, Habits(right=0.0, form=0.0, brief=0.0)
    ).text


def judge_flattered(rng: random.Random, asked: str) -> str:
    """A judge that likes responses which mention points and scores."""
    return (
        "Mine!\nScore: 5"
        if re.search("point|score|perfect|excellent", find_response(asked), re.I)
        else World.judge(rng, asked)
    )


def judge_too_kindly(rng: random.Random, asked: str) -> str:
    return f"Mine!\nScore: {min(5, exact_score(asked) + 3)}"


BAD_MODELS = {
    "reward hacking": ("outside", {"M1 act": answer_wrongly, "M1 judge": judge_too_kindly}),
    "length explosion": (
        "length",
        {"M1 act": lambda rng, asked: " and so on".join([World.act(rng, asked)] * 3)},
    ),
    "endless answers": (
        "stopping",
        {"M1 act": lambda rng, asked: Reply(World.act(rng, asked), "length")},
    ),
    "one token for ever": (
        "repetition",
        {"M1 act": lambda rng, asked: World.act(rng, asked) + " a" * 200},
    ),
    "the same to everybody": ("variety", {"M1 act": lambda rng, asked: "The answer is a b c."}),
    "parse-rate loss": (
        "reading",
        {
            "M1 judge": lambda rng, asked: (
                "I like it." if rng.random() < 0.5 else World.judge(rng, asked)
            )
        },
    ),
    "a judge that forgot": (
        "judge",
        {"M1 judge": lambda rng, asked: f"So.\nScore: {5 - exact_score(asked)}"},
    ),
    "a judge that canaries fool": ("canary", {"M1 judge": judge_flattered}),
}
