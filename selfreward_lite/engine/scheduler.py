"""Continuous batching: which token of which sequence is computed next.

One step computes one token of every sample under way, and fills the rest of the batch with prompts.
A prompt of L tokens is computed once, to L-1, in a root sequence. Every sample forks from there and
computes the last prompt token itself, so roots need no logits. A sample starts only when all the
cells it may ever need are free, so no step runs out of cells and nothing is ever preempted. A
closing is computed behind its sample in one step, beside the tokens of the other samples.
"""

import codecs
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from operator import attrgetter
from time import perf_counter
from typing import Any

import numpy as np

from selfreward_lite.engine.api import (
    Cancel,
    Closing,
    Completion,
    Fed,
    Finish,
    Piece,
    Probe,
    Request,
    Stats,
    TokenIds,
    failed_completions,
)
from selfreward_lite.engine.device import Device, Rows
from selfreward_lite.engine.kv_cache import Cells, PrefixCache, Root, Span
from selfreward_lite.system.errors import EngineMemoryError

WORTH_WAITING = 16  # tokens saved for which a prompt waits until a shared beginning is computed
BURST = 8  # batches of samples for one adapter, after which waiting requests for others come first


@dataclass(eq=False)
class PendingRequest:
    """An admitted request with samples that have not started yet."""

    request: Request
    root: Root | None = None
    started: int = 0

    @property
    def prefix(self) -> int:
        """Prompt tokens that all its samples share."""
        return len(self.request.tokens) - 1

    @property
    def cells(self) -> int:
        """Cells that one sample may need beside the prefix."""
        return 1 + self.request.new_tokens

    @property
    def left(self) -> int:
        return len(self.request.seeds) - self.started


@dataclass(eq=False)
class Slot:
    """A sample under way: `token` at `position` is next. A streamed one has a `decoder`.

    One that has ended (`finish`) and is to be closed has tokens `left_to_close`.
    """

    sequence: int
    request: Request
    sample: int
    sampler: Any
    leaf: Span
    token: int
    position: int
    decoder: codecs.IncrementalDecoder | None
    tokens: list[int]
    probed: tuple[float, ...] | None = None
    finish: Finish | None = None
    closing_text: str = ""
    left_to_close: list[int] = field(default_factory=list)
    closed: tuple[float, ...] | None = None

    @property
    def next_tokens(self) -> list[int]:
        return self.left_to_close if self.finish else [self.token]


class Scheduler:
    """Keeps up to `parallel` samples under way on one device. `run` may be called again."""

    def __init__(self, device: Device, parallel: int, roots: int) -> None:
        self.stats = Stats()
        self.cancelled = False
        self._device = device
        self._parallel = parallel
        self._cells = Cells(device.cells)
        self._roots = PrefixCache(self._cells, range(parallel, parallel + roots), device.drop)
        self._free_sequences = list(range(parallel))  # a heap
        self._queue: deque[Request] = deque()  # not admitted yet
        self._pending: deque[PendingRequest] = deque()  # admitted, with samples to start
        self._slots: list[Slot] = []  # samples under way
        self._output: list[Completion | Piece] = []
        self._adapter: str | None = None
        self._burst = 0
        self._is_running = False
        self._is_busy = False  # whether samples wait for a slot

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute: a feed may then wait for its next request."""
        return not (self._slots or self._pending or self._queue or self._output)

    def run(self, requests: Iterable[Fed]) -> Iterator[Completion | Piece]:
        """Yield completions as they finish, and pieces of streamed ones; one run at a time.

        A feed that yields None has nothing at the moment, and is read again after the next step.
        """
        if self._is_running:
            raise RuntimeError("this engine is already completing; close that iterator first")
        self._is_running, self.cancelled = True, False
        started = perf_counter()
        try:
            if not self._device.is_unchanged(self._adapter):
                self._switch_adapter(None)
            feed = iter(requests)
            more = True
            while not self.cancelled:
                more = more and self._read_requests(feed)
                self._admit()
                self._start_samples()
                self._compact_slots()
                self._is_busy = bool(more or self._queue or self._pending)
                if self._slots or self._pending:
                    self._step()
                elif self.idle and not more:
                    return
                paused = perf_counter()
                yield from self._output
                started += perf_counter() - paused  # the caller's own time does not count
                self._output.clear()
        finally:
            self._abort()
            self.stats.seconds_total += perf_counter() - started
            self._is_running = False

    def reset(self, adapter: str | None) -> None:
        """Forget every root and switch to `adapter`, so that the device can be used directly."""
        if self._is_running:
            raise RuntimeError("this engine is completing; close that iterator first")
        self._switch_adapter(None)
        self._roots.evict_idle()
        self._switch_adapter(adapter)

    # -- admitting requests ----------

    def _read_requests(self, feed: Iterator[Fed]) -> bool:
        """Read ahead by at most two batches of samples. False once the feed has ended.

        A refusal is handed out before more is read: the feed may wait for it.
        """
        waiting = sum(len(request.seeds) for request in self._queue) + self._unstarted()
        while waiting < 2 * self._parallel and not self._output:
            try:
                request = next(feed)
            except StopIteration:
                return False
            if request is None:
                return True
            if isinstance(request, Cancel):
                self._abort(request.key)
                continue
            request.check(self._device.vocab)
            if len(request.tokens) + request.new_tokens > self._device.limit:
                self._output += failed_completions(request, range(len(request.seeds)), "refused")
            elif request.seeds:
                self._queue.append(request)
                waiting += len(request.seeds)
        return True

    def _unstarted(self) -> int:
        return sum(pending.left for pending in self._pending)

    def _admit(self) -> None:
        """Give roots to queued requests, a little ahead of the slots that will need them."""
        ahead = len(self._free_sequences) + max(4, self._parallel // 4)
        unstarted = self._unstarted()
        while unstarted < ahead:
            request = self._next_request()
            if request is None or not self._allocate(request):
                return
            self._queue.remove(request)
            self._burst += len(request.seeds)
            unstarted += len(request.seeds)

    def _next_request(self) -> Request | None:
        """The oldest request of the adapter in use; another's once nothing is under way."""
        if not self._queue:
            return None
        others = any(request.adapter != self._adapter for request in self._queue)
        if not (others and self._burst >= BURST * self._parallel):
            for request in self._queue:
                if request.adapter == self._adapter:
                    return request
        if self._slots or self._pending:
            return None
        self._switch_adapter(self._queue[0].adapter)
        return self._queue[0]

    def _switch_adapter(self, adapter: str | None) -> None:
        """Cached keys and values belong to the old adapter, so everything computed is dropped."""
        self._burst = 0
        if adapter != self._adapter:
            self._roots.evict_idle()
            self._device.clear()
            self._adapter = None
            self._device.use_adapter(adapter)
            self._adapter = adapter

    def _allocate(self, request: Request) -> bool:
        """Find or make the root of a request.

        False: it must wait, for cells, a sequence, or a shared beginning that is being computed.
        """
        tokens = np.array(request.tokens[:-1], dtype=np.int32)
        source, common = self._roots.find_longest(tokens)
        usable = min(common, source.computed) if source else 0
        if source and common - usable >= WORTH_WAITING and not source.is_complete:
            return False
        pending = PendingRequest(request)
        if not self._make_room(pending, len(tokens) - usable, source):
            if self._slots or self._pending:
                return False
            # The source itself is in the way, and nothing else will ever end.
            source, usable = None, 0
            if not self._make_room(pending, len(tokens), None):
                raise RuntimeError(
                    f"request {request.key} fits an empty cache but was not admitted"
                )
        root = source
        if usable < len(tokens):
            root = self._roots.add(tokens, source, usable)
            if source and usable:
                self._device.fork(source.sequence, root.sequence, usable)
        for used in (source, root):
            if used:
                self._roots.touch(used)
        if root:
            root.pins += 1
        pending.root = root
        self._pending.append(pending)
        self.stats.prompt_requested += len(request.tokens) * len(request.seeds)
        return True

    def _make_room(self, pending: PendingRequest, fresh: int, source: Root | None) -> bool:
        """Make room for `fresh` cells of a root and one sample of any admitted request.

        Counting that sample keeps roots from blocking each other.
        """
        cells = fresh + max(other.cells for other in (pending, *self._pending))
        return self._roots.make_room(cells, 1 if fresh else 0, keep=source)

    def _unpin(self, root: Root | None) -> None:
        """End a request's use of its root.

        One that nobody will complete is removed: requests with the same beginning wait for it.
        """
        if root is not None:
            root.pins -= 1
            if not root.pins and not root.is_complete:
                self._roots.remove(root)

    def _start_samples(self) -> None:
        """Fill free slots with samples of computed prompts, oldest request first."""
        for pending in list(self._pending):
            if pending.root and pending.root.computed < pending.prefix:
                continue  # its prompt is not computed yet
            while self._free_sequences and pending.left:
                if not self._roots.make_room(pending.cells):
                    return
                self._slots.append(self._open_slot(pending))
                pending.started += 1
            if pending.left:
                return
            self._pending.remove(pending)
            self._unpin(pending.root)

    def _open_slot(self, pending: PendingRequest) -> Slot:
        request, root = pending.request, pending.root
        sequence, prefix = heappop(self._free_sequences), pending.prefix
        if root:
            self._device.fork(root.sequence, sequence, prefix)
        return Slot(
            sequence=sequence,
            request=request,
            sample=pending.started,
            sampler=self._device.make_sampler(request.sampling, request.seeds[pending.started]),
            leaf=self._cells.allocate(root.leaf if root else None, prefix, pending.cells),
            token=request.tokens[-1],
            position=prefix,
            decoder=codecs.getincrementaldecoder("utf-8")("replace") if request.stream else None,
            tokens=[],
        )

    def _compact_slots(self) -> None:
        """Move samples to the first sequences, in order.

        Only neighbors with their own cells are computed in one go.
        """
        self._slots.sort(key=attrgetter("sequence"))
        for slot in reversed(self._slots):
            if not self._free_sequences or self._free_sequences[0] > slot.sequence:
                break
            target = heappop(self._free_sequences)
            self._device.fork(slot.sequence, target, slot.position)
            self._device.drop(slot.sequence)
            heappush(self._free_sequences, slot.sequence)
            slot.sequence = target
        self._slots.sort(key=attrgetter("sequence"))

    # -- computing ----------

    def _step(self) -> None:
        """Compute one batch: a token of every sample, closings, prompts while there is room."""
        rows, wanted = self._sample_rows()
        fresh = sum(not slot.tokens and not slot.finish for slot in self._slots)
        parts: dict[Root, int] = {}
        for root in (pending.root for pending in self._pending):
            room = self._device.rows - len(rows.tokens)
            if room <= 0:
                break
            if root is None or root.is_complete or root in parts:
                continue  # two requests may wait for one root, which is computed once
            first, last = root.computed, min(root.computed + room, len(root.tokens))
            rows.add(root.tokens[first:last].tolist(), first, root.sequence)
            parts[root] = last - first
        self._compute(rows, wanted)
        self.stats.prompt_computed += sum(parts.values()) + fresh
        for root, count in parts.items():
            root.computed += count
        self._postprocess()

    def _sample_rows(self) -> tuple[Rows, dict[int, Slot]]:
        """The rows of the samples under way, and whose logits each wanted row has.

        Closings share what is left of the batch; what does not fit is computed in the next step.
        """
        rows, wanted = Rows([], [], []), dict[int, Slot]()
        room = self._device.rows - sum(not slot.finish for slot in self._slots)
        for slot in self._slots:
            tokens = slot.next_tokens
            if slot.finish:
                tokens = tokens[: max(0, room)]
                room -= len(tokens)
                slot.left_to_close = slot.left_to_close[len(tokens) :]
                self.stats.closed += len(tokens)
            rows.add(tokens, slot.position, slot.sequence)
            slot.position += len(tokens) if slot.finish else 0
            if tokens and not slot.left_to_close:
                wanted[len(rows.tokens) - 1] = slot
        return rows, wanted

    def _compute(self, rows: Rows, wanted: dict[int, Slot]) -> None:
        """Compute rows and use the wanted ones; halve the batch if it does not fit."""
        stack = [(0, len(rows.tokens))]
        while stack:
            first, last = stack.pop()
            part = Rows(*(column[first:last] for column in rows))
            slots = {row - first: slot for row, slot in wanted.items() if first <= row < last}
            if self._decode(part, list(slots)):
                self._use_logits(slots)
                continue
            if last - first == 1 and not self._roots.evict_idle():
                raise EngineMemoryError(
                    f"request {self._owner(part.sequences[0])}: not even one token could be "
                    "computed; lower the context or the batch, or free memory on the device "
                    f"({self._device.take_errors()})"
                )
            self._roots.evict_idle()
            middle = (first + last + 1) // 2
            stack.extend([(middle, last)] * (middle < last) + [(first, middle)])

    def _decode(self, rows: Rows, wanted: list[int]) -> bool:
        failed = self._device.decode(rows, wanted)
        self.stats.add_step(len(wanted), is_busy=self._is_busy)
        if failed:  # remove what the call left behind
            for sequence, position in zip(rows.sequences, rows.positions, strict=True):
                self._device.drop(sequence, position)
        return not failed

    def _owner(self, sequence: int) -> str:
        """The key of the request that a sequence belongs to."""
        keys = {slot.sequence: slot.request.key for slot in self._slots}
        roots = {one.root.sequence: one.request.key for one in self._pending if one.root}
        return (keys | roots)[sequence]

    def _use_logits(self, slots: dict[int, Slot]) -> None:
        """Draw the next token of samples, and read the choices of closings, by row."""
        started = perf_counter()
        sampled = {row: slot for row, slot in slots.items() if not slot.finish}
        samplers = [slot.sampler for slot in sampled.values()]
        drawn = self._device.sample(samplers, list(sampled)) if sampled else []
        for (row, slot), token in zip(sampled.items(), drawn, strict=True):
            probe = slot.request.probe
            if probe is not None and token in probe.tokens:
                self._answer_probe(slot, probe, row)
            slot.token = token
            slot.position += 1
        for row, slot in slots.items():
            if slot.finish and (closing := slot.request.closing):
                slot.closed = probabilities(self._device.row_logits(row), closing.choices)
        self.stats.seconds_sample += perf_counter() - started

    def _answer_probe(self, slot: Slot, probe: Probe, row: int) -> None:
        text = self._text(slot.tokens).rstrip(" \t\r\n\f\v*").casefold()
        if text.endswith(probe.after.rstrip(" \t\r\n\f\v*").casefold()):
            slot.probed = probabilities(self._device.row_logits(row), probe.tokens)

    def _postprocess(self) -> None:
        """Keep the sampled tokens; samples that ended make room at once."""
        unfinished = []
        for slot in self._slots:
            if slot.finish is None:
                slot.finish = self._keep_token(slot)
                if slot.finish and slot.request.closing:
                    self._begin_closing(slot, slot.finish, slot.request.closing)
            if slot.finish and not slot.left_to_close:
                self._finish(slot, slot.finish)
            else:
                unfinished.append(slot)
        self._slots = unfinished

    def _keep_token(self, slot: Slot) -> Finish | None:
        """Keep the token that was drawn; returns how the sample ended, None if it goes on."""
        if slot.token in slot.request.stop:
            return "stop"
        slot.tokens.append(slot.token)
        if slot.decoder:
            self._stream(slot, self._device.token_bytes(slot.token))
        return "length" if len(slot.tokens) >= slot.request.sampling.max_tokens else None

    def _begin_closing(self, slot: Slot, finish: Finish, closing: Closing) -> None:
        """The closing takes the stop token's place, or follows a last token not computed yet."""
        tokens = closing.tokens_behind(self._text(slot.tokens))
        slot.closing_text = self._text(tokens)
        slot.left_to_close = [slot.token] * (finish == "length") + [*tokens]

    def _stream(self, slot: Slot, data: bytes, final: bool = False) -> None:
        if slot.decoder is not None and (text := slot.decoder.decode(data, final)):
            self._output.append(Piece(slot.request.key, slot.sample, text))

    def _finish(self, slot: Slot, finish: Finish) -> None:
        self._close_slot(slot)
        self._stream(slot, b"", final=True)
        self.stats.generated += len(slot.tokens)
        completion = Completion(
            slot.request.key,
            slot.sample,
            tuple(slot.tokens),
            self._text(slot.tokens),
            finish,
            len(slot.request.tokens),
            slot.probed,
            slot.closed,
            slot.closing_text,
        )
        self._output.append(completion)

    def _text(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self._device.token_bytes, tokens)).decode("utf-8", errors="replace")

    def _close_slot(self, slot: Slot) -> None:
        self._device.free_sampler(slot.sampler)
        self._device.drop(slot.sequence)
        self._cells.release(slot.leaf)
        heappush(self._free_sequences, slot.sequence)

    def _abort(self, key: str | None = None) -> None:
        """Drop what is under way of one request, or of all; computed roots stay."""
        for slot in [slot for slot in self._slots if key in (None, slot.request.key)]:
            self._close_slot(slot)
            self._slots.remove(slot)
        for pending in [one for one in self._pending if key in (None, one.request.key)]:
            self._pending.remove(pending)
            self._unpin(pending.root)
        self._queue = deque(request for request in self._queue if key not in (None, request.key))
        self._output = [] if key is None else [one for one in self._output if one.key != key]


def probabilities(logits: np.ndarray, tokens: TokenIds) -> tuple[float, ...]:
    """Softmax at temperature 1 over `logits` [vocab], of the given tokens only."""
    exact = logits.astype(np.float64)
    top = exact.max()
    return tuple((np.exp(exact[list(tokens)] - top) / np.exp(exact - top).sum()).tolist())
