"""Drives one ask-stage: keeps the engine full, commits item by item, resumes where it stopped.

Knows: items, requests, completions, the store. Does not know: what is asked, or why. An ask-stage is a generator over one
item: it yields requests, is sent their completions, and returns an Outcome.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from selfreward_lite.data.records import Drop, Outcome
from selfreward_lite.data.store import Store
from selfreward_lite.engine.api import Completion, Engine, Request
from selfreward_lite.method.roles import AskGenerator
from selfreward_lite.system.errors import EngineError


@dataclass
class Progress:
    """How far a stage is. `seconds` counts this process only; `already` items were done before it started."""

    iteration: int
    stage: str
    total: int
    done: int = 0
    already: int = 0
    tokens: int = 0
    seconds: float = 0.0
    drops: Counter[str] = field(default_factory=Counter)
    values: dict[str, float] = field(default_factory=dict)  # what a trainer last logged
    words: str = (
        ""  # something to be told once: what trains, that it goes on, that memory was short
    )


Watch = Callable[[Progress], None]
Item = tuple[str, Callable[[], AskGenerator]]  # its name, and how it begins
REST, NO_TIME = "the rest", "no time left"


@dataclass
class _Open:
    name: str
    asking: AskGenerator
    round: list[Request] = field(default_factory=list)
    answers: dict[str, dict[int, Completion]] = field(default_factory=dict)
    missing: int = 0

    def start_round(self, requests: list[Request]) -> None:
        self.round = requests
        self.answers = {request.key: {} for request in requests}
        self.missing = sum(len(request.seeds) for request in requests)

    def replies(self) -> list[list[Completion]]:
        return [
            [self.answers[request.key][sample] for sample in range(len(request.seeds))]
            for request in self.round
        ]


def run_stage(
    store: Store,
    engine: Engine,
    where: tuple[int, str],
    items: Iterable[Item],
    watch: Watch,
    go_on: Callable[[float], bool] = lambda share: True,
) -> None:
    """Ask for every item of a stage, `where` = (iteration, name), that is not committed yet; commit each as it completes, and
    mark the stage done. Called again after a kill, it asks only what is missing.

    Before each item `go_on` is asked, with the share of all that are begun; once it says no, the others are left out and counted.
    """
    (iteration, stage), items = where, list(items)
    done = store.done_items(iteration, stage)
    todo = [(name, begin) for name, begin in items if name not in done]
    store.begin_stage(iteration, stage, len(items))
    progress = Progress(
        iteration, stage, len(items), done=len(items) - len(todo), already=len(items) - len(todo)
    )
    watch(progress)
    started = last = time.monotonic()
    begun = itertools.takewhile(
        lambda entry: go_on((progress.already + entry[0]) / len(items)), enumerate(todo)
    )
    for name, outcome, tokens in drive(engine, (item for _, item in begun)):
        store.commit(iteration, stage, name, outcome)
        progress.done += 1
        progress.tokens += tokens
        progress.drops.update(outcome.dropped())
        progress.seconds = time.monotonic() - started
        watch(progress)
        if progress.seconds + started - last > 1:
            store.spend(iteration, stage, progress.seconds + started - last)
            last = progress.seconds + started
    store.spend(iteration, stage, time.monotonic() - last)
    if left_out := progress.total - progress.done:
        store.commit(iteration, stage, REST, Outcome(drops=(Drop(NO_TIME, left_out),)))
        progress.drops[NO_TIME], progress.total = left_out, progress.done
        watch(progress)
    store.end_stage(iteration, stage)


def drive(engine: Engine, items: Iterable[Item]) -> Iterator[tuple[str, Outcome, int]]:
    """Yield (item, outcome, generated tokens) as items complete. The engine pulls; many items are open at once."""
    board = _Board(iter(items))
    while True:
        answered = False
        for completion in engine.complete(board.feed()):
            answered = True
            board.take(completion)
            yield from board.finished()
        yield from board.finished()
        # An engine stops pulling when the feed runs dry; items that ask again after that need another call.
        if not board.ready and not board.owner:
            return
        if not answered:
            raise EngineError(
                f"the engine left {len(board.owner)} requests without an answer; start the run again"
            )


class _Board:
    """Which requests wait, which are under way and for whom, which items are through."""

    def __init__(self, waiting: Iterator[Item]) -> None:
        self._waiting = waiting
        self.ready: deque[Request] = deque()
        self.owner: dict[str, _Open] = {}
        self._through: deque[tuple[str, Outcome]] = deque()
        self._tokens: Counter[str] = Counter()

    def feed(self) -> Iterator[Request]:
        """Yield requests for as long as there are any; items begin only when the engine wants more."""
        while True:
            while not self.ready:
                entry = next(self._waiting, None)
                if entry is None:
                    return
                self._advance(_Open(entry[0], entry[1]()), None)
            yield self.ready.popleft()

    def take(self, completion: Completion) -> None:
        """Book a completion; the last one of a round lets its item go on."""
        item = self.owner[completion.key]
        item.answers[completion.key][completion.sample] = completion
        item.missing -= 1
        self._tokens[item.name] += len(completion.tokens)
        if not item.missing:
            for request in item.round:
                del self.owner[request.key]
            self._advance(item, item.replies())

    def finished(self) -> Iterator[tuple[str, Outcome, int]]:
        """Yield, once, the items that are through."""
        while self._through:
            name, outcome = self._through.popleft()
            yield name, outcome, self._tokens.pop(name, 0)

    def _advance(self, item: _Open, replies: list[list[Completion]] | None) -> None:
        """Let an item go on until it wants answers or is through."""
        try:
            requests = next(item.asking) if replies is None else item.asking.send(replies)
            while not requests:
                requests = item.asking.send([])
        except StopIteration as stop:
            self._through.append((item.name, stop.value))
            return
        item.start_round(requests)
        for request in requests:
            if request.key in self.owner:
                raise ValueError(f"two requests under way have the key {request.key}")
            self.owner[request.key] = item
            self.ready.append(request)
