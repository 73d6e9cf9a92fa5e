"""The command line within the process of the tests, where starting another would take longer."""

import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from subprocess import CompletedProcess
from unittest.mock import patch

from selfreward_lite.__main__ import main

HANDLED = (signal.SIGTERM, signal.SIGALRM)


def call(*arguments: str) -> CompletedProcess[str]:
    """What `python -m selfreward_lite` with these arguments ends with and prints."""
    handlers = {one: signal.getsignal(one) for one in HANDLED}
    code, out, err = 0, StringIO(), StringIO()
    with (
        patch.object(sys, "argv", ["selfreward-lite", *arguments]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            for one, handler in handlers.items():
                signal.signal(one, handler)
    return CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
