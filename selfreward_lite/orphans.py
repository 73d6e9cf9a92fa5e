"""A child process that ends with its parent: nobody uses what an orphan makes, it would only hold memory or the card.

Knows: that a pipe closes when its other end dies, however it dies. Does not know: what the child does.
"""

from __future__ import annotations

import os
import sys
import threading


def end_with_parent() -> None:
    """From now on, the end of standard input ends this process at once. The parent must keep its end open."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
