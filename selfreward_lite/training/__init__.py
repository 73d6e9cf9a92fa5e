"""Token-id rows in, a LoRA adapter out.

Knows no scores and no store. torch is imported in `trainer`, `backends`, `checkpoints` only.
Start: `rows.py`.
"""
