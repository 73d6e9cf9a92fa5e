"""A text of a model as Markdown in which nothing is markup of its own: no tag, no picture, no form.

Knows: which characters begin a tag. Does not know: pages. What a page shows as plain text needs none of it.
"""

from __future__ import annotations

import re

_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
_PICTURE = re.compile(r"!(?=\[)")


def markdown(text: str) -> str:
    """Return a text whose tags are letters and whose pictures are links, outside code, where everything is letters anyway.

    >>> markdown("<b>bold</b> & `<b>`")
    '&lt;b>bold&lt;/b> &amp; `<b>`'
    >>> markdown("![x](http://evil/x.png)")
    '&#33;[x](http://evil/x.png)'
    """
    parts = _CODE.split(text)
    for place in range(0, len(parts), 2):  # the odd parts are code
        parts[place] = _PICTURE.sub("&#33;", parts[place].replace("&", "&amp;").replace("<", "&lt;"))
    return "".join(parts)
