"""Small message trees in OASST's schema, with ranked answers."""

from selfreward_lite.data import ranked

RUN = "seed 0"


def make_tree(name: str, *answers: tuple[str, int | None], **changes) -> list[dict]:
    base = {
        "lang": "en",
        "deleted": False,
        "review_result": True,
        "synthetic": False,
        "tree_state": "ready_for_export",
    }
    first = {
        "message_id": name,
        "parent_id": None,
        "role": "prompter",
        "text": f"Question {name}?",
        "rank": None,
        **base,
        **changes,
    }
    return [
        first,
        *(
            {
                "message_id": f"{name}-{i}",
                "parent_id": name,
                "role": "assistant",
                "text": text,
                "rank": rank,
                **base,
            }
            for i, (text, rank) in enumerate(answers)
        ),
    ]


def read_trees(rows):
    """Return the ranked prompts, and by reason how many rows were left out."""
    found, outcome = ranked.build_ranked_prompts(rows, RUN)
    return found, outcome.drops
