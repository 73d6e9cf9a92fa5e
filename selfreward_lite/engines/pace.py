"""One thread or all of them: which is faster for a tiny model, found while it works.

Knows: how long steps took with either. Does not know: what a step computes. For a large model all cores are always right. A
tiny one is nearly twice as fast on two idle cores as on one, and 2 to 18 times slower where something else wants the second
core, since every layer waits for both (measured). So it begins with one thread, tries all of them for a few steps now and then,
and stays with what was faster. The arithmetic of a step is the same either way.
"""

from __future__ import annotations

import os
from collections import deque
from statistics import median

TRIAL = 5  # steps that are compared
FIRST_WAIT, LONGEST_WAIT = 16, 1024  # steps from one trial to the next; doubled when a trial was lost
ALARM = 3.0  # so many times slower than when it was chosen, and the other is tried at once


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pace:
    """Says how many threads the next step is to have, from what the last ones took."""

    def __init__(self, most: int) -> None:
        self.threads = 1
        self._other = most
        self._recent: deque[float] = deque(maxlen=TRIAL)
        self._trial: list[float] = []
        self._on_trial = False
        self._usual = 0.0  # seconds of a step when the present number was chosen
        self._wait = self._left = FIRST_WAIT

    def took(self, seconds: float) -> int:
        """Book a step that was computed with `threads`; return how many the next one is to have."""
        if self._other == self.threads:
            return self.threads
        if self._on_trial:
            self._trial.append(seconds)
            if len(self._trial) == TRIAL:
                self._decide()
            return self.threads
        self._recent.append(seconds)
        self._left -= 1
        slow = self._usual and len(self._recent) == TRIAL and median(self._recent) > ALARM * self._usual
        if (self._left <= 0 or slow) and len(self._recent) == TRIAL:
            self._on_trial, self._trial = True, []
            self.threads, self._other = self._other, self.threads
        return self.threads

    def _decide(self) -> None:
        """Keep the number on trial if it was faster; the median, since a batch that begins a prompt is larger than others."""
        self._on_trial = False
        tried, before = median(self._trial), median(self._recent)
        if tried < before:
            self._wait, self._usual = FIRST_WAIT, tried
            self._recent = deque(self._trial, maxlen=TRIAL)
        else:
            self.threads, self._other = self._other, self.threads
            self._wait, self._usual = min(2 * self._wait, LONGEST_WAIT), before
        self._left = self._wait
