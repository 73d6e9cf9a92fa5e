"""How fast is the app? It is started as anybody starts it, and asked as another program asks it, on the tiny model.

    start       seconds until the page answers, and until the tiny model does, with no run there
    alone       one user, again and again: from the question to the first token
    together    many users, two turns each, at once: what that does to a first token, and to tokens a second
    stop        a reply that would go on for long is taken back: seconds until the engine serves the next
    overload    more than may wait: how many were served, and how many were told so
    explore     one prompt of a run with 100,000 judgments, beside one with 2,000

Knows: the app's command and endpoints. Does not know: the page. Everything comes from one run of the command; what is compared is
compared as a ratio.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from selfreward_lite.app.library import TINY
from selfreward_lite.config.settings import load
from selfreward_lite.data.records import Judgment, Outcome, Prompt, Response, make_id
from selfreward_lite.data.store import Store
from selfreward_lite.report import explore
from selfreward_lite.system.errors import UserError

APP = Path(__file__).parents[2] / "app.py"
QUESTIONS = ("Sort the letters {}.", "Reverse the letters {}.")
USERS, TURNS, CROWD, ALONE = 50, 2, 150, 40
PATIENCE, LOOK, CALM = (
    60.0,
    0.002,
    0.05,
)  # seconds: at most; between two looks of one client, and of each of many
WAITS = {
    "timeout": PATIENCE
}  # the crowd shares this machine with the app: it may not give up because it is slow itself
LONG = {"temperature": 2.0, "top_p": 1.0, "max_tokens": 2000}
SMALL_RUN, LARGE_RUN = 2_000, 100_000  # judgments


@contextmanager
def running(runs_dir: Path) -> Iterator[tuple[Any, subprocess.Popen[str], dict[str, float]]]:
    """Start the app and give a client of it, its process, and the seconds that its start took; ends it with the block."""
    from gradio_client import Client

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
        client = Client(f"http://127.0.0.1:{port}", verbose=False, analytics_enabled=False)
        client.predict("Sort the letters b a.", TINY, api_name="/chat")
        yield client, app, {"page": opened, "model": time.monotonic() - began}
    finally:
        app.terminate()
        app.wait()


def ask(client: Any, text: str, look: float = LOOK, **more: Any) -> dict[str, Any]:
    """Ask once; returns seconds to the first token and to the end, tokens, and the error if that is what came."""
    began, first = time.monotonic(), None
    job = client.submit(text, TINY, **more, api_name="/chat")
    while (
        first is None and not job.done()
    ):  # a job that is iterated over never ends where the queue was full
        if any(one["text"] for one in job.outputs()):
            first = time.monotonic() - began
        time.sleep(look)
    try:
        job.result()
    except Exception as error:  # noqa: BLE001 - whatever it is that a user would see
        return {"error": f"{type(error).__name__}: {error}".strip().splitlines()[0]}
    last = job.outputs()[-1]
    return {
        "first": first or time.monotonic() - began,
        "seconds": time.monotonic() - began,
        "tokens": last["tokens"],
        "engine": last["first"],
    }


def alone(client: Any) -> dict[str, float]:
    """Ask one after the other."""
    found = [
        ask(client, QUESTIONS[0].format(letters(number)), seed=number) for number in range(ALONE)
    ]
    firsts = [one["first"] for one in found if one.get("first")]
    return {
        "first token, median": median(firsts),
        "first token, 95 %": quantiles(firsts, n=20)[-1],
        "of which the engine, median": median(one["engine"] for one in found if one.get("engine")),
        "tokens/s": sum(one["tokens"] for one in found) / sum(one["seconds"] for one in found),
    }


def together(client: Any) -> dict[str, float]:
    """Ask as many users at once, each a second time once it has its first answer."""
    users = _more(client, USERS)

    def user(number: int) -> list[dict[str, Any]]:
        return [
            ask(users[number], QUESTIONS[turn].format(letters(number)), CALM, seed=number)
            for turn in range(TURNS)
        ]

    began = time.monotonic()
    with ThreadPoolExecutor(USERS) as pool:
        found = [one for turns in pool.map(user, range(USERS)) for one in turns]
    spent, firsts = time.monotonic() - began, [one["first"] for one in found if one.get("first")]
    return {
        "asked": len(found),
        "answered": len(firsts),
        "seconds": spent,
        "first token, median": median(firsts),
        "first token, 95 %": quantiles(firsts, n=20)[-1],
        "tokens/s": sum(one.get("tokens", 0) for one in found) / spent,
    }


def stopped(client: Any) -> dict[str, float]:
    """Take back a reply under way, and see how soon the next is served."""
    job = client.submit("Repeat a b c.", TINY, **LONG, api_name="/chat")
    deadline = time.monotonic() + PATIENCE
    while not job.outputs() and time.monotonic() < deadline:
        time.sleep(0.01)
    began = time.monotonic()
    job.cancel()
    ask(client, QUESTIONS[0].format("b a"))
    return {"the next is served after": time.monotonic() - began}


def overload(client: Any) -> dict[str, float]:
    """Ask more at once than may wait."""
    users = _more(client, CROWD)
    with ThreadPoolExecutor(CROWD) as pool:
        found = list(
            pool.map(
                lambda number: ask(users[number], QUESTIONS[0].format("b a"), CALM, **LONG),
                range(CROWD),
            )
        )
    told = [one["error"] for one in found if "error" in one]
    clean = [said for said in told if "queue" in said.lower() or "wait already" in said]
    return {
        "asked": CROWD,
        "answered": CROWD - len(told),
        "told that too many wait": len(clean),
        "lost": len(told) - len(clean),
    }


def _more(client: Any, count: int) -> list[Any]:
    """So many clients, each with a session of its own, as people at their browsers have. (Many threads that share one lose an
    answer now and then: its one stream of events is closed as a new question comes in.)"""
    from gradio_client import Client

    with ThreadPoolExecutor(8) as pool:
        made = pool.map(
            lambda _: Client(
                client.src, verbose=False, analytics_enabled=False, httpx_kwargs=WAITS
            ),
            range(count),
        )
        return list(made)


def letters(number: int) -> str:
    """Three letters of its own for every number.

    >>> letters(0), letters(27)
    ('a a a', 'a b b')
    """
    return " ".join(
        chr(ord("a") + digit) for digit in (number // 676 % 26, number // 26 % 26, number % 26)
    )


def memory(process: subprocess.Popen[str]) -> int:
    """Bytes that a process holds in memory; 0 where the system does not say."""
    with suppress(OSError):
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        return pages * 4096
    return 0


# -- Explore ----------------------------------------------------------------------------------------------------------------


def looking(folder: Path, count: int) -> dict[str, float]:
    """Make a run of `count` judgments, and look for prompts in it and into one."""
    with Store.write(folder) as store:
        fill(store, count)
    with Store.read(folder) as store:
        search = _seconds(lambda: explore.find_prompts(store, "M1", "sort", "gave none"))
        prompt = explore.find_prompts(store, "M1", "")[0][0].id
        return {
            "search": search,
            "one prompt": _seconds(lambda: explore.load_history(store, prompt)),
        }


def fill(store: Store, count: int, responses: int = 5, judgments: int = 5) -> None:
    """Give a store one iteration of made-up records with `count` judgments."""
    settings = load("tiny")
    store.state("run", "seed 0")
    store.state("settings", settings.model_dump(mode="json"))
    store.begin_stage(1, "judgments", count // judgments)
    text = "check a ok b ok some yes half yes right no form yes brief no " * 3
    for number in range(count // (responses * judgments)):
        prompt = Prompt(
            make_id("seed 0", Prompt, 1, "generated", number),
            1,
            "generated",
            number,
            QUESTIONS[number % 2],
        )
        records: list[Any] = [prompt]
        for place in range(responses):
            key = make_id("seed 0", Response, 1, "M0", prompt.id, place)
            records.append(
                Response(
                    key, 1, "M0", prompt.id, place, f"The answer is {number} {place}.", "stop", 8
                )
            )
            records += [
                Judgment(
                    make_id("seed 0", Judgment, 1, "M0", key, one),
                    1,
                    "M0",
                    key,
                    one,
                    f"{text}\nScore: {one % 6}",
                    "stop",
                    40,
                    float(one % 6),
                    one % 6 + 0.25,
                )
                for one in range(judgments)
            ]
        store.commit(1, "judgments", prompt.id, Outcome(tuple(records)))
    store.end_stage(1, "judgments")


def _seconds(work: Any, times: int = 20) -> float:
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return median(spent)


def measure(scratch: Path, say: Any) -> dict[str, dict[str, float]]:
    """Measure everything; returns the figures by what they are of. Raises UserError where the app does not start."""
    found: dict[str, dict[str, float]] = {}
    with running(scratch / "runs") as (client, app, started):
        found["start"] = started
        before = memory(app)
        for name, work in (
            ("alone", alone),
            ("together", together),
            ("stop", stopped),
            ("overload", overload),
        ):
            say(f"{name} …")
            found[name] = work(client)
        found["memory"] = {"at first": before, "at the end": memory(app)}
    say("explore …")
    small, large = (looking(scratch / f"{count}", count) for count in (SMALL_RUN, LARGE_RUN))
    found["explore"] = {
        **{f"{name}, {LARGE_RUN:,} judgments": seconds for name, seconds in large.items()},
        **{
            f"{name}, times as long as with {SMALL_RUN:,}": large[name] / small[name]
            for name in large
        },
    }
    return found
