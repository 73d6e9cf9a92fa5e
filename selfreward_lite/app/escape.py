"""What keeps the page safe: a model's text as Markdown in which nothing is markup of its own, and who may come in.

Knows: which characters begin a tag, what needs a password. Does not know: pages. What is shown as plain text needs none of it.
"""

from __future__ import annotations

import html
import re

from selfreward_lite.system.errors import UserError

# What looks like code, though a Markdown parser may see it otherwise: so a tag cannot begin there either.
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
_TAG = re.compile(r"<(?=[A-Za-z/!?])")  # nothing else begins a tag
_PICTURE = re.compile(r"!(?=\[)")
_MARKUP = re.compile(r"[&<>!*_\[\]`#~|\\$]")


def escape_markdown(text: str) -> str:
    """Return a text as Markdown shows it letter by letter: names, and lines that may quote anybody's.

    >>> escape_markdown("<b> *a_b* [c](d)")
    '&#60;b&#62; &#42;a&#95;b&#42; &#91;c&#93;(d)'
    """
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", text)


def strip_tags(text: str) -> str:
    """Return a text as Markdown without tags and pictures; `said` undoes it.

    >>> strip_tags("a < b & ![c](d)")
    'a &lt; b &amp; &#33;[c](d)'
    """
    return _PICTURE.sub("&#33;", text.replace("&", "&amp;").replace("<", "&lt;"))


def unescape(shown: str) -> str:
    """Return the text that `tagless` made what is shown of.

    >>> unescape(strip_tags("a &lt; b < c ![d]"))
    'a &lt; b < c ![d]'
    """
    return html.unescape(shown)


def markdown(text: str) -> str:
    """Return a text as Markdown with its lists, its emphasis and its code, and without tags and pictures.

    In code a tag shows its `&lt;`; whatever else stands there is left as it is.

    >>> markdown("<b>bold</b> & `a < b` `<b>`")
    '&lt;b>bold&lt;/b> &amp; `a < b` `&lt;b>`'
    """
    parts = _CODE.split(text)
    for place, part in enumerate(parts):
        parts[place] = (
            _TAG.sub("&lt;", part) if place % 2 else strip_tags(part)
        )  # the odd ones are code
    return _TAG.sub("&lt;", "".join(parts))  # one that the parts make together


def check_auth(listen: bool, auth: str | None) -> tuple[str, str] | None:
    """Return user and password, None where there are none. Raises UserError where the page would be open to others without."""
    name, _, password = (auth or "").partition(":")
    if auth and not (name and password):
        raise UserError("--auth: write it as USER:PASSWORD")
    if listen and not auth:
        raise UserError("--listen lets others on the network in: give --auth USER:PASSWORD with it")
    return (name, password) if auth else None
