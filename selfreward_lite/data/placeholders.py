"""Places of a template in a prompt (`{topic}`, `[TOPIC]`) whose value is in a field beside it.

Only names of fields that the row has count, so that a prompt about code stays one.
"""

import re
from collections.abc import Iterable

from selfreward_lite.data.fields import USED, is_answer, name_kind, normalise_name

_NAME = r"([^\W\d][\w -]{0,40}?)"
_SURE = rf"\{{\{{\s*{_NAME}\s*\}}\}}|%\({_NAME}\)s|\$\{{{_NAME}\}}"
# Not of LaTeX (`\boxed{answer}`), code (`a[name]`, `__name__`), a link or a tag that is closed.
_BRACES = rf"(?<![\w\\}}{{$%#])\{{\s*{_NAME}\s*\}}(?!\}})"
_LOOSE = (
    rf"(?<![\w\]])\[{_NAME}\](?![(\[:])|<{_NAME}>|(?<![\w\\$])\$([^\W\d]\w*)(?![\w$])"
    rf"|(?<!\w)__(?!(?:name|file|doc|version|author)__){_NAME}__(?!\w)"
)
_WAYS = re.compile(f"(?:{_SURE}|{_BRACES}|{_LOOSE})")
_SURE_WAYS = re.compile(_SURE)
_WITH_BRACES = re.compile(f"(?:{_SURE}|{_BRACES})")
_CODE = re.compile(
    r"```|=>|\(\)|;\s*$|^\s*(?:def|class|import|from|return|const|let|var|echo|print|#include)\b",
    re.MULTILINE,
)


def find_placeholder(prompt: str, names: Iterable[str]) -> tuple[str, str] | None:
    """Return a place that a field of the row should fill, and its name; None if there is none.

    `names` are those of the row's fields, as they are compared. An answer's name is more often that
    of a form to answer in (`<answer>`), and a label's (`name`) may be one of code.

    >>> find_placeholder("Write about {topic}.", ["topic"])
    ('{topic}', 'topic')
    >>> find_placeholder("Write your answer in <answer></answer>.", ["answer"]) is None
    True
    """
    beside = {*names} - USED
    if not beside:
        return None
    for found in _WAYS.finditer(prompt):
        written = next(filter(None, found.groups()))
        name = normalise_name(written)
        if name in beside and f"</{written}>" not in prompt and _is_meant(name, found[0], prompt):
            return found[0], name
    return None


def _is_meant(name: str, place: str, prompt: str) -> bool:
    if is_answer(name):
        way = _SURE_WAYS if "answer" in name else _WITH_BRACES
        return way.fullmatch(place) is not None
    return name_kind(name) != "harmless" or not _CODE.search(prompt)
