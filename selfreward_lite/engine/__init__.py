"""Token ids in, completions out, many at once, in a child process that may crash.

Knows no role or score.
Start: `api.py`.
"""

from selfreward_lite.engine.api import Completion, LlamaSpec, Request, Sampling
from selfreward_lite.engine.process import ProcessEngine

__all__ = ["Completion", "LlamaSpec", "ProcessEngine", "Request", "Sampling"]
