"""Token-id rows in, a LoRA adapter out.

Knows no scores and no store. torch is imported in `trainer`, `token_trainers`, `backends`,
`checkpoints` and `tiny_base.build` only.
Start: `rows.py`.
"""
