"""llama.cpp in this process: one base model, many sequences at once, adapters swapped in memory.

Uses the low-level binding of llama-cpp-python; the high-level one decodes a single sequence and
ignores misspelled arguments. A fault in native code ends this process, so a run imports this only
in child processes.
"""

import ctypes
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from time import perf_counter
from typing import Any

import llama_cpp as cpp
import numpy as np

from selfreward_lite.engine.api import Completion, Fed, LlamaSpec, Piece, Sampling, Stats
from selfreward_lite.engine.device import Rows
from selfreward_lite.engine.loading import (
    LOG,
    NO_MEMORY,
    ThreadTuner,
    check_adapter,
    is_tiny,
    load_model,
    make_context,
    threads_for,
)
from selfreward_lite.engine.scheduler import Scheduler
from selfreward_lite.system.cores import count_cores
from selfreward_lite.system.errors import EngineError, EngineMemoryError

PROBE_TOKENS = 8
MAX_HELPERS = 8  # threads that draw tokens
THREAD_WORTH = 200_000  # logits that one more thread should have to read
SAME_LOGITS = 1e-6  # of the largest logit: a smaller difference is rounding


class BatchArrays:
    """The arrays of one `llama_batch`, filled through numpy.

    Setting single elements through ctypes takes 20 times as long.
    """

    def __init__(self, size: int) -> None:
        self.token, self.pos, self.seq = np.zeros((3, size), dtype=np.int32)
        self.wanted = np.zeros(size, dtype=np.int8)
        self.arrays: dict[str, np.ndarray] = {
            "token": self.token,
            "pos": self.pos,
            "n_seq_id": np.ones(size, dtype=np.int32),
            "logits": self.wanted,
            # row i points at seq[i]
            "seq_id": (self.seq.ctypes.data + 4 * np.arange(size)).astype(np.uintp),
        }
        self.batch = cpp.llama_batch()
        kinds: dict[str, Any] = {name: kind for name, kind, *_ in cpp.llama_batch._fields_}
        for name, values in self.arrays.items():
            setattr(self.batch, name, ctypes.cast(values.ctypes.data, kinds[name]))

    def fill(self, rows: Rows | np.ndarray, wanted: Sequence[int]) -> cpp.llama_batch:
        """Set the entries of the batch; the rows `wanted` get logits."""
        size = len(rows[0])
        self.token[:size], self.pos[:size], self.seq[:size] = rows
        self.wanted[:size] = 0
        self.wanted[wanted] = 1
        self.batch.n_tokens = size
        return self.batch


class LlamaDevice:
    """A model, its context and its adapters: a `device.Device`."""

    def __init__(self, spec: LlamaSpec) -> None:
        self._model = load_model(spec.model, spec.gpu_layers, exact=spec.exact)
        self.context = make_context(self._model, spec)
        self._memory = cpp.llama_get_memory(self.context)
        self._vocab = cpp.llama_model_get_vocab(self._model)
        self.vocab = int(cpp.llama_vocab_n_tokens(self._vocab))
        self._spec = spec
        self.cells = int(cpp.llama_n_ctx(self.context))
        self.room = int(cpp.llama_n_ctx_seq(self.context))  # of one sequence
        self.limit = min(self.room, int(cpp.llama_model_n_ctx_train(self._model)))
        self.rows = spec.batch
        self._batch = BatchArrays(self.rows)
        self.helpers = min(MAX_HELPERS, threads_for(self._model, spec))
        tune = is_tiny(self._model) and not spec.threads and not spec.gpu_layers
        self._tuner = ThreadTuner(count_cores()) if tune else None
        self._pool = ThreadPoolExecutor(self.helpers)
        self._pieces: dict[int, bytes] = {}
        self._buffer = ctypes.create_string_buffer(512)
        self._adapters: dict[str, tuple[tuple[int, ...], Any]] = {}
        self._base_probe: np.ndarray | None = None

    def decode(self, rows: Rows, wanted: Sequence[int]) -> int:
        """Compute a batch; 0 if that worked. The rows `wanted` then have logits."""
        return self.run(self._batch.fill(rows, wanted))

    def run(self, batch: cpp.llama_batch) -> int:
        """Compute a filled batch; 0 if that worked."""
        started = perf_counter()
        code: int = cpp.llama_decode(self.context, batch)
        if not code:  # so that the time is counted here, not on the first sample
            cpp.llama_synchronize(self.context)
        if self._tuner:
            threads = self._tuner.add_step(perf_counter() - started)
            cpp.llama_set_n_threads(self.context, threads, threads)
        return code

    def make_sampler(self, sampling: Sampling, seed: int) -> Any:
        """A chain of top_k, temperature, top_p, draw.

        top_k comes first: sorting all 128,256 candidates takes most of the time.
        """
        if sampling.temperature <= 0:
            parts = [cpp.llama_sampler_init_greedy()]
        else:
            parts = [cpp.llama_sampler_init_temp(sampling.temperature)]
            if sampling.top_k > 0:
                parts.insert(0, cpp.llama_sampler_init_top_k(sampling.top_k))
            if sampling.top_p < 1:
                parts.append(cpp.llama_sampler_init_top_p(sampling.top_p, 1))
            # llama.cpp reads the largest 32-bit seed as "draw one yourself"
            parts.append(cpp.llama_sampler_init_dist(seed % 0xFFFFFFFF))
        sampler = cpp.llama_sampler_chain_init(cpp.llama_sampler_chain_default_params())
        for part in parts:
            cpp.llama_sampler_chain_add(sampler, part)
        return sampler

    def sample(self, samplers: list[Any], rows: Sequence[int]) -> list[int]:
        """Draw a token for rows of the last batch that have logits, each with its sampler.

        With a large vocabulary every draw reads half a megabyte, so threads share the rows; a call
        does not need Python's lock.
        """
        shares = self.shares(len(samplers))
        if shares < 2:
            return self._draw(samplers, rows)
        # puts the rows in order, once, before several threads read them
        cpp.llama_get_logits_ith(self.context, rows[0])
        size = -(-len(samplers) // shares)
        parts = [range(len(samplers))[at : at + size] for at in range(0, len(samplers), size)]
        drawn = self._pool.map(
            lambda part: self._draw([samplers[i] for i in part], [rows[i] for i in part]), parts
        )
        return list(chain.from_iterable(drawn))

    def shares(self, count: int) -> int:
        """How many threads should draw so many tokens."""
        return min(self.helpers, count * self.vocab // THREAD_WORTH)

    def _draw(self, samplers: list[Any], rows: Sequence[int]) -> list[int]:
        sample, context = cpp.llama_sampler_sample, self.context
        return [sample(sampler, context, row) for sampler, row in zip(samplers, rows, strict=True)]

    def free_sampler(self, sampler: Any) -> None:
        cpp.llama_sampler_free(sampler)

    def row_logits(self, row: int) -> np.ndarray:
        """Logits [vocab] of one row of the last batch; the next decode overwrites them."""
        return np.ctypeslib.as_array(cpp.llama_get_logits_ith(self.context, row), (self.vocab,))

    def fork(self, source: int, target: int, length: int) -> None:
        """Give an empty sequence the first `length` positions of another."""
        if length and self._spec.unified:
            cpp.llama_memory_seq_cp(self._memory, source, target, 0, length)
        elif length:  # separate caches can only be copied as a whole
            cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            self.drop(target, length)

    def drop(self, sequence: int, start: int = 0) -> None:
        cpp.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def clear(self) -> None:
        cpp.llama_memory_clear(self._memory, False)

    def token_bytes(self, token: int) -> bytes:
        if token not in self._pieces:
            size = cpp.llama_token_to_piece(
                self._vocab, token, self._buffer, len(self._buffer), 0, False
            )
            self._pieces[token] = self._buffer.raw[: max(0, size)]
        return self._pieces[token]

    def take_errors(self) -> str:
        return LOG.take_errors()

    @property
    def quantization(self) -> str:
        """The type of most matrices, as llama.cpp names it."""
        size = cpp.llama_model_desc(self._model, self._buffer, len(self._buffer))
        return self._buffer.raw[:size].decode().rsplit("B ", 1)[-1]  # of "llama 8B Q8_0"

    def use_adapter(self, adapter: str | None) -> None:
        """Switch to an adapter, None for the base; it is loaded and checked the first time.

        Clear the KV cache first.
        """
        self._set(None)
        if adapter is None:
            return
        if not self.is_unchanged(adapter):
            self._load_adapter(adapter)
        self._set(self._adapters[adapter][1])

    def is_unchanged(self, adapter: str | None) -> bool:
        """Whether an adapter's file is still the one that was loaded."""
        return adapter is None or self._adapters.get(adapter, (None,))[0] == _stamp(adapter)

    def logits(self, tokens: list[int]) -> np.ndarray:
        """Logits float32 [len(tokens), vocab] of one text; overwrites sequence 0."""
        self.drop(0)
        parts = []
        for start in range(0, len(tokens), self._spec.parallel):
            part = tokens[start : start + self._spec.parallel]
            rows = Rows(part, list(range(start, start + len(part))), [0] * len(part))
            if self.decode(rows, range(len(part))):
                raise EngineError(
                    f"logits of {len(tokens)} tokens could not be computed ({self.take_errors()})"
                )
            parts.append(np.stack([self.row_logits(row) for row in range(len(part))]))
        self.drop(0)
        return np.concatenate(parts)

    def close(self) -> None:
        self._pool.shutdown()
        cpp.llama_free(self.context)
        cpp.llama_model_free(self._model)  # frees its adapters too

    def _set(self, pointer: Any) -> None:
        count = int(pointer is not None)
        adapters = (cpp.llama_adapter_lora_p_ctypes * 1)(pointer)
        if cpp.llama_set_adapters_lora(self.context, adapters, count, (ctypes.c_float * 1)(1.0)):
            raise EngineError(f"llama.cpp refused to switch adapters ({self.take_errors()})")

    def _load_adapter(self, name: str) -> None:
        stamp = _stamp(name)
        if self._spec.check_adapters:
            check_adapter(name)
        pointer = cpp.llama_adapter_lora_init(self._model, os.fsencode(name))
        if not pointer:
            why = self.take_errors()
            if NO_MEMORY.search(why):  # the cache took nearly all before
                raise EngineMemoryError(f"no memory for adapter {name} ({why})")
            raise EngineError(
                f"adapter {name} does not fit this base model ({why}); convert it again"
            )
        if self._spec.check_adapters:
            self._check_effect(name, pointer)
        self._adapters[name] = (stamp, pointer)

    def _check_effect(self, name: str, pointer: Any) -> None:
        """Raise EngineError if a loaded adapter changes nothing, or makes logits not finite."""
        tokens: list[int] = np.linspace(0, self.vocab - 1, PROBE_TOKENS, dtype=int).tolist()
        if self._base_probe is None:
            self._base_probe = self.logits(tokens)
        self._set(pointer)
        changed = self.logits(tokens)
        self._set(None)
        if not np.isfinite(changed).all():
            raise EngineError(f"adapter {name} makes logits that are not finite; train it again")
        if np.abs(changed - self._base_probe).max() <= SAME_LOGITS * np.abs(self._base_probe).max():
            raise EngineError(
                f"adapter {name} has no effect on the logits; it was not trained, or for another "
                "base"
            )


class LlamaEngine:
    """The batched llama.cpp engine; raises EngineError if the model or the GPU cannot be used.

    `spec.context` counts KV cache cells of all sequences. `threads` None takes every core, or what
    is faster for a tiny model. `unified` keeps one KV cache for all sequences: a shared prefix is
    stored once, and a long prompt may use what others leave. False cuts it into `parallel + roots`
    equal parts (rounded up to 256 cells), and a fork copies a complete part. With as much context
    as so many of the longest requests need, a CPU then serves prompts of 600 tokens 1.7 times as
    fast (measured).
    """

    def __init__(self, spec: LlamaSpec) -> None:
        self._device: LlamaDevice | None = LlamaDevice(spec)
        self._scheduler = Scheduler(self._device, spec.parallel, spec.roots)
        self.parallel = spec.parallel

    @property
    def stats(self) -> Stats:
        return self._scheduler.stats

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute at the moment."""
        return self._scheduler.idle

    def complete(self, requests: Iterable[Fed]) -> Iterator[Completion | Piece]:
        """See `api.Engine`. One iterator at a time; computed prompts stay cached for the next."""
        self._open()
        return self._scheduler.run(requests)

    def cancel(self) -> None:
        """End the running `complete` after its current step; any thread may call this."""
        self._scheduler.cancelled = True

    def logits(self, tokens: list[int], adapter: str | None = None) -> np.ndarray:
        """Logits float32 [len(tokens), vocab] of one text; not while completing."""
        device = self._open()
        if not 0 < len(tokens) <= device.room:  # beyond the training context too: to be compared
            raise EngineError(
                f"{len(tokens)} tokens do not fit the context of {device.room}; raise the context"
            )
        self._scheduler.reset(adapter)
        return device.logits(tokens)

    def close(self) -> None:
        if self._device:
            self._device.close()
        self._device = None

    def _open(self) -> LlamaDevice:
        if self._device is None:
            raise EngineError("this engine is closed; make a new one")
        return self._device


def _stamp(name: str) -> tuple[int, ...]:
    """What tells one version of a file from the next; empty if there is no file."""
    if not os.path.isfile(name):
        return ()
    found = os.stat(name)
    return found.st_mtime_ns, found.st_size, found.st_ino
