"""Self-Rewarding and Meta-Rewarding as pure functions and generators.

No clocks, models or globals, and no files but its own templates and canaries; torch, sqlite3 and
os are banned here.
Start: `judgments.py`.

The texts that models are asked with, such as the judge's rubric, are `prompts/*/judge.txt` and its
neighbors.

Data flows new_prompts → responses → judgments → response_pairs → battles → ratings →
judgment_pairs. A function `ask_for_…` is a generator over one item: it yields requests and receives
their completions. The others map records to records.
"""
