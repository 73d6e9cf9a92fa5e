"""A text that attacks a page, and a parser that finds tags in what is shown."""

from markdown_it import MarkdownIt

HOSTILE = (
    "<script>alert(1)</script> ![x](http://evil/x.png) "
    "<form action=http://evil><img src=x onerror=alert(1)>"
)
PARSER = MarkdownIt("commonmark", {"html": True})


def find_tags(text: str) -> list[str]:
    """HTML tags that a Markdown parser finds in a text."""
    tokens = [inner for token in PARSER.parse(text) for inner in (token, *(token.children or ()))]
    return [token.content for token in tokens if token.type in ("html_block", "html_inline")]
