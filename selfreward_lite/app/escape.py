"""Safety of the page: text that a model writes never becomes markup; who may connect.

Text in boxes and table cells needs no escaping: Gradio shows it as it is. Toasts
(`widgets.errors_as_toasts`) and the bar of the run tab, which are HTML, escape by themselves.
"""

import re

from markdown_it import MarkdownIt

from selfreward_lite.system.errors import UserError

_PARSER = MarkdownIt("commonmark")
_CODE = re.compile(r"(?<!`)`(?!`)([^`\n]+)`(?!`)")
_OPENS = re.compile(r"<[A-Za-z/!?]|!\[")  # a tag or a picture, if a parser sees no code there
_FENCE = re.compile(r"`{3,}|~{3,}")
_LANGUAGE = re.compile(r"[\w+#.-]{1,30}")
_PICTURE = re.compile(r"!(?=\[)")
_MARKUP = re.compile(r"[&<>!*_\[\]`#~|\\$]")


def escape_markdown(text: str) -> str:
    """Return a text as Markdown that shows every character as it is.

    >>> escape_markdown("<b> *a_b* [c](d)")
    '&#60;b&#62; &#42;a&#95;b&#42; &#91;c&#93;(d)'
    """
    return _MARKUP.sub(lambda found: _number(found[0]), text)


def strip_tags(text: str) -> str:
    """Return a text as Markdown without tags and pictures; `html.unescape` reverses it.

    >>> strip_tags("a < b & ![c](d)")
    'a &lt; b &amp; &#33;[c](d)'
    """
    return _PICTURE.sub("&#33;", text.replace("&", "&amp;").replace("<", "&lt;"))


def markdown(text: str) -> str:
    """Return a text as Markdown with lists, emphasis and code, but without tags and pictures.

    Blocks of code are shown as they are. Each is written anew, between blank lines at the left
    edge, in a fence that is longer than any inside, and no other fence is left: so every parser
    sees the same blocks, and nothing else may hold a tag.

    >>> print(markdown("<b>bold</b> & `a < b` `<b>`\\n~~~c\\n#include <stdio.h>\\n~~~"))
    &lt;b>bold&lt;/b> &amp; `a < b` &#60;b&#62;
    <BLANKLINE>
    ```c
    #include <stdio.h>
    ```
    """
    text = re.sub(r"\r\n?", "\n", text)  # as the parser counts lines
    lines, parts, shown = text.split("\n"), [], 0
    for token in _PARSER.parse(text):
        if token.type in ("fence", "code_block") and token.map:
            parts.append(_escape_lines(lines[shown : token.map[0]]))
            parts.append(_fence(token.content, token.info))
            shown = token.map[1]
    parts.append(_escape_lines(lines[shown:]))
    return "\n\n".join(filter(None, parts))


def _escape_lines(lines: list[str]) -> str:
    """Lines that hold no block of code."""
    pieces = _CODE.split("\n".join(lines))  # every second one is code
    for place, piece in enumerate(pieces):
        if place % 2 == 0:
            pieces[place] = _FENCE.sub(lambda found: _number(found[0]), strip_tags(piece))
        else:  # in code, `&lt;` would be shown as it is written
            pieces[place] = escape_markdown(piece) if _OPENS.search(piece) else f"`{piece}`"
    return "".join(pieces).strip("\n")


def _fence(code: str, info: str) -> str:
    """A block of code in a fence that nothing in it can close."""
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    marks = "`" * max(3, longest + 1)
    language = _LANGUAGE.match(info.strip())
    code = code.removesuffix("\n")
    return f"{marks}{language[0] if language else ''}\n{code}\n{marks}"


def _number(text: str) -> str:
    """Every character of a text as its number in HTML."""
    return "".join(f"&#{ord(one)};" for one in text)


def check_auth(listen: bool, auth: str | None) -> tuple[str, str] | None:
    """Return user and password, or None. Raises UserError for --listen without a password."""
    name, _, password = (auth or "").partition(":")
    if auth and not (name and password):
        raise UserError("--auth: write it as USER:PASSWORD")
    if listen and not auth:
        raise UserError("--listen lets others on the network in: add --auth USER:PASSWORD")
    return (name, password) if auth else None
