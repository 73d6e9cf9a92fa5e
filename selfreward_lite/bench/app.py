"""How fast the app is: started by its command, asked through its endpoints, on the tiny model.

start       seconds until the page answers, and until the tiny model does, without any run
alone       one user, one question after the other: time to the first token
together    many users at once, two questions each: the same, and tokens a second
crowd       so many users at once that some may be told to wait: how many are answered, and refused
explore     one prompt of a run with 100,000 judgments, and of one with 2,000
"""

import socket
import subprocess
import sys
import time
import timeit
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median, quantiles
from string import ascii_lowercase
from typing import Any

from selfreward_lite.app.library import TINY
from selfreward_lite.bench import Say
from selfreward_lite.config import load
from selfreward_lite.data.records import Judgment, Outcome, Prompt, Record, Response, make_id
from selfreward_lite.data.store import Store
from selfreward_lite.report import explore
from selfreward_lite.system.errors import UserError

APP = Path(__file__).parents[2] / "app.py"
SHORT = "Sort the letters b a."
LETTERS = [*map(" ".join, product(ascii_lowercase, repeat=3))]  # other ones for every question
QUESTIONS = ("Sort the letters {}.", "Reverse the letters {}.")
USERS, TURNS, CROWD, ALONE = 50, 2, 150, 40
# Seconds; the clients share the machine with the app, so a slow answer is no failure.
PATIENCE = 60.0
POLL, CROWD_POLL = 0.002, 0.05  # seconds between two polls of a lone client, of one of many
EACH = 5  # responses of a prompt, judgments of a response
SMALL_RUN, LARGE_RUN = 2_000, 100_000  # judgments
Measured = dict[str, float]


@contextmanager
def running(runs_dir: Path) -> Iterator[tuple[Any, subprocess.Popen[str], Measured]]:
    """Run the app for the block: a client, its process, and the seconds of its start."""
    if not APP.exists():
        raise UserError(f"{APP} is not there: run this in a checkout of the project")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    command = [sys.executable, str(APP), "--runs-dir", str(runs_dir), "--port", str(port)]
    app = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert app.stdout is not None
        if not app.stdout.readline():
            raise UserError(f"the app ended with code {app.wait()}")
        opened = time.monotonic() - began
        client = _connect(f"http://127.0.0.1:{port}")
        client.predict(SHORT, TINY, api_name="/chat")
        yield client, app, {"page": opened, "model": time.monotonic() - began}
    finally:
        app.terminate()
        app.wait()


@dataclass(frozen=True)
class Reply:
    """Seconds to the first token and to the end, and tokens.

    `engine` is the part of `first` that the engine took.
    """

    first: float
    seconds: float
    tokens: int
    engine: float


def ask(client: Any, text: str, poll: float = POLL, **more: Any) -> Reply | str:
    """A reply, or the error that a user would see."""
    began, first = time.monotonic(), 0.0
    job = client.submit(text, TINY, **more, api_name="/chat")
    # Polled: iterating over a job never ends if the queue was full.
    while not first and not job.done():
        if any(one["text"] for one in job.outputs()):
            first = time.monotonic() - began
        time.sleep(poll)
    try:
        job.result()
    except Exception as error:  # noqa: BLE001 - a user would see any of them
        return f"{type(error).__name__}: {error}".strip().splitlines()[0]
    seconds, last = time.monotonic() - began, job.outputs()[-1]
    return Reply(first or seconds, seconds, last["tokens"], last["first"])


def ask_alone(client: Any) -> Measured:
    """One question after the other."""
    questions = (QUESTIONS[0].format(LETTERS[number]) for number in range(ALONE))
    asked = [ask(client, text, seed=number) for number, text in enumerate(questions)]
    replies, firsts = _read_replies(asked)
    return {
        **firsts,
        "of which the engine, median": median(one.engine for one in replies if one.engine),
        "tokens/s": sum(one.tokens for one in replies) / sum(one.seconds for one in replies),
    }


def ask_together(client: Any) -> Measured:
    """Many users at once, each of whom asks again after the first answer."""
    users = open_clients(client, USERS)

    def user(number: int) -> list[Reply | str]:
        return [
            ask(users[number], QUESTIONS[turn].format(LETTERS[number]), CROWD_POLL, seed=number)
            for turn in range(TURNS)
        ]

    began = time.monotonic()
    with ThreadPoolExecutor(USERS) as pool:
        asked = [one for turns in pool.map(user, range(USERS)) for one in turns]
    seconds = time.monotonic() - began
    replies, firsts = _read_replies(asked)
    return {
        "asked": len(asked),
        "answered": len(replies),
        "seconds": seconds,
        **firsts,
        "tokens/s": sum(one.tokens for one in replies) / seconds,
    }


def _read_replies(asked: Sequence[Reply | str]) -> tuple[list[Reply], Measured]:
    """The replies without the errors, and their times to the first token."""
    replies = [one for one in asked if isinstance(one, Reply)]
    firsts = [one.first for one in replies]
    found = {
        "first token, median": median(firsts),
        "first token, 95 %": quantiles(firsts, n=20)[-1],
    }
    return replies, found


def count_crowd(client: Any) -> Measured:
    """How many of a crowd are answered, and how many refused."""
    asked = ask_crowd(client)
    errors = [one for one in asked if isinstance(one, str)]
    lost = [one for one in errors if not is_refusal(one)]
    return {
        "asked": len(asked),
        "answered": len(asked) - len(errors),
        "told that too many wait": len(errors) - len(lost),
        "lost": len(lost),
    }


def ask_crowd(client: Any) -> list[Reply | str]:
    """What CROWD users are answered who ask at once."""
    users = open_clients(client, CROWD)
    with ThreadPoolExecutor(CROWD) as pool:
        return list(pool.map(lambda user: ask(user, SHORT, CROWD_POLL), users))


def is_refusal(error: str) -> bool:
    """Whether an error says that too many wait already."""
    return "queue" in error.lower() or "wait already" in error


def open_clients(client: Any, count: int) -> list[Any]:
    """Clients with a session each, as browsers have.

    Threads that share one sometimes lose an answer: a new question closes its one stream of events.
    """
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(_connect, [client.src] * count))


def _connect(address: str) -> Any:
    from gradio_client import Client

    return Client(
        address,
        verbose=False,
        analytics_enabled=False,
        httpx_kwargs={"timeout": PATIENCE, "trust_env": False},  # no proxy: it is this machine
    )


def memory(process: subprocess.Popen[str]) -> int:
    """Bytes that a process holds in memory; 0 where the system does not say."""
    with suppress(OSError):
        return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096
    return 0


# -- Explore ---------------------------------------------------------------------------------------


def explore_run(folder: Path, count: int) -> Measured:
    """Make a run of `count` judgments; search its prompts, and open one."""
    with Store.write(folder) as store:
        fill_run(store, count)
    with Store.read(folder) as store:
        find = partial(explore.find_prompts, store, "M1", "sort", "gave none")
        search = median(timeit.repeat(find, "gc.enable()", number=1, repeat=20))
        prompt = explore.find_prompts(store, "M1", "")[0][0].id
        load = partial(explore.load_history, store, prompt)
        history = median(timeit.repeat(load, "gc.enable()", number=1, repeat=20))
        return {"search": search, "one prompt": history}


def fill_run(store: Store, count: int) -> None:
    """Fill a store with one iteration of made-up records, `count` of them judgments."""
    run = "seed 0"
    store.state("run", run)
    store.state("settings", load("tiny").model_dump(mode="json"))
    store.begin_stage(1, "judgments", count // EACH)
    text = "check a ok b ok some yes half yes right no form yes brief no " * 3
    for number in range(count // EACH**2):
        prompt = Prompt.make(run, 1, "generated", number, QUESTIONS[number % 2])
        records: list[Record] = [prompt]
        for place in range(EACH):
            key = make_id(run, Response, 1, "M0", prompt.id, place)
            answer = f"The answer is {number} {place}."
            records.append(Response(key, 1, "M0", prompt.id, place, answer, "stop", 8))
            for score in range(EACH):
                judgment = make_id(run, Judgment, 1, "M0", key, score)
                judged, values = f"{text}\nScore: {score}", (float(score), score + 0.25)
                records.append(Judgment(judgment, 1, "M0", key, score, judged, "stop", 40, *values))
        store.commit(1, "judgments", prompt.id, Outcome(tuple(records)))
    store.end_stage(1, "judgments")


def measure(scratch: Path, say: Say) -> dict[str, Measured]:
    """All figures, by what they are about. Raises UserError if the app does not start."""
    found: dict[str, Measured] = {}
    with running(scratch / "runs") as (client, app, started):
        found["start"] = started
        before = memory(app)
        for name, work in {
            "alone": ask_alone,
            "together": ask_together,
            "crowd": count_crowd,
        }.items():
            say(f"{name} …")
            found[name] = work(client)
        found["memory"] = {"at first": before, "at the end": memory(app)}
    say("explore …")
    small, large = (explore_run(scratch / f"{count}", count) for count in (SMALL_RUN, LARGE_RUN))
    found["explore"] = {
        **{f"{name}, {LARGE_RUN:,} judgments": seconds for name, seconds in large.items()},
        **{
            f"{name}, times as long as with {SMALL_RUN:,}": large[name] / small[name]
            for name in large
        },
    }
    return found
