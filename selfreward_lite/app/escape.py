"""Safety of the page: text that a model writes never becomes markup; who may connect.

Text in boxes and table cells needs no escaping: Gradio shows it as it is. Toasts
(`widgets.errors_as_toasts`) and the bar of the run tab, which are HTML, escape by themselves.
"""

import re

from selfreward_lite.system.errors import UserError

# What looks like code. A Markdown parser may see it otherwise, so no tag may begin in it either.
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
_TAG = re.compile(r"<(?=[A-Za-z/!?])")  # nothing else begins a tag
_PICTURE = re.compile(r"!(?=\[)")
_MARKUP = re.compile(r"[&<>!*_\[\]`#~|\\$]")


def escape_markdown(text: str) -> str:
    """Return a text as Markdown that shows every character as it is.

    >>> escape_markdown("<b> *a_b* [c](d)")
    '&#60;b&#62; &#42;a&#95;b&#42; &#91;c&#93;(d)'
    """
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", text)


def strip_tags(text: str) -> str:
    """Return a text as Markdown without tags and pictures; `html.unescape` reverses it.

    >>> strip_tags("a < b & ![c](d)")
    'a &lt; b &amp; &#33;[c](d)'
    """
    return _PICTURE.sub("&#33;", text.replace("&", "&amp;").replace("<", "&lt;"))


def markdown(text: str) -> str:
    """Return a text as Markdown with lists, emphasis and code, but without tags and pictures.

    In code, a tag is shown with `&lt;`; everything else is left as it is.

    >>> markdown("<b>bold</b> & `a < b` `<b>`")
    '&lt;b>bold&lt;/b> &amp; `a < b` `&lt;b>`'
    """
    parts = _CODE.split(text)
    parts[::2] = map(strip_tags, parts[::2])  # every second part is code
    return _TAG.sub("&lt;", "".join(parts))  # in code, and where two parts together make a tag


def check_auth(listen: bool, auth: str | None) -> tuple[str, str] | None:
    """Return user and password, or None. Raises UserError for --listen without a password."""
    name, _, password = (auth or "").partition(":")
    if auth and not (name and password):
        raise UserError("--auth: write it as USER:PASSWORD")
    if listen and not auth:
        raise UserError("--listen lets others on the network in: add --auth USER:PASSWORD")
    return (name, password) if auth else None
