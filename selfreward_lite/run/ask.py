"""Drives one asking stage: keeps the engine full, commits item by item, resumes where it stopped.

An item is a generator of `method`: it yields requests, receives completions, returns an Outcome.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from selfreward_lite.data.records import Outcome
from selfreward_lite.data.store import NO_TIME, Store
from selfreward_lite.engine.api import Completion, Engine, Request
from selfreward_lite.method.roles import AskGenerator
from selfreward_lite.system.errors import EngineError


@dataclass(frozen=True)
class Progress:
    """How far a stage is.

    `seconds` counts this process only; `already` items were done before it started.
    """

    iteration: int
    stage: str
    total: int
    done: int = 0
    already: int = 0
    tokens: int = 0
    seconds: float = 0.0
    drops: Counter[str] = field(default_factory=Counter)
    values: Mapping[str, float] = field(default_factory=dict)  # what a trainer last logged
    message: str = ""  # to show once: what trains, that it resumes, that memory ran out


Watch = Callable[[Progress], None]
MayStart = Callable[[float], bool]  # receives the share of a stage that was started
Item = tuple[str, AskGenerator]  # its name, and the generator, which has not started yet
REST = "the rest"


def always(share: float) -> bool:
    """Start every item."""
    return True


@dataclass
class _OpenItem:
    """An item with its round under way; `answers` by request and sample."""

    name: str
    asking: AskGenerator
    round: list[Request] = field(default_factory=list)
    answers: dict[tuple[str, int], Completion] = field(default_factory=dict)
    tokens: int = 0


def run_stage(
    store: Store,
    engine: Engine,
    iteration: int,
    stage: str,
    items: Iterable[Item],
    watch: Watch,
    may_start: MayStart = always,
) -> None:
    """Ask for every item of a stage not committed yet, commit each, mark the stage done.

    Before each item `may_start` receives the share of items started so far. Once it returns False,
    the rest is left out and counted.
    """
    items = list(items)
    done = store.done_items(iteration, stage)
    todo = [item for item in items if item[0] not in done]
    store.begin_stage(iteration, stage, len(items))
    already = len(items) - len(todo)
    progress = Progress(iteration, stage, len(items), done=already, already=already)
    watch(progress)
    started = last = time.monotonic()

    def begin() -> Iterator[Item]:
        for count, item in enumerate(todo, already):
            if not may_start(count / len(items)):
                return
            yield item

    for name, outcome, tokens in drive(engine, begin()):
        store.commit(iteration, stage, name, outcome)
        now = time.monotonic()
        progress = replace(
            progress,
            done=progress.done + 1,
            tokens=progress.tokens + tokens,
            drops=progress.drops + outcome.drops,
            seconds=now - started,
        )
        watch(progress)
        if now - last > 1:
            store.spend(iteration, stage, now - last)
            last = now
    store.spend(iteration, stage, time.monotonic() - last)
    if left_out := progress.total - progress.done:
        rest = Outcome(drops=Counter({NO_TIME: left_out}))
        store.commit(iteration, stage, REST, rest)
        watch(replace(progress, drops=progress.drops + rest.drops, total=progress.done))
    store.end_stage(iteration, stage)


def drive(engine: Engine, items: Iterable[Item]) -> Iterator[tuple[str, Outcome, int]]:
    """Yield (item, outcome, generated tokens) as items complete; many are open at once."""
    board = _Board(iter(items))
    while True:
        answered = False
        for completion in engine.complete(board.feed()):
            answered = True
            board.take(completion)
            yield from board.pop_finished()
        yield from board.pop_finished()
        # An engine stops pulling when the feed runs dry; items that ask again after that need
        # another call.
        if not board.ready and not board.owner:
            return
        if not answered:
            raise EngineError(
                f"the engine left {len(board.owner)} requests without an answer; start the run "
                "again"
            )


class _Board:
    """Requests that wait, requests under way with the items they belong to, and finished items."""

    def __init__(self, waiting: Iterator[Item]) -> None:
        self._waiting = waiting
        self.ready: deque[Request] = deque()
        self.owner: dict[str, _OpenItem] = {}
        self._finished: deque[tuple[str, Outcome, int]] = deque()

    def feed(self) -> Iterator[Request]:
        """Yield requests as long as there are any; items start only when the engine wants more."""
        while True:
            while self.ready:
                yield self.ready.popleft()
            entry = next(self._waiting, None)
            if entry is None:
                return
            self._advance(_OpenItem(*entry), None)

    def take(self, completion: Completion) -> None:
        """Record a completion; the last one of a round lets its item continue."""
        item = self.owner[completion.key]
        item.answers[completion.key, completion.sample] = completion
        item.tokens += len(completion.tokens)
        if len(item.answers) < sum(len(request.seeds) for request in item.round):
            return
        for request in item.round:
            del self.owner[request.key]
        replies = [
            [item.answers[request.key, sample] for sample in range(len(request.seeds))]
            for request in item.round
        ]
        self._advance(item, replies)

    def pop_finished(self) -> Iterator[tuple[str, Outcome, int]]:
        """Yield the items that finished, with their tokens, each once."""
        while self._finished:
            yield self._finished.popleft()

    def _advance(self, item: _OpenItem, replies: list[list[Completion]] | None) -> None:
        """Let an item continue until it asks again or is finished."""
        try:
            requests = next(item.asking) if replies is None else item.asking.send(replies)
            while not requests:
                requests = item.asking.send([])
        except StopIteration as stop:
            self._finished.append((item.name, stop.value, item.tokens))
            return
        item.round, item.answers = requests, {}
        for request in requests:
            if request.key in self.owner:
                raise ValueError(f"two requests under way have the key {request.key}")
            self.owner[request.key] = item
            self.ready.append(request)
