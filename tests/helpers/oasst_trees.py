"""Message trees in the schema of OpenAssistant/oasst1, with the faults of real ones.

They are drawn from a seed: ranked answers over two turns, deleted messages, missing ranks, ties,
other languages, trees that are still growing, rejected reviews, empty texts, repeated prompts.
"""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Message = dict[str, Any]
SUBJECTS = (
    "rivers",
    "bread",
    "clocks",
    "glaciers",
    "violins",
    "tides",
    "maps",
    "bees",
    "steam",
    "ink",
    "kites",
    "salt",
)
VERBS = (
    "Explain",
    "Describe",
    "Compare",
    "Summarise",
    "Question",
    "Praise",
    "Invent a story about",
    "Give three facts on",
)
TOXICITY = (
    "toxicity",
    "severe_toxicity",
    "obscene",
    "identity_attack",
    "insult",
    "threat",
    "sexual_explicit",
)
LABELS = ("spam", "quality", "humor", "creativity", "violence")


@dataclass
class Forest:
    """All messages; what a reader must keep (prompt → answers, best first), and drops by reason."""

    messages: list[Message] = field(default_factory=list)
    kept: dict[str, list[str]] = field(default_factory=dict)
    drops: Counter[str] = field(default_factory=Counter)


def forest(trees: int, seed: int = 0, *, words: int = 12) -> Forest:
    """Draw trees; three of five are complete, each of the others has one fault of real data."""
    rng, grown = random.Random(seed), Forest()
    for number in range(trees):
        grow = rng.choice(FAULTS) if number % 5 > 2 else _whole
        grow(_Tree(grown, rng, number, words))
    rng.shuffle(grown.messages)
    return grown


class _Tree:
    """One tree under construction."""

    def __init__(self, forest: Forest, rng: random.Random, number: int, words: int) -> None:
        self.forest, self.rng, self.number, self.words = forest, rng, number, words
        subject, verb = rng.choice(SUBJECTS), rng.choice(VERBS)
        self.prompt = f"{verb} {subject}, case {number}, in your own words."

    def text(self) -> str:
        return " ".join(self.rng.choices(SUBJECTS, k=self.rng.randint(3, self.words))) + "."

    def add(self, name: str, parent: str | None, text: str, **changes: Any) -> str:
        rng, key = self.rng, f"{self.number:05}-{name}"
        self.forest.messages.append(
            {
                "message_id": key,
                "parent_id": parent,
                "user_id": f"user-{rng.randint(0, 99)}",
                "created_date": "2023-02-05T14:23:50.983374+00:00",
                "text": text,
                "role": "prompter" if parent is None else "assistant",
                "lang": "en",
                "review_count": 3,
                "review_result": True,
                "deleted": False,
                "rank": None,
                "synthetic": False,
                "model_name": None,
                "detoxify": dict.fromkeys(TOXICITY, rng.random() / 100)
                if rng.random() < 0.9
                else None,
                "message_tree_id": f"{self.number:05}-p",
                "tree_state": "ready_for_export",
                "emojis": {"name": ["+1"], "count": [rng.randint(1, 9)]},
                "labels": {
                    "name": list(LABELS),
                    "value": [rng.random() for _ in LABELS],
                    "count": [3] * len(LABELS),
                },
                **changes,
            }
        )
        return key

    def answers(self, count: int, parent: str, **changes: Any) -> list[str]:
        """Add ranked answers in another order; return their texts, best first."""
        ranks = list(range(count))
        self.rng.shuffle(ranks)
        texts = [self.text() for _ in ranks]
        for place, rank in enumerate(ranks):
            self.add(f"a{place}", parent, texts[place], rank=rank, **changes)
        return [text for _, text in sorted(zip(ranks, texts, strict=True))]

    def deepen(self, parent: str) -> None:
        """Add a second turn with two ranked answers, which no reader uses."""
        again = self.add("q", parent, self.text(), role="prompter")
        for rank in range(2):
            self.add(f"d{rank}", again, self.text(), rank=rank)
        self.forest.drops["message of a later turn"] += 3


def _whole(tree: _Tree) -> None:
    root = tree.add("p", None, tree.prompt)
    tree.forest.kept[tree.prompt] = tree.answers(tree.rng.randint(2, 5), root)
    if tree.rng.random() < 0.5:
        tree.deepen(f"{tree.number:05}-a0")


def _other_language(tree: _Tree) -> None:
    root = tree.add("p", None, "Erkläre Flüsse.", lang="de")
    tree.answers(3, root, lang="de")
    tree.forest.drops["not English"] += 4


def _deleted_prompt(tree: _Tree) -> None:
    tree.answers(2, tree.add("p", None, tree.prompt, deleted=True))
    tree.forest.drops["deleted, rejected or synthetic"] += 1
    tree.forest.drops["answer to a prompt that is left out"] += 2


def _deleted_answer(tree: _Tree) -> None:
    root = tree.add("p", None, tree.prompt)
    kept = tree.answers(3, root)
    tree.add("x", root, tree.text(), rank=3, deleted=True)
    tree.add("y", root, tree.text(), rank=4, review_result=False)
    tree.add("z", root, tree.text(), rank=5, synthetic=True, model_name="another")
    tree.forest.kept[tree.prompt] = kept
    tree.forest.drops["deleted, rejected or synthetic"] += 3


def _missing_ranks(tree: _Tree) -> None:
    root = tree.add("p", None, tree.prompt)
    kept = tree.answers(2, root)
    tree.add("x", root, tree.text())
    tree.forest.kept[tree.prompt] = kept
    tree.forest.drops["answer without a rank"] += 1


def _never_ranked(tree: _Tree) -> None:
    root = tree.add("p", None, tree.prompt)
    tree.add("a0", root, tree.text())
    tree.add("a1", root, tree.text())
    tree.forest.drops["answer without a rank"] += 2
    tree.forest.drops["fewer than two ranked answers"] += 1


def _one_answer(tree: _Tree) -> None:
    tree.add("a0", tree.add("p", None, tree.prompt), tree.text(), rank=0)
    tree.forest.drops["fewer than two ranked answers"] += 1
    tree.forest.drops["answer to a prompt that is left out"] += 1


def _tie(tree: _Tree) -> None:
    root = tree.add("p", None, tree.prompt)
    tree.add("a0", root, "Alone at the bottom.", rank=1)
    tree.add("a1", root, "Same words, same rank.", rank=0)
    tree.add("a2", root, "Same words, same rank.", rank=0)
    tree.forest.kept[tree.prompt] = ["Same words, same rank.", "Alone at the bottom."]
    tree.forest.drops["answer of the same rank as another"] += 1


def _growing(tree: _Tree) -> None:
    tree.add("p", None, tree.prompt, tree_state="growing")
    tree.forest.drops["tree not ready for export"] += 1


def _empty(tree: _Tree) -> None:
    root = tree.add("p", None, tree.prompt)
    kept = tree.answers(2, root)
    tree.add("x", root, "  ", rank=2)
    tree.forest.kept[tree.prompt] = kept
    tree.forest.drops["empty text"] += 1


def _no_answer(tree: _Tree) -> None:
    tree.add("p", None, tree.prompt)
    tree.forest.drops["fewer than two ranked answers"] += 1


FAULTS: tuple[Callable[[_Tree], None], ...] = (
    _other_language,
    _deleted_prompt,
    _deleted_answer,
    _missing_ranks,
    _never_ranked,
    _one_answer,
    _tie,
    _growing,
    _empty,
    _no_answer,
)

# -- files ----------


def features() -> Any:
    """The columns of OpenAssistant/oasst1, with their types."""
    from datasets import Features, Value

    text, whole, real, truth = Value("string"), Value("int32"), Value("float64"), Value("bool")
    kinds = {
        "message_id": text,
        "parent_id": text,
        "user_id": text,
        "created_date": text,
        "text": text,
        "role": text,
        "lang": text,
        "review_count": whole,
        "review_result": truth,
        "deleted": truth,
        "rank": whole,
        "synthetic": truth,
        "model_name": text,
        "detoxify": dict.fromkeys(TOXICITY, real),
        "message_tree_id": text,
        "tree_state": text,
        "emojis": {"name": [text], "count": [whole]},
        "labels": {"name": [text], "value": [real], "count": [whole]},
    }
    return Features(kinds)


def write_hub_folder(folder: Path, messages: list[Message]) -> Path:
    """Write messages as the hub has them: two Parquet splits under data/."""
    from datasets import Dataset

    cut = len(messages) * 19 // 20
    for name, part in (("train", messages[:cut]), ("validation", messages[cut:])):
        path = folder / "data" / f"{name}-00000-of-00001-0123456789abcdef.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(part, features=features()).to_parquet(str(path))
    return folder


def write_parquet(path: Path, messages: list[Message]) -> Path:
    from datasets import Dataset

    Dataset.from_list(messages, features=features()).to_parquet(str(path))
    return path


def write_jsonl(path: Path, messages: Iterable[Message]) -> Path:
    path.write_text("".join(json.dumps(message) + "\n" for message in messages), encoding="utf-8")
    return path


def write_csv(path: Path, messages: list[Message]) -> Path:
    plain = [
        name for name, value in messages[0].items() if name not in ("detoxify", "emojis", "labels")
    ]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, plain, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(messages)
    return path
