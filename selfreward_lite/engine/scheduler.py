"""Continuous batching: which token of which sequence is computed next.

Knows: requests, cells, the few verbs of a `Device`. Does not know: llama.cpp, files, processes. One step computes one
token of every sample under way and fills the rest of the batch with prompts. A prompt of L tokens is computed to L-1
in a root sequence, once; every sample forks from there and computes the last prompt token itself, so that roots need no
logits. A sample is let in only when all the cells it may ever need are free, so no decode runs out of them.
"""

# What the batcher keeps of a request: a job until all its samples have started, a slot for each sample under way.
#
# Knows: a request's numbers, the run of cells it stands on. Does not know: when it is served.

# What the scheduler needs of a model in memory, and what it counts while it uses it.
#
# Knows: rows of a batch, sequence numbers. Does not know: llama.cpp. A test can play the device in pure Python.

from __future__ import annotations

import codecs
from codecs import IncrementalDecoder
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from operator import attrgetter
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from selfreward_lite.engine.api import Cancel, Completion, Fed, Finish, Piece, Request, Sampling
from selfreward_lite.engine.kv_cache import Cells, Root, Roots, Span
from selfreward_lite.system.errors import EngineError


@dataclass(slots=True, eq=False)
class PendingRequest:
    """An admitted request with samples still to start."""

    request: Request
    root: Root | None
    started: int = 0

    @property
    def base(self) -> int:
        return len(self.request.tokens) - 1

    @property
    def need(self) -> int:
        return 1 + self.request.sampling.max_tokens

    @property
    def ready(self) -> bool:
        return self.root is None or self.root.computed >= self.base


@dataclass(slots=True, eq=False)
class Slot:
    """A sample under way; `token` at `position` is what it computes next. `decoder` is there where its text is streamed."""

    sequence: int
    request: Request
    sample: int
    sampler: Any
    leaf: Span
    token: int
    position: int
    stop: frozenset[int]
    watched: frozenset[int]
    decoder: IncrementalDecoder | None = None
    tokens: list[int] = field(default_factory=list)
    probe: tuple[float, ...] | None = None


class Device(Protocol):
    """What the scheduler needs of a model in memory. Rows are the entries of one batch."""

    cells: int
    limit: int
    rows: int
    vocab: int

    def decode(
        self, tokens: list[int], positions: list[int], sequences: list[int], wanted: int
    ) -> int: ...
    def sampler(self, sampling: Sampling, seed: int) -> Any: ...
    def sample(self, samplers: list[Any]) -> list[int]: ...
    def free_sampler(self, sampler: Any) -> None: ...
    def row_logits(self, row: int) -> np.ndarray: ...
    def fork(self, source: int, target: int, length: int) -> None: ...
    def drop(self, sequence: int, start: int = 0) -> None: ...
    def clear(self) -> None: ...
    def use(self, adapter: str | None) -> None: ...
    def fresh(self, adapter: str | None) -> bool: ...
    def piece(self, token: int) -> bytes: ...
    def complaint(self) -> str: ...


@dataclass(slots=True)
class Stats:
    """Counters since the engine was made. `prompt_requested` is what an engine that shares nothing would compute; the busy
    steps are those during which samples were still waiting for a slot."""

    prompt_requested: int = 0
    prompt_computed: int = 0
    generated: int = 0
    steps: int = 0
    slot_steps: int = 0
    occupancy: float = 0.0
    busy_steps: int = 0
    busy_slot_steps: int = 0
    seconds_decode: float = 0.0
    seconds_sample: float = 0.0
    seconds_total: float = 0.0


WORTH_WAITING = (
    16  # a prompt waits for a shared beginning under way if that saves at least so many tokens
)
END = object()  # of a feed
utf8 = codecs.getincrementaldecoder("utf-8")
BURST = (
    8  # after so many batches' worth of samples for one adapter, others that wait get their turn
)


class Batcher:
    """Keeps up to `parallel` samples under way on one device. Roots stay warm from one `run` to the next."""

    def __init__(self, device: Device, parallel: int, roots: int) -> None:
        self.stats = Stats()
        self.cancelled = False
        self._device = device
        self._parallel = parallel
        self._cells = Cells(device.cells)
        self._roots = Roots(self._cells, range(parallel, parallel + roots), device.drop)
        self._spare = list(range(parallel))  # a heap
        self._slots: list[Slot] = []
        self._jobs: deque[PendingRequest] = deque()
        self._queue: deque[Request] = deque()
        self._done: list[Completion | Piece] = []
        self._adapter: str | None = None
        self._burst = 0
        self._running = False
        self._busy = False  # whether samples wait for a slot

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute: a feed may then wait for its next request."""
        return not (self._slots or self._jobs or self._queue or self._done)

    def run(self, requests: Iterable[Fed]) -> Iterator[Completion | Piece]:
        """Yield completions as they finish, and pieces of those that are streamed; one run at a time.

        A feed may say None, for nothing at the moment, and is then asked again after the next step.
        """
        if self._running:
            raise RuntimeError("this engine is already completing; close that iterator first")
        self._running, self.cancelled = True, False
        started = perf_counter()
        try:
            if not self._device.fresh(self._adapter):
                self._switch(None)
            feed = iter(requests)
            more = True
            while not self.cancelled:
                more = more and self._pull(feed)
                self._admit()
                self._start()
                self._close_ranks()
                self._busy = bool(more or self._queue or self._jobs)
                if self._slots or self._jobs:
                    self._step()
                elif self.idle and not more:
                    return
                paused = perf_counter()
                yield from self._done
                started += perf_counter() - paused  # the caller's own time is not ours
                self._done.clear()
        finally:
            self._abandon()
            self.stats.seconds_total += perf_counter() - started
            self.stats.occupancy = self.stats.slot_steps / max(1, self.stats.steps * self._parallel)
            self._running = False

    def reset(self, adapter: str | None) -> None:
        """Forget every root and switch to `adapter`, for a caller that uses the device for something else."""
        if self._running:
            raise RuntimeError("this engine is completing; close that iterator first")
        self._switch(None)
        self._roots.evict_idle()
        self._switch(adapter)

    # Letting requests in

    def _pull(self, feed: Iterator[Fed]) -> bool:
        """Look ahead by at most two batches of samples. False once the feed has ended.

        What is refused is handed out before more is asked for: a feed may wait for it.
        """
        waiting = sum(len(request.seeds) for request in self._queue) + self._unstarted()
        while waiting < 2 * self._parallel and not self._done:
            request = next(feed, END)
            if request is None or request is END:
                return request is None
            if isinstance(request, Cancel):
                self._abandon(request.key)
                continue
            request.check(self._device.vocab)
            if len(request.tokens) + request.sampling.max_tokens > self._device.limit:
                self._refuse(request)
            elif request.seeds:
                self._queue.append(request)
                waiting += len(request.seeds)
        return True

    def _refuse(self, request: Request) -> None:
        for sample in range(len(request.seeds)):
            self._done.append(
                Completion(request.key, sample, (), "", "refused", len(request.tokens))
            )

    def _unstarted(self) -> int:
        return sum(len(job.request.seeds) - job.started for job in self._jobs)

    def _admit(self) -> None:
        """Give roots to queued requests, a little ahead of the slots that will need them."""
        ahead = len(self._spare) + max(4, self._parallel // 4)
        unstarted = self._unstarted()
        while unstarted < ahead:
            request = self._next_request()
            if request is None or not self._place(request):
                return
            self._queue.remove(request)
            self._burst += len(request.seeds)
            unstarted += len(request.seeds)

    def _next_request(self) -> Request | None:
        """The oldest request of the adapter in use; another adapter's once nothing is under way."""
        if not self._queue:
            return None
        others = any(request.adapter != self._adapter for request in self._queue)
        if not (others and self._burst >= BURST * self._parallel):
            for request in self._queue:
                if request.adapter == self._adapter:
                    return request
        if self._slots or self._jobs:
            return None
        self._switch(self._queue[0].adapter)
        return self._queue[0]

    def _switch(self, adapter: str | None) -> None:
        """Cached keys and values belong to the old adapter, so everything computed is dropped."""
        self._burst = 0
        if adapter != self._adapter:
            self._roots.evict_idle()
            self._device.clear()
            self._adapter = None
            self._device.use(adapter)
            self._adapter = adapter

    def _place(self, request: Request) -> bool:
        """Find or make the root of a request. False: wait, for cells, a sequence or a shared beginning under way."""
        tokens = np.array(request.tokens[:-1], dtype=np.int32)
        source, common = self._roots.best(tokens)
        usable = min(common, source.computed) if source else 0
        if source and common - usable >= WORTH_WAITING and not source.complete:
            return False
        job = PendingRequest(request, None)
        if not self._room(job, len(tokens) - usable, source):
            if self._slots or self._jobs:
                return False
            source, usable = (
                None,
                0,
            )  # the source itself is in the way, and nothing else will ever leave
            if not self._room(job, len(tokens), None):
                raise RuntimeError(f"request {request.key} fits an empty memory but was not let in")
        job.root = source if usable == len(tokens) else self._roots.add(tokens, source, usable)
        if job.root:
            self._pin(job.root, source, usable)
        self._jobs.append(job)
        self.stats.prompt_requested += len(request.tokens) * len(request.seeds)
        return True

    def _room(self, job: PendingRequest, fresh: int, source: Root | None) -> bool:
        """Room for `fresh` root cells and one sample of any admitted request, so that roots cannot lock each other."""
        need = max([job.need, *(other.need for other in self._jobs)])
        if source is None:
            return self._roots.make_room(fresh + need, 1 if fresh else 0)
        source.pins += 1  # the source must outlive the evictions
        fits = self._roots.make_room(fresh + need, 1 if fresh else 0)
        source.pins -= 1
        return fits

    def _pin(self, root: Root, source: Root | None, usable: int) -> None:
        root.pins += 1
        if source and root is not source and usable:
            self._device.fork(source.sequence, root.sequence, usable)
        if source:
            self._roots.touch(source)
        self._roots.touch(root)

    def _start(self) -> None:
        """Fill free slots with samples of computed prompts, oldest request first."""
        for job in [job for job in self._jobs if job.ready]:
            while self._spare and job.started < len(job.request.seeds):
                if not self._roots.make_room(job.need):
                    return
                self._slots.append(self._open(job))
                job.started += 1
            if job.started < len(job.request.seeds):
                return
            self._jobs.remove(job)
            self._unpin(job.root)

    def _unpin(self, root: Root | None) -> None:
        """A job is done with its root. One that nobody will complete is in the way of all that begin as it does."""
        if root is not None:
            root.pins -= 1
            if not root.pins and not root.complete:
                self._roots.remove(root)

    def _open(self, job: PendingRequest) -> Slot:
        request, sequence = job.request, heappop(self._spare)
        if job.root:
            self._device.fork(job.root.sequence, sequence, job.base)
        return Slot(
            sequence=sequence,
            request=request,
            sample=job.started,
            sampler=self._device.sampler(request.sampling, request.seeds[job.started]),
            leaf=self._cells.branch(job.root.leaf if job.root else None, job.base, job.need),
            token=request.tokens[-1],
            position=job.base,
            stop=frozenset(request.stop),
            watched=frozenset(request.probe.tokens if request.probe else ()),
            decoder=utf8(errors="replace") if request.stream else None,
        )

    def _close_ranks(self) -> None:
        """Samples keep to the first sequences, in order: only neighbours with their own cells are computed in one go."""
        self._slots.sort(key=attrgetter("sequence"))
        for slot in reversed(self._slots):
            if not self._spare or self._spare[0] > slot.sequence:
                break
            hole = heappop(self._spare)
            self._device.fork(slot.sequence, hole, slot.position)
            self._device.drop(slot.sequence)
            heappush(self._spare, slot.sequence)
            slot.sequence = hole
        self._slots.sort(key=attrgetter("sequence"))

    # Computing

    def _step(self) -> None:
        """One batch: a token of every sample, then prompts up to the size of the batch."""
        slots = self._slots
        tokens = [slot.token for slot in slots]
        positions = [slot.position for slot in slots]
        sequences = [slot.sequence for slot in slots]
        parts: list[tuple[Root, int]] = []
        for job in self._jobs:
            root, room = job.root, self._device.rows - len(tokens)
            if room <= 0:
                break
            if root is None or root.complete or any(root is other for other, _ in parts):
                continue  # two jobs may wait for one root, which is computed once
            count = min(room, len(root.tokens) - root.computed)
            tokens.extend(root.tokens[root.computed : root.computed + count].tolist())
            positions.extend(range(root.computed, root.computed + count))
            sequences.extend([root.sequence] * count)
            parts.append((root, count))
        self._compute((tokens, positions, sequences), len(slots))
        self.stats.prompt_computed += sum(count for _, count in parts) + sum(
            not slot.tokens for slot in slots
        )
        for root, count in parts:
            root.computed += count
        self._settle()

    def _compute(self, rows: tuple[list[int], list[int], list[int]], wanted: int) -> None:
        """Compute rows, of which the first `wanted` belong to samples, halving the batch where it cannot be placed."""
        pending = [(0, len(rows[0]))]
        while pending:
            first, last = pending.pop()
            part = tuple(column[first:last] for column in rows)
            sampled = max(0, min(wanted, last) - first)
            if self._decode(part, sampled):
                self._sample(self._slots[first : first + sampled])
                continue
            if last - first == 1 and not self._roots.evict_idle():
                raise EngineError(
                    f"{self._owner(part[2][0])}: not even one token could be computed; lower the context or the batch, "
                    f"or free memory on the device ({self._device.complaint()})"
                )
            self._roots.evict_idle()
            middle = (first + last + 1) // 2
            pending.extend([(middle, last)] * (middle < last) + [(first, middle)])

    def _decode(self, part: tuple[list[int], list[int], list[int]], sampled: int) -> bool:
        started = perf_counter()
        failed = self._device.decode(*part, sampled)
        self.stats.seconds_decode += perf_counter() - started
        self.stats.steps += 1
        self.stats.slot_steps += sampled
        self.stats.busy_steps += self._busy
        self.stats.busy_slot_steps += sampled * self._busy
        if failed:  # what the call left behind must not stay
            for sequence, position in zip(part[2], part[1], strict=True):
                self._device.drop(sequence, position)
        return not failed

    def _owner(self, sequence: int) -> str:
        for slot in self._slots:
            if slot.sequence == sequence:
                return f"request {slot.request.key}"
        for job in self._jobs:
            if job.root and job.root.sequence == sequence:
                return f"request {job.request.key}"
        raise RuntimeError(f"sequence {sequence} belongs to nobody")

    def _sample(self, slots: list[Slot]) -> None:
        started = perf_counter()
        drawn = self._device.sample([slot.sampler for slot in slots])
        for row, (slot, token) in enumerate(zip(slots, drawn, strict=True)):
            if token in slot.watched:
                self._look(slot, token, row)
            slot.token = token
            slot.position += 1
        self.stats.seconds_sample += perf_counter() - started

    def _look(self, slot: Slot, token: int, row: int) -> None:
        probe = slot.request.probe
        said = self._text(slot).rstrip(" \t\r\n\f\v*").casefold()
        if said.endswith(probe.after.rstrip(" \t\r\n\f\v*").casefold()):
            slot.probe = probabilities(self._device.row_logits(row), probe.tokens)

    def _settle(self) -> None:
        """Book the sampled tokens; samples that ended make room at once."""
        going = []
        for slot in self._slots:
            if slot.token in slot.stop:
                self._finish(slot, "stop")
                continue
            slot.tokens.append(slot.token)
            self._say(slot, self._device.piece(slot.token))
            if len(slot.tokens) >= slot.request.sampling.max_tokens:
                self._finish(slot, "length")
            else:
                going.append(slot)
        self._slots = going

    def _say(self, slot: Slot, said: bytes, final: bool = False) -> None:
        if slot.decoder is not None and (text := slot.decoder.decode(said, final)):
            self._done.append(Piece(slot.request.key, slot.sample, text))

    def _finish(self, slot: Slot, finish: Finish) -> None:
        self._close(slot)
        self._say(slot, b"", final=True)
        self.stats.generated += len(slot.tokens)
        key, prompt = slot.request.key, len(slot.request.tokens)
        self._done.append(
            Completion(
                key, slot.sample, tuple(slot.tokens), self._text(slot), finish, prompt, slot.probe
            )
        )

    def _text(self, slot: Slot) -> str:
        return b"".join(map(self._device.piece, slot.tokens)).decode("utf-8", errors="replace")

    def _close(self, slot: Slot) -> None:
        self._device.free_sampler(slot.sampler)
        self._device.drop(slot.sequence)
        self._cells.release(slot.leaf)
        heappush(self._spare, slot.sequence)

    def _abandon(self, key: str | None = None) -> None:
        """Give back what is under way of one request, or of all; computed roots stay."""
        for slot in [slot for slot in self._slots if key in (None, slot.request.key)]:
            self._close(slot)
            self._slots.remove(slot)
        for job in [job for job in self._jobs if key in (None, job.request.key)]:
            self._jobs.remove(job)
            self._unpin(job.root)
        self._queue = deque(request for request in self._queue if key not in (None, request.key))
        self._done = [] if key is None else [said for said in self._done if said.key != key]


def probabilities(logits: np.ndarray, tokens: tuple[int, ...]) -> tuple[float, ...]:
    """Softmax at temperature 1 over `logits` [vocab], of the given tokens only."""
    exact = logits.astype(np.float64)
    top = exact.max()
    return tuple((np.exp(exact[list(tokens)] - top) / np.exp(exact - top).sum()).tolist())
