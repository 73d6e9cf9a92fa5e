"""One engine in memory at a time, for callers who want different ones; and off the card as soon as a run wants that.

Whoever wants another engine than the one that is open waits until nobody uses that, and nobody who comes later gets in before.
Knows: specs, whose turn it is, the card's lock. Does not know: runs, models, pages.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from selfreward_lite import tenancy
from selfreward_lite.engines.live import HEARTBEAT, Live

GRACE = 20.0  # seconds that replies under way may take to end once a run waits for the card
LOOK = 1.0  # seconds between two looks whether one does
OTHERS = "another base is in use: yours is loaded as soon as it is free"


class Shared:
    """At most one `Live`. `on_card` says whether there is a card that an engine with layers on it would use."""

    def __init__(self, on_card: bool, most: int = 64) -> None:
        self.live: Live | None = None
        self._on_card, self._most = on_card, most
        self._change = threading.Condition()
        self._users = 0
        self._waiting: deque[object] = deque()
        self._card: int | None = None

    def using(self, spec: dict[str, Any]) -> Iterator[str | Live]:
        """Yield why one has to wait, every HEARTBEAT; then, once, the engine, which is one's own to ask until this is closed."""
        me, words = object(), OTHERS
        with self._change:
            self._waiting.append(me)
        inside = False
        try:
            while not inside:
                with self._change:
                    if self._waiting[0] is me:
                        found = self._enter(spec)
                        inside = isinstance(found, Live)
                        words = found if isinstance(found, str) else words
                    if not inside:
                        self._change.wait(HEARTBEAT)
                if not inside:
                    yield words
            with self._change:
                self._waiting.popleft()
                self._change.notify_all()
            assert isinstance(found, Live)
            yield found
        finally:
            with self._change:
                if inside:
                    self._users -= 1
                else:
                    self._waiting.remove(me)
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

    def _enter(self, spec: dict[str, Any]) -> Live | str:
        """The engine, with one more user; or why it cannot be had now."""
        if self._card is not None and tenancy.wanted():
            return f"{tenancy.holder() or 'a run'} wants the card"  # even the engine that is open: it is on its way out
        if self.live is None or self.live.spec != spec or self.live.state == "closed":
            if self._users:
                return OTHERS
            self._close()
            if self._on_card and spec.get("gpu_layers"):
                self._card = tenancy.take("the app")
                if self._card is None:
                    return f"the card is held by {tenancy.holder() or 'another process'}"
                threading.Thread(target=self._give_way, args=(self._card,), daemon=True).start()
            self.live = Live(spec, self._most)
        self._users += 1
        return self.live

    def _give_way(self, card: int) -> None:
        """Give the card back once a run waits for it: when nobody is being served, or after GRACE."""
        while self._card == card and not tenancy.wanted():
            time.sleep(LOOK)
        deadline = time.monotonic() + GRACE
        with self._change:
            while self._card == card and self._users and time.monotonic() < deadline:
                self._change.wait(LOOK)
            if self._card == card:
                self._close()

    def _close(self) -> None:
        if self.live is not None:
            self.live.close()
        self.live = None
        if self._card is not None:
            tenancy.release(self._card)
        self._card = None
