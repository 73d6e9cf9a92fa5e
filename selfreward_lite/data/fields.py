"""The names of fields in rows of the user's data, by what they hold.

Names are compared in lower case, with `_` for spaces and hyphens and between words: `System Prompt`
and `systemPrompt` are `system_prompt`. docs/data.md says which known data set has which of them.
"""

import re
from functools import lru_cache
from typing import Literal

# A whole conversation. What stands before its first answer is the prompt.
CHATS = ("messages", "conversations", "conversation")
# Conversations too, where they hold a list; other data keep numbers or texts under these names.
LISTS = ("turns", "data")
# The prompt itself: the first of these that a row has. The others may only repeat it.
PROMPTS = ("prompt", "instruction", "question", "query", "problem", "inputs", "input", "text")
# Put before the prompt.
SYSTEM = (
    *("system", "system_prompt", "system_message", "system_instruction"),
    *("system_instructions", "system_msg", "sys_prompt", "sys"),
)
# Put behind the prompt, in this order. `instances` are those of self-instruct's seed tasks.
MATERIAL = ("input", "context", "instances")
# An answer that begins with its prompt, where no field above holds one (Anthropic's HH).
ANSWER = "chosen"
# They say whether a row is a prompt, and one to use.
STATE = ("parent_id", "role", "deleted")
ASKERS = ("prompter", "user", "human")  # roles of a prompt
# A message in OASST's schema.
MESSAGE = ("message_id", "parent_id", "text", "role", "rank")
MESSAGE_STATE = ("lang", "deleted", "review_result", "synthetic", "tree_state")
# What a prompt is made of; and all that is read, for ranked data too.
USED = frozenset((*CHATS, *LISTS, *PROMPTS, *SYSTEM, *MATERIAL, ANSWER, *STATE))
READ = USED | {*MESSAGE, *MESSAGE_STATE}

# Of fields that no prompt is made of, these names, or names with these words, belong to the task.
# The first list that has a name decides.
_TASK = (
    *("test_list", "file", "files", "attachments"),
    *("output_format", "answer_format", "response_format", "output_schema"),
)
# In which language an answer should be.
_LANGUAGE = re.compile(
    r"(?:tgt|target|to|dest|output|response|answer|reply)_lang(?:uage)?(?:_code)?"
)
# Lists of numbers under these names are a task's too; under others they are somebody's figures.
NUMBERS = ("numbers", "nums", "rows", "cells", "array", "arrays", "matrix", "operands")
_CHOICES = (
    *("choice", "choices", "option", "options", "ending", "endings", "distractor", "distractors"),
    *("opa", "opb", "opc", "opd", "ope", "mc", "candidates"),
)
_LIMITS = ("limit", "limits")
_BEFORE = (
    *("history", "histories", "previous", "prior"),
    *("image", "images", "picture", "pictures", "photo", "photos", "img"),
    *("audio", "audios", "video", "videos"),
)
# The last word of a name that labels its row; and words that do it anywhere.
_LABELS = (
    *("key", "name", "names", "type", "types", "kind", "count", "counts", "length", "len", "size"),
    *("tokens", "num", "url", "urls", "uri", "link", "category", "categories", "domain", "domains"),
    *("class", "classes", "cluster", "subset", "split", "dataset", "collection", "version"),
    *("model", "models", "generator", "status", "state", "date", "time", "timestamp", "at"),
    *("author", "license", "licence", "tag", "tags", "topics", "difficulty", "level", "weight"),
    *("weights", "seed", "temperature", "embedding", "embeddings", "flag", "flags", "order"),
    *("header", "headers", "ip", "views", "ability", "info", "kwargs", "config", "configs"),
    *("meta", "metadata", "emojis", "detoxify", "rubric", "rubrics", "checklist"),
)
_LABELS_ANYWHERE = (
    *("id", "ids", "uid", "uuid", "guid", "hash", "hashed", "idx", "index", "lang", "language"),
    *("languages", "country", "labelling", "labeling", "moderation", "toxic", "toxicity"),
)
_ANSWERS = (
    *("answer", "answers", "output", "outputs", "response", "responses", "completion"),
    *("completions", "target", "targets", "label", "labels", "chosen", "rejected", "solution"),
    *("solutions", "reference", "references", "gold", "generation", "generations", "generated"),
    *("reply", "replies", "prediction", "predictions", "predicted", "correct", "incorrect"),
    *("thinking", "thought", "thoughts", "reasoning", "rationale", "rationales", "explanation"),
    *("explanations", "cot", "highlights", "summary", "summaries", "feedback", "critique"),
    *("critiques", "judgment", "judgement", "judge", "verdict", "winner", "vote", "votes"),
    *("score", "scores", "rating", "ratings", "rank", "ranking", "quality", "reward", "rewards"),
    *("preference", "preferences", "annotation", "annotations", "annotator", "annotators"),
    *("test", "tests"),
)
_SOURCES = ("original_question", "original_prompt", "original_instruction", "original_query")
_MATERIALS = (
    *("demonstration", "demonstrations", "shot", "shots", "example", "examples", "passage"),
    *("passages", "document", "documents", "doc", "docs", "article", "articles", "paragraph"),
    *("paragraphs", "story", "premise", "hypothesis", "background", "knowledge", "evidence"),
    *("context", "contexts", "sentence", "sentences", "dialogue", "dialogues", "dialog", "table"),
    *("tables", "code", "snippet", "snippets", "essay", "email", "review", "schema", "content"),
    *("contents", "body", "selftext", "fact", "facts", "tool", "tools", "function", "functions"),
    *("constraint", "constraints", "requirement", "requirements", "persona", "input", "inputs"),
    *("messages", "hint", "hints", "text", "texts", "instructions", "guideline", "guidelines"),
    *("rules", "definition", "definitions", "preamble", "directive", "directives"),
)
# Lists of labels under these names say where a row is from.
SOURCES = ("source", "sources")
# Of a conversation they are the name. Of a `text` they are the first part.
TITLES = ("title", "subject", "headline")

Kind = Literal["used", "task", "number", "harmless", "unknown"]


@lru_cache(4096)
def normalise_name(name: str) -> str:
    """Return the name of a field as it is compared.

    >>> normalise_name(" System Prompt"), normalise_name("PROMPT"), normalise_name("systemPrompt")
    ('system_prompt', 'prompt', 'system_prompt')
    """
    # The keys of a map in Parquet may be of any kind.
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(name).strip())
    return re.sub(r"[\s-]+", "_", apart).casefold()


@lru_cache(4096)
def name_kind(name: str) -> Kind:
    """Return what a field is for a prompt, by its name.

    `used`: a prompt is made of it, or a program needs it. `task`: it belongs to the task, and
    nothing is made of it; `number`: the same, and numbers in it count too. `harmless`: an id, a
    label, an answer. `unknown`: its values must tell.

    >>> [name_kind(one) for one in ("prompt", "article_text", "option_b", "answer_a", "remark")]
    ['used', 'task', 'number', 'harmless', 'unknown']
    """
    plain = normalise_name(name)
    words = re.findall(r"[^\W\d_]+", plain)
    if plain in READ:
        return "used"
    if plain in ("max_words", "min_words") or not {*_CHOICES, *_LIMITS}.isdisjoint(words):
        return "number"
    if plain in (*_TASK, *NUMBERS) or _LANGUAGE.fullmatch(plain):
        return "task"
    if not {*_BEFORE}.isdisjoint(words):
        return "task"
    if words and words[-1] in _LABELS:
        return "harmless"
    if plain in _SOURCES or not {*_LABELS_ANYWHERE, *_ANSWERS}.isdisjoint(words):
        return "harmless"
    return "unknown" if {*_MATERIALS}.isdisjoint(words) else "task"


def is_read(name: str) -> bool:
    """Return whether a field of this name is used, or makes its row refused."""
    return name_kind(name) in ("used", "task", "number")
