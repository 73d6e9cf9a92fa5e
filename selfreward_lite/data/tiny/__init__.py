"""The tiny world: letter tasks with an exact score, for a model of a million parameters.

Read in this order: `tasks` (the questions), `answers` (good and bad answers), `score` (their exact
score), `ranked` (the human data of this world), `bias` (of a judge, for experiments). `model/` is
the base model; `training/tiny_base` made it.
"""

from pathlib import Path

TINY_MODEL = Path(__file__).parent / "model"
