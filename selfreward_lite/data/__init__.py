"""What is read and kept: records, the run's SQLite store, downloads, prompt files, human rankings.

Never asks a model.
Start: `records.py`.
"""
