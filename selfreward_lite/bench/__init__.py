"""Commands that measure; each writes its figures as it goes and can be resumed.

Nothing else may import it but `cli`.
Start: `paper_table.py`, `engine.py`.
"""
