"""One engine in memory at a time, for callers who want different ones; and off the card as soon as a run wants that.

Whoever wants another engine than the one that is open waits until nobody uses that, and nobody who comes later gets in before,
unless the one before waits for the card.
Knows: specs, whose turn it is, the card's lock. Does not know: runs, models, pages.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from selfreward_lite.engine.live import CLOSED, HEARTBEAT, Live
from selfreward_lite.system import gpu
from selfreward_lite.system.errors import EngineError

GRACE = 20.0  # seconds that replies under way may take to end once a run waits for the card
LOOK = 1.0  # seconds between two looks whether one does
APP = "the app"
GAVE_WAY = "a run has taken the card: ask again when it is done, or talk on the CPU"
OTHERS = "another base is in use: yours is loaded as soon as it is free"


@dataclass(eq=False)
class _Waiting:
    """Somebody who waits; `for_card` says whether it is for the card."""

    for_card: bool = False


@dataclass(eq=False)
class _Tenancy:
    """The card, had by the app, for as long as one engine is open."""

    handle: int


class EnginePool:
    """At most one `Live`. `on_card` says whether there is a card that an engine with layers on it would use."""

    def __init__(self, on_card: bool, most: int = 64) -> None:
        self.live: Live | None = None
        self._on_card, self._most = on_card, most
        self._change = threading.Condition()
        self._users = 0
        self._waiting: list[_Waiting] = []
        self._tenancy: _Tenancy | None = None

    def using(self, spec: Callable[[], dict[str, Any]]) -> Iterator[str | Live]:
        """Yield why one has to wait, every HEARTBEAT; then, once, the engine, which is one's own to ask until this is closed.

        `spec` is asked anew each time, since its answer may change meanwhile. Raises EngineError where too many wait.
        """
        me, found = _Waiting(), OTHERS
        with self._change:
            if len(self._waiting) >= self._most:
                raise EngineError(f"{len(self._waiting)} wait already; try again in a moment")
            self._waiting.append(me)
        try:
            while not isinstance(found, Live):
                with self._change:
                    before = self._waiting[: self._waiting.index(me)]
                    # Whoever waits for the card may wait for hours, and holds nobody up who does not.
                    found = (
                        self._enter(spec(), me) if all(one.for_card for one in before) else OTHERS
                    )
                    if isinstance(found, Live):
                        self._waiting.remove(me)
                        self._change.notify_all()
                    else:
                        self._change.wait(HEARTBEAT)
                if not isinstance(found, Live):
                    yield found
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
        """How many use the engine, or wait for it."""
        return self._users + len(self._waiting)

    def close(self) -> None:
        """End the engine, whoever uses it, and give the card back."""
        with self._change:
            self._close()
            self._change.notify_all()

    def _enter(self, spec: dict[str, Any], me: _Waiting) -> Live | str:
        """The engine, with one more user; or why it cannot be had now."""
        wants_card = self._on_card and bool(spec.get("gpu_layers"))
        me.for_card = False
        same = self.live is not None and self.live.spec == spec and self.live.state != "closed"
        if wants_card and (holder := gpu.holder()) and not (same and holder == APP):
            me.for_card = True
            return f"the card is held, or wanted, by {holder}"
        if not same:
            if self._users:
                return OTHERS
            self._close()
            if wants_card:
                handle = gpu.take(APP)
                if handle is None:  # at this very moment
                    me.for_card = True
                    return f"the card is held, or wanted, by {gpu.holder() or 'another process'}"
                self._tenancy = _Tenancy(handle)
                threading.Thread(target=self._give_way, args=(self._tenancy,), daemon=True).start()
            self.live = Live(spec, self._most)
        assert self.live is not None
        self._users += 1
        return self.live

    def _give_way(self, mine: _Tenancy) -> None:
        """Give the card back once a run waits for it: when nobody is being served, or after GRACE."""
        while self._tenancy is mine and not gpu.wanted():
            time.sleep(LOOK)
        deadline = time.monotonic() + GRACE
        with self._change:
            while self._tenancy is mine and self._users and time.monotonic() < deadline:
                self._change.wait(LOOK)
            if self._tenancy is mine:
                self._close(GAVE_WAY)

    def _close(self, why: str = CLOSED) -> None:
        if self.live is not None:
            self.live.close(why)
        self.live = None
        if self._tenancy is not None:
            gpu.release(self._tenancy.handle)
        self._tenancy = None
