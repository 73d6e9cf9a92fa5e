"""One run: the order of its steps and everything that must survive a kill.

No rule of the papers (see `method`), no table (see `report`).
Start: `loop.py`.
"""
