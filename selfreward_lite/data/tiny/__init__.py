"""The tiny world: the same loop on a model of a million parameters, in a world where quality can be computed exactly.

Reading order: `tasks` (what is asked), `answers` (how it is answered, well or badly), `score` (what that is worth),
`corpus` (what the base learnt from), `ranked` (what plays the human data), `bias` (of a judge, for experiments),
`tokenizer` and `build` (how `model/` was made).
"""

from __future__ import annotations

from pathlib import Path

TINY_MODEL = Path(__file__).parent / "model"
