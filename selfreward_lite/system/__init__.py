"""The machine a run works on: errors, files, locks, GPUs, child processes.

Knows no model, record or setting.
Start: `errors.py`.
"""
