"""One file a command.

Parses and prints; a computation here is a mistake. The last line of stdout is JSON.
Start: `main.py`.
"""
