"""The names of all fields that are read from rows of the user's data, by what they hold.

Names are compared in lower case, with `_` for spaces and hyphens: `System Prompt` is
`system_prompt`. docs/data.md says which known data set has which of them.
"""

import re
from functools import lru_cache

# A whole conversation. What stands before its first answer is the prompt.
CHATS = ("messages", "conversations", "conversation")
# Conversations too, where they hold a list; other data keep numbers or texts under these names.
LISTS = ("turns", "data")
# The prompt itself: the first of these that a row has. The others may only repeat it.
PROMPTS = ("prompt", "instruction", "question", "query", "problem", "inputs", "input", "text")
# Put before the prompt.
SYSTEM = ("system", "system_prompt", "system_message", "system_instruction")
# Put behind the prompt, in this order. `instances` are those of self-instruct's seed tasks.
MATERIAL = ("input", "context", "instances")
# An answer that begins with its prompt, where no field above holds one (Anthropic's HH).
ANSWER = "chosen"
# They belong to the task, and nothing is made of them: a row with one of them is refused.
REFUSED = (
    *("choices", "options", "candidates", "history", "demonstrations", "few_shot"),
    *("passage", "passages", "document", "documents", "article", "paragraph", "paragraphs"),
    *("story", "premise", "hypothesis", "background", "knowledge", "evidence", "contexts"),
    *("sentence", "sentence1", "sentence2", "dialogue", "table", "starter_code"),
    *("tools", "functions", "image", "images", "audio", "audios", "video", "videos"),
    *("file", "files", "attachments"),
)
# A message in OASST's schema.
MESSAGE = ("message_id", "parent_id", "text", "role", "rank")
MESSAGE_STATE = ("lang", "deleted", "review_result", "synthetic", "tree_state")
READ = frozenset(
    (*CHATS, *LISTS, *PROMPTS, *SYSTEM, *MATERIAL, ANSWER, *REFUSED, *MESSAGE, *MESSAGE_STATE)
)


@lru_cache(4096)
def normalise_name(name: str) -> str:
    """Return the name of a field as it is compared.

    >>> normalise_name(" System Prompt"), normalise_name("PROMPT")
    ('system_prompt', 'prompt')
    """
    return re.sub(r"[\s-]+", "_", name.strip().casefold())


def is_read(name: str) -> bool:
    """Return whether a field of this name is used, or makes its row refused."""
    return normalise_name(name) in READ
