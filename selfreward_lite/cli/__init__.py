"""The command line, one file per group of commands.

It parses and prints: tables to stderr, one JSON document as the last line of stdout. A computation
here is a mistake.
Start: `main.py`.
"""
