"""Two real llama-servers generate and judge for a run: the records of the engine here.

`llama_server.build` compiles them once (`-m server`).
"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_server import LlamaServer, build
from repository import ROOT
from served_run import LIMIT, command, finish, read_new, run_command

from selfreward_lite.data.records import Judgment, JudgmentPair, ResponsePair
from selfreward_lite.data.store import Store
from selfreward_lite.engine.presets import PRESETS

pytestmark = pytest.mark.server
PAIRS = (ResponsePair, JudgmentPair)


def is_same(row: tuple, other: tuple | None) -> bool:
    """Whether two records are the same, with numbers as near as caches of 16 bits allow.

    The scores expected of probabilities differ by less than a thousandth in nearly all judgments.
    """
    return other is not None and all(
        x == pytest.approx(y, abs=0.01) if isinstance(x, float) and isinstance(y, float) else x == y
        for x, y in zip(row, other, strict=True)
    )


def list_pairs(records: dict[type, dict[str, tuple]]) -> dict[str, tuple]:
    """Pairs by id: which text was chosen, and which rejected."""
    return {id_: row[3:5] for kind in PAIRS for id_, row in records[kind].items()}


class Pair:
    """A copy of runs, and two servers for it, as `doctor --servers` says to start them."""

    def __init__(self, seeded: Path, folder: Path) -> None:
        self.runs = folder / "runs"
        shutil.copytree(seeded, self.runs)
        finish(command("doctor", "--servers", "tiny", "--runs-dir", str(self.runs)))
        presets = self.runs / "tiny" / PRESETS
        self.servers: list[LlamaServer] = []
        for number in range(2):
            self.servers.append(LlamaServer(build(), presets, folder / f"{number}.log"))

    @property
    def urls(self) -> list[str]:
        return [one.url for one in self.servers]

    def count_requests(self) -> list[int]:
        """How many requests each router has passed to a model, by its log."""
        logs = [one.log.read_text(encoding="utf-8", errors="replace") for one in self.servers]
        return [log.count("proxying request to model") for log in logs]

    def close(self) -> None:
        for server in self.servers:
            server.kill()


@pytest.fixture(scope="module")
def seeded(tmp_path_factory) -> Path:
    """A folder of runs with a tiny run behind its seed stage. Do not change it."""
    runs = tmp_path_factory.mktemp("seeded")
    finish(run_command(runs, 0))
    return runs


@pytest.fixture(scope="module")
def here(seeded, tmp_path_factory) -> dict[type, dict[str, tuple]]:
    """The records of an iteration in process."""
    runs = tmp_path_factory.mktemp("here") / "runs"
    shutil.copytree(seeded, runs)
    finish(run_command(runs, 1))
    return read_new(runs, seeded)


@pytest.fixture(scope="module")
def pair(seeded, tmp_path_factory) -> Iterator[Pair]:
    made = Pair(seeded, tmp_path_factory.mktemp("pair"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def served(pair, seeded) -> dict[type, dict[str, tuple]]:
    """The records of the same iteration on two servers."""
    finish(run_command(pair.runs, 1, *pair.urls))
    return read_new(pair.runs, seeded)


def test_an_iteration_on_two_servers_is_that_of_the_engine_here(pair, here, served):
    requests = pair.count_requests()
    print(f"\nrequests to each server: {requests}")
    assert min(requests) > sum(requests) / 4, "both worked"
    assert list_pairs(served) == list_pairs(here)
    assert all(here[kind] for kind in (*PAIRS, Judgment))
    equal = total = 0
    for kind, records in here.items():
        same = sum(is_same(row, served[kind].get(id_)) for id_, row in records.items())
        print(f"{kind.__name__}: {same} of {len(records)} equal")
        assert len(served[kind]) == len(records), kind
        equal, total = equal + same, total + len(records)
    assert equal >= 0.99 * total


def test_an_iteration_survives_a_server_that_is_killed(seeded, here, tmp_path):
    pair = Pair(seeded, tmp_path)
    try:
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen(
                run_command(pair.runs, 1, *pair.urls), stdout=said, stderr=said, cwd=ROOT
            )
            try:
                wait_for_judgments(pair.runs / "tiny", process)
                pair.servers[0].kill()
                with Store.read(pair.runs / "tiny") as store:
                    assert not store.is_done(1, "judgments"), "killed too late to show anything"
                assert process.wait(LIMIT) == 0, (tmp_path / "said").read_text()
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
    finally:
        pair.close()
    assert f"{pair.urls[0]} is left out" in " ".join((tmp_path / "said").read_text().split())
    assert list_pairs(read_new(pair.runs, seeded)) == list_pairs(here)


def wait_for_judgments(folder: Path, process: subprocess.Popen) -> None:
    """Return when some responses of iteration 1 are judged."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        with Store.read(folder) as store:
            if store.done_items(1, "judgments"):
                return
        time.sleep(0.02)
    raise AssertionError("no judgment of iteration 1 was seen")
