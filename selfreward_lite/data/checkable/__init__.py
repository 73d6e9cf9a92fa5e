"""Checkable requests: everyday topics with constraints that a program can check exactly.

Read in this order: `kinds` (the constraints and their checks), `requests` (a topic and one to three
constraints), `score` (an answer's exact score, 0 to 5), `answers` (answers written by program),
`ranked` (some of them, ranked, to measure a judge with). Nothing here asks a model.
"""
