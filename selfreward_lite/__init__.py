"""A language model that improves itself by judging its own answers and its own judgments, on one card.

Importing this package is cheap: it pulls in neither torch nor llama.cpp nor gradio.
"""

from __future__ import annotations

__version__ = "0.1.0"
