"""One engine in memory at a time, for all users of the app; it leaves the GPU to a run.

A caller that needs another engine than the open one waits until nobody uses that. Later callers
wait behind it, unless it waits for the GPU, which may take hours.
"""

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

from selfreward_lite.engine.api import EngineSpec
from selfreward_lite.engine.live import CLOSED, HEARTBEAT, Live
from selfreward_lite.system import gpu, locks
from selfreward_lite.system.errors import EngineError

GRACE = 20.0  # seconds that replies under way may take once a run waits for the GPU
POLL = 1.0  # seconds between two checks whether a run waits
APP = "the app"
GPU_TAKEN = "a run has taken the GPU: ask again when it is done, or answer on the CPU"
OTHER_MODEL = "another run's model is in use: yours is loaded as soon as that is free"


@dataclass(eq=False)
class _Waiter:
    for_gpu: bool = False


class EnginePool:
    """Holds at most one `Live`. `on_gpu`: whether engines with GPU layers would use a GPU."""

    def __init__(self, on_gpu: bool, max_waiting: int = 64) -> None:
        self.live: Live | None = None
        self._on_gpu, self._max_waiting = on_gpu, max_waiting
        self._change = threading.Condition()
        self._users = 0
        self._waiting: list[_Waiter] = []
        self._gpu_lock: int | None = None  # held while an engine that uses the GPU is open

    def using(self, get_spec: Callable[[], EngineSpec]) -> Generator[str | Live, None, None]:
        """Yield why the caller waits, every HEARTBEAT; then the engine, kept until this is closed.

        `get_spec` is called at each attempt, since its answer may change in the meantime.
        Raises EngineError where too many wait.
        """
        me = _Waiter()
        found: str | Live = OTHER_MODEL
        with self._change:
            if len(self._waiting) >= self._max_waiting:
                raise EngineError(
                    f"{len(self._waiting)} callers wait already; try again in a moment"
                )
            self._waiting.append(me)
        try:
            while not isinstance(found, Live):
                with self._change:
                    earlier = self._waiting[: self._waiting.index(me)]
                    may_enter = all(one.for_gpu for one in earlier)
                    found = self._enter(get_spec(), me) if may_enter else OTHER_MODEL
                    if isinstance(found, str):
                        self._change.wait(HEARTBEAT)
                yield found
        finally:
            with self._change:
                if me in self._waiting:
                    self._waiting.remove(me)
                else:
                    self._users -= 1
                self._change.notify_all()

    @property
    def users(self) -> int:
        """How many callers use the engine or wait for it."""
        return self._users + len(self._waiting)

    def close(self, why: str = CLOSED) -> None:
        """End the engine, even if it is in use, and release the GPU; its callers are told `why`."""
        with self._change:
            if self.live is not None:
                self.live.close(why)
            if self._gpu_lock is not None:
                locks.release(self._gpu_lock)
            self.live = self._gpu_lock = None
            self._change.notify_all()

    def _enter(self, spec: EngineSpec, me: _Waiter) -> Live | str:
        """Count `me` as a user and return the engine; or return why it is not available now."""
        wants_gpu = self._on_gpu and spec.gpu_layers != 0
        same = self.live is not None and self.live.spec == spec and self.live.state != "closed"
        holder = gpu.lock_holder() if wants_gpu else None
        me.for_gpu = holder is not None and not (same and holder == APP)
        if not me.for_gpu and not same:
            if self._users:
                return OTHER_MODEL
            self.close()
            if wants_gpu:
                self._gpu_lock = gpu.try_lock(APP)
                if self._gpu_lock is None:  # somebody took it since `holder` was read
                    me.for_gpu, holder = True, gpu.lock_holder() or "another process"
        if me.for_gpu:
            return f"the GPU is used by, or reserved for, {holder}"
        if not same:
            self.live = Live(spec, self._max_waiting)
            if wants_gpu:
                threading.Thread(target=self._give_way, args=(self.live,), daemon=True).start()
        assert self.live is not None
        self._waiting.remove(me)
        self._users += 1
        self._change.notify_all()
        return self.live

    def _give_way(self, mine: Live) -> None:
        """Release the GPU once a run waits for it: when no reply is under way, or after GRACE."""
        while self.live is mine and not gpu.is_wanted():
            time.sleep(POLL)
        deadline = time.monotonic() + GRACE
        with self._change:
            while self.live is mine and self._users and time.monotonic() < deadline:
                self._change.wait(POLL)
            if self.live is mine:
                self.close(GPU_TAKEN)
