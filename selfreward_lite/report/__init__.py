"""A finished or running run as numbers, tables, figures, pages.

Read-only: writes no store, asks no model, imports nothing of `run`.
Start: `summary.py`.
"""
