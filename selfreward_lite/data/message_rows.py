"""A message of a made-up conversation in OASST's schema, as ranked data that a program writes."""

from typing import Any


def make_message(
    message_id: str,
    parent: str | None,
    text: str,
    rank: int | None,
    *,
    author: str,
    created: str,
    reviews: int = 0,
) -> dict[str, Any]:
    """Return a row: a request without a `parent`, or a ranked answer to one (0 is the best)."""
    return {
        "message_id": message_id,
        "parent_id": parent,
        "user_id": author,
        "created_date": created,
        "text": text,
        "role": "prompter" if parent is None else "assistant",
        "lang": "en",
        "review_count": reviews,
        "review_result": True,
        "deleted": False,
        "rank": rank,
        "synthetic": False,
        "model_name": None,
        "message_tree_id": parent or message_id,
        "tree_state": "ready_for_export",
    }
