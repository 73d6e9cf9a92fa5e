"""New prompts: the model continues a list of tasks, and filters keep some.

Kept is what is new and can be answered in text. The few-shot form and the filters are those of
Self-Instruct (arXiv 2401.10020, section 2.2 and appendix; arXiv 2212.10560). Generated
demonstrations come from earlier iterations only, so that every candidate's question is fixed before
the stage starts, and a resumed run asks the same.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from selfreward_lite.config.settings import Prompts
from selfreward_lite.data.checkable.requests import add_constraints
from selfreward_lite.data.records import Candidate, Outcome, Prompt, seed_for
from selfreward_lite.method.parsing import parse_prompts
from selfreward_lite.method.roles import NO_TEXT_REASONS, AskGenerator, Role
from selfreward_lite.method.similarity import NearDuplicates
from selfreward_lite.method.templates import fill_template

# Tasks that need more than text, after Self-Instruct's list.
OTHER_MEDIA = re.compile(
    r"\b(images?|graphs?|pictures?|photos?|files?|maps?|draw|plot|go to|videos?|audio|music"
    r"|flowcharts?|diagrams?)\b",
    re.IGNORECASE,
)
_PROGRAM = re.compile(
    r"^\W*(?:\w+\W+){0,3}?(write|create|implement|build|code)\b.{0,40}\b(program|script|code|function)\b",
    re.IGNORECASE,
)


def ask_for_prompt(
    index: int, role: Role, settings: Prompts, human: Sequence[str], own: Sequence[str]
) -> AskGenerator:
    """Ask for candidate number `index`: show numbered tasks, and leave the next one open.

    Shown are `human` tasks and the model's `own` ones of earlier iterations.
    """
    record_id = role.make_id(Candidate, index)
    rng = random.Random(seed_for(role.seed, f"shots {record_id}"))
    own_count = min(settings.own_demonstrations, len(own))
    human_count = settings.seed_demonstrations + settings.own_demonstrations - own_count
    shown = rng.sample(human, min(human_count, len(human))) + rng.sample(own, own_count)
    rng.shuffle(shown)
    listed = "\n".join(f"{number}. {task}" for number, task in enumerate(shown, 1))
    content = fill_template(role.templates, "new_prompts", tasks=listed)
    ((completion,),) = yield [
        role.make_request(content, record_id, [record_id], continue_with=f"{len(shown) + 1}.")
    ]
    finish, text = completion.finish, completion.text.strip()
    if finish in NO_TEXT_REASONS:
        return Outcome(drops=Counter([NO_TEXT_REASONS[finish]]))
    return Outcome([Candidate(record_id, role.iteration, role.model, index, text, finish)])


def filter_candidates(
    candidates: Iterable[Candidate],
    settings: Prompts,
    *,
    id_namespace: str,
    iteration: int,
    known: Sequence[str],
    held_out: Sequence[str],
    seed: int = 0,
) -> Outcome:
    """Return at most `settings.count` prompts and, by reason, how many candidates were dropped.

    `known` are the human tasks and the prompts of earlier iterations, `held_out` the evaluation
    prompts. A candidate too similar to any of them, or to one kept before it, is dropped. What is
    kept gets constraints, if it should; `seed` chooses them.
    """
    kept: list[Prompt] = []
    drops = Counter[str]()
    seen = NearDuplicates(known, settings.max_similarity, settings.max_overlap)
    secret = NearDuplicates(held_out, settings.max_similarity, settings.max_overlap)
    for candidate in candidates:
        if len(kept) == settings.count:
            break
        text, reason = _read_candidate(candidate, settings)
        if not reason and secret.contains_similar(text):
            reason = "like an evaluation prompt"
        if not reason and seen.contains_similar(text):
            reason = "like a prompt before it"
        if reason:
            drops[reason] += 1
            continue
        made = Prompt.make(id_namespace, iteration, "generated", len(kept), text)
        kept.append(_constrain(made, settings, seed))
        seen.add(text)
    return Outcome(kept, drops)


def count_different(texts: Iterable[str]) -> int:
    """Return how many prompts are left when repeated ones are taken out, as `import_prompts` does.

    >>> count_different(["Sort these.", " sort  THESE. ", "Why?"])
    2
    """
    return len(set(map(_plain, texts)))


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def import_prompts(
    texts: Iterable[str],
    settings: Prompts,
    *,
    id_namespace: str,
    held_out: Iterable[str],
    seed: int = 0,
) -> Outcome:
    """Return the user's prompts by iteration; drop repeated and held-out ones.

    They get constraints, if they should; `seed` chooses them.
    """
    kept: list[Prompt] = []
    drops = Counter[str]()
    seen: set[str] = set()
    secret = NearDuplicates(held_out, settings.max_similarity, settings.max_overlap)
    for text in map(str.strip, texts):
        plain = _plain(text)
        if plain in seen:
            drops["same prompt again"] += 1
        elif secret.contains_similar(text):
            drops["like an evaluation prompt"] += 1
        else:
            seen.add(plain)
            before, index = divmod(len(kept), settings.count)
            made = Prompt.make(id_namespace, before + 1, "imported", index, text)
            kept.append(_constrain(made, settings, seed))
    return Outcome(kept, drops)


def _constrain(prompt: Prompt, settings: Prompts, seed: int) -> Prompt:
    return add_constraints(prompt, seed, settings.constraints) if settings.constraints else prompt


def _read_candidate(candidate: Candidate, settings: Prompts) -> tuple[str, str | None]:
    """Return a candidate's task, and why it is unfit, if it is."""
    tasks = parse_prompts(candidate.text, cut=candidate.finish == "length")
    if not tasks:
        return "", "cut or empty"
    text = tasks[0]  # a model may continue the list: later tasks are left out
    words = len(text.split())
    if words < settings.min_words:
        return text, "too short"
    if words > settings.max_words:
        return text, "too long"
    if not text[0].isascii() or not text[0].isalnum():
        return text, "begins with a sign"
    if OTHER_MEDIA.search(text):
        return text, "needs more than text"
    return text, "asks for a program" if _PROGRAM.search(text) else None
