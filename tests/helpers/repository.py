"""Where the repository and the test helpers are."""

from pathlib import Path

HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]


def generated_block(page: str, name: str) -> str:
    """The generated part of a page in docs/, between its two comments."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return text.split(f"<!-- {name} -->\n\n")[1].split(f"\n<!-- /{name} -->")[0]
