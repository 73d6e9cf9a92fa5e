"""The tiny world: the same loop on a model of a million parameters, in a world where quality can be computed exactly.

Reading order: `tasks` (what is asked), `answers` (how it is answered, well or badly), `score` (what that is worth),
`corpus` and `tokenizer` and `build` (how the base model in `model/` was made), `ranked` (the human data it stands in for).
"""

