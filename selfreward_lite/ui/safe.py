"""What keeps the page safe: a model's text as Markdown in which nothing is markup of its own, and who may come in.

Knows: which characters begin a tag, what needs a password. Does not know: pages. What is shown as plain text needs none of it.
"""

from __future__ import annotations

import re

from selfreward_lite.errors import UserError

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


def door(listen: bool, auth: str | None) -> tuple[str, str] | None:
    """Return user and password, None where there are none. Raises UserError where the page would be open to others without."""
    name, _, password = (auth or "").partition(":")
    if auth and not (name and password):
        raise UserError("--auth: write it as USER:PASSWORD")
    if listen and not auth:
        raise UserError("--listen lets others on the network in: give --auth USER:PASSWORD with it")
    return (name, password) if auth else None
