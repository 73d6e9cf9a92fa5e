"""A model as tokens and files: chat format, HF folder, NF4, GGUF, and the proof that they agree.

Knows no run and no record.
Start: `chat_format.py`.
"""
