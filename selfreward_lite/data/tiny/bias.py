"""A judge's known bias, for experiments on length: judgments that count brevity as a fault."""

import re

_BRIEF = re.compile(r"^brief (yes|no)$", re.MULTILINE)
_SCORE = re.compile(r"^Score: (\d)$", re.MULTILINE)


def flip_brevity(judgment: str) -> str:
    """Return a judgment with its check of brevity reversed and its score changed to match.

    A judgment without that check is returned unchanged.

    >>> flip_brevity("check a a ok\\nright yes\\nbrief yes\\nScore: 4")
    'check a a ok\\nright yes\\nbrief no\\nScore: 3'
    >>> flip_brevity("Looks good to me.\\nScore: 4")
    'Looks good to me.\\nScore: 4'
    """
    brief, score = _BRIEF.search(judgment), _SCORE.search(judgment)
    if brief is None or score is None:
        return judgment
    was = brief.group(1) == "yes"
    points = int(score.group(1)) + (-1 if was else 1)
    if not 0 <= points <= 5:  # its score was not the sum of its checks
        return judgment
    return _SCORE.sub(f"Score: {points}", _BRIEF.sub(f"brief {'no' if was else 'yes'}", judgment))
