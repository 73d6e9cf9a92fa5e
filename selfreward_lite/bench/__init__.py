"""Commands that measure. The paper table and `tiny` resume; `card` writes each figure as it comes.

Nothing else may import it but `cli`.
Start: `paper_table.py`, `engine.py`.
"""

from collections.abc import Callable

Say = Callable[[str], None]  # prints a line
