"""The names of fields in rows of the user's data, by what they hold.

Names are compared in lower case, with `_` for spaces and hyphens and between words: `System Prompt`
and `systemPrompt` are `system_prompt`. docs/data.md says which known data set has which of them.
"""

import re
from collections.abc import Sequence
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
# What names the speaker of a message: the first of these that it has.
SPEAKERS = ("role", "from", "sender", "speaker", "author", "type")
# The same in tables with a message in each row, where all that is there are names of roles.
ROW_SPEAKERS = (*SPEAKERS[1:], "name", "actor", "role_name", "sender_type", "sender_role")
ASKERS = ("prompter", "user", "human")  # roles of a prompt
# A message in OASST's schema, and what it has beside that nothing is made of.
MESSAGE = ("message_id", "parent_id", "text", "role", "rank")
MESSAGE_STATE = ("lang", "deleted", "review_result", "synthetic", "tree_state")
MESSAGE_LABELS = (
    *("user_id", "created_date", "review_count", "model_name", "detoxify", "message_tree_id"),
    *("emojis", "labels", "replies", "events"),
)
SCHEMA = frozenset((*MESSAGE, *MESSAGE_STATE, *MESSAGE_LABELS))
# What asks; the other names of prompts may be those of material beside one.
ASKING = (*CHATS, *(name for name in PROMPTS if name not in MATERIAL))
# What a prompt is made of; and all that is read, for ranked data too.
USED = frozenset((*CHATS, *LISTS, *PROMPTS, *SYSTEM, *MATERIAL, ANSWER, *STATE))
READ = USED | {*MESSAGE, *MESSAGE_STATE}

# Of fields that no prompt is made of, these names, or names with these words, belong to the task.
# The first list that has a name decides.
_TASK = (
    *("test_list", "file", "files", "attachment", "attachments"),
    *("output_format", "answer_format", "response_format", "output_schema"),
    # How an answer should be, and who gives it. A number there is only a figure.
    *("output_length", "answer_length", "response_length", "reply_length", "summary_length"),
    *("audience", "format", "genre", "mood", "tone", "voice", "formality", "point_of_view", "pov"),
    *("act_as", "answer_as", "answer_in", "reply_as", "reply_in", "respond_as", "respond_in"),
    *("write_as", "write_in", "speak_as", "translate_to", "translate_into", "tone_of_voice"),
    *("assistant_role", "ai_role", "bot_role", "role_play", "roleplay", "age_group", "style_guide"),
    *("must_include", "must_contain", "must_avoid", "must_not_contain", "words_to_include"),
    *("words_to_avoid", "forbidden_words", "banned_words", "negative_prompt"),
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
# How long an answer should be, as a number.
_AMOUNT = re.compile(
    r"(?:max|min|maximum|minimum)_(?:words|sentences|paragraphs|characters|lines)"
    r"|(?:target|desired|required|requested|expected)_"
    r"(?:length|len|size|count|words|word_count|sentences|paragraphs|characters|lines)"
)
# How an answer should be: a word of the first list before one of the second.
_WANTED = ("target", "output", "response", "answer", "reply", "desired", "required", "requested")
_MANNER = (
    *("audience", "reader", "readers", "style", "tone", "voice", "format", "structure", "template"),
    *("register", "formality", "mood", "genre", "instruction", "word", "words", "keyword", "age"),
    *("keywords", "phrase", "phrases"),
)
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
    *("created",),
    *("author", "license", "licence", "tag", "tags", "topics", "difficulty", "level", "weight"),
    *("weights", "seed", "temperature", "embedding", "embeddings", "flag", "flags", "order"),
    *("ip", "views", "ability", "kwargs", "config", "configs"),
    *("meta", "metadata", "emojis", "detoxify", "rubric", "rubrics", "checklist"),
)
# Objects under names that end so are about a row; a part of its task may be among what they hold.
_ABOUT = ("meta", "metadata", "info", "config", "configs")
# They label a row if they stand alone, or behind a label. Else the word before them decides.
_LOOSE_LABELS = ("info", "header", "headers", "extra_info", "meta_info", "cache_control")
_LABELS_ANYWHERE = (
    *("id", "ids", "uid", "uuid", "guid", "hash", "hashed", "idx", "index", "lang", "language"),
    *("languages", "country", "labelling", "labeling", "moderation", "toxic", "toxicity"),
)
# What somebody said: the answer to the prompt, or one that the prompt is about.
_SAID = (
    *("answer", "answers", "output", "outputs", "response", "responses", "completion"),
    *("completions", "solution", "solutions", "generation", "generations", "reply", "replies"),
    *("prediction", "predictions", "thinking", "thought", "thoughts", "reasoning", "rationale"),
    *("rationales", "explanation", "explanations", "cot", "summary", "summaries", "feedback"),
    *("critique", "critiques"),
)
_ANSWERS = (
    *(*_SAID, "target", "targets", "label", "labels", "chosen", "rejected", "reference"),
    *("references", "gold", "generated", "predicted", "correct", "incorrect", "highlights"),
    *("judgment", "judgement", "judge", "verdict", "winner", "vote", "votes"),
    *("score", "scores", "rating", "ratings", "rank", "ranking", "quality", "reward", "rewards"),
    *("preference", "preferences", "annotation", "annotations", "annotator", "annotators"),
    *("test", "tests"),
)
# With one of these, what was said belongs to the task: who said it, and what is to be done with it.
_SUBJECTS = (
    *("student", "students", "pupil", "learner", "user", "users", "candidate", "applicant"),
    *("customer", "customers", "client", "patient", "participant", "respondent", "interviewee"),
    *("employee", "colleague", "opponent", "peer", "reviewer", "my", "your", "tool", "tools"),
    *("draft", "drafts", "prefix", "suffix", "partial", "incomplete", "unfinished", "beginning"),
    *("opening", "starter", "stem", "skeleton", "outline", "initial", "existing", "current"),
    *("given", "provided", "flawed", "faulty", "buggy", "broken", "example", "examples"),
)
# An answer to one of these is only an answer; one to anything else ("to_edit") is to be worked on.
_ASKED = (
    *("question", "questions", "prompt", "prompts", "instruction", "instructions", "query"),
    *("problem", "task", "request", "input", "user", "human", "message", "post", "me", "it", "id"),
)
_WORK = re.compile(r"(?!training|testing)\w+ing|review|revision|evaluation|correction|assessment")
_ORIGINALS = ("original_question", "original_prompt", "original_instruction", "original_query")
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
# Of these, that of an answer is only its text; a reference's is a text to refer to.
_FORMS = (
    *("text", "texts", "content", "contents", "body", "code", "sentence", "sentences", "function"),
    *("functions", "messages"),
)
_SHAPES = (
    *("list", "lists", "json", "html", "markdown", "md", "str", "string", "raw", "array"),
    "sequence",
)
_OPEN = ("reference", "references", "toxic", "toxicity", "moderation")
# What stands behind them says for, of or from whom something is, not what it is.
_PREPOSITIONS = ("for", "to", "of", "by", "from", "with", "about")
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
def name_setting(name: str) -> str:
    """Return the name of a field as the setting `prompts.ignore` takes it: letters, digits and `_`.

    >>> name_setting("Notes, other"), name_setting("Time limit (sec)"), name_setting("")
    ('notes_other', 'time_limit_sec', 'unnamed')
    """
    return re.sub(r"[\W_]+", "_", normalise_name(name)).strip("_") or "unnamed"


@lru_cache(4096)
def name_kind(name: str) -> Kind:
    """Return what a field is for a prompt, by its name.

    `used`: a prompt is made of it, or a program needs it. `task`: it belongs to the task, and
    nothing is made of it; `number`: the same, and numbers in it count too. `harmless`: an id, a
    label, an answer. `unknown`: its values must tell.

    >>> [name_kind(one) for one in ("prompt", "article_text", "option_b", "answer_a", "remark")]
    ['used', 'task', 'number', 'harmless', 'unknown']
    >>> [name_kind(one) for one in ("reference_answer", "reference_text", "student_answer")]
    ['harmless', 'task', 'task']
    """
    plain = normalise_name(name)
    words = re.findall(r"[^\W\d_]+", plain)
    if plain in READ:
        return "used"
    if _AMOUNT.fullmatch(plain) or not {*_CHOICES, *_LIMITS}.isdisjoint(words):
        return "number"
    if plain in (*_TASK, *NUMBERS) or _LANGUAGE.fullmatch(plain):
        return "task"
    if not {*_BEFORE}.isdisjoint(words) or _says_how(words):
        return "task"
    head = _find_head(words)
    if plain in (*_ORIGINALS, *_LOOSE_LABELS) or _labels(words, head):
        return "harmless"
    if not {*_LABELS_ANYWHERE, *_ANSWERS}.isdisjoint(words):
        return _judge_answer(words, head)
    return "unknown" if {*_MATERIALS}.isdisjoint(words) else "task"


def _says_how(words: Sequence[str]) -> bool:
    """Whether a name says how an answer should be (`target_audience`)."""
    return len(words) > 1 and words[-1] in _MANNER and not {*_WANTED}.isdisjoint(words[:-1])


def _find_head(words: Sequence[str]) -> Sequence[str]:
    """The words of a name that say what the field is: those before a preposition."""
    place = next((n for n, word in enumerate(words) if n and word in _PREPOSITIONS), len(words))
    head = words[:place]
    known = {*_LABELS, *_LABELS_ANYWHERE, *_ANSWERS, *_MATERIALS}
    if place < len(words) and words[place] not in ("for", "to") and known.isdisjoint(head):
        head = words  # "list of answers"
    end = len(head)
    while end > 1 and (len(head[end - 1]) == 1 or head[end - 1] in _SHAPES):
        end -= 1
    return head[:end]


def _labels(words: Sequence[str], head: Sequence[str]) -> bool:
    """Whether the last word of a name makes it a label: `answer_type`, but no `notes_for_model`."""
    held = [word for word in head if word not in _LOOSE_LABELS]
    last = {*held[-1:]} | ({*words[-1:]} if "for" not in words else set())
    return not last.isdisjoint(_LABELS)


def _judge_answer(words: Sequence[str], head: Sequence[str]) -> Kind:
    """What a field is whose name holds a word for an answer, or for what labels one."""
    if not {"chosen", "rejected"}.isdisjoint(words):
        return "harmless"
    if not {*_SAID}.isdisjoint(head) and (
        not {*_SUBJECTS}.isdisjoint(words) or _is_worked_on(words)
    ):
        return "task"
    answers = {*_LABELS_ANYWHERE, *_ANSWERS}
    known = [word for word in head if word in answers or word in _MATERIALS]
    if answers.isdisjoint(known):  # the answer stands behind a preposition
        return "task" if known else "unknown"
    kinds = [word for word in known if word not in _FORMS]
    if kinds[-1] not in answers or (kinds[-1] in _OPEN and known[-1] in _FORMS):
        return "task"
    is_open = kinds[-1] in (*_OPEN, "target", "targets")
    return "unknown" if is_open and head[-1] not in known else "harmless"


def _is_worked_on(words: Sequence[str]) -> bool:
    """Whether a name says what is to be done with an answer: `response_to_edit`."""
    for place, word in enumerate(words[1:-1], 1):
        if word == "to" and words[place + 1] not in _ASKED:
            return True
        if word == "for" and _WORK.fullmatch(words[place + 1]):
            return True
    return False


def is_about(name: str) -> bool:
    """Return whether an object of this name is about its row, so that its own fields must tell.

    >>> [is_about(one) for one in ("meta", "extraInfo", "metadata_id", "scores")]
    [True, True, False, False]
    """
    words = normalise_name(name).split("_")
    return words[-1] in _ABOUT and name_kind(name) in ("harmless", "unknown")


def is_read(name: str) -> bool:
    """Return whether a field of this name is used, or makes its row refused."""
    return name_kind(name) in ("used", "task", "number")


def is_answer(name: str) -> bool:
    """Return whether a field of this name holds an answer, or what labels one.

    >>> [is_answer(one) for one in ("response", "reference_answer", "student_answer", "topic")]
    [True, True, False, False]
    """
    words = re.findall(r"[^\W\d_]+", normalise_name(name))
    return name_kind(name) == "harmless" and not {*_ANSWERS}.isdisjoint(words)
