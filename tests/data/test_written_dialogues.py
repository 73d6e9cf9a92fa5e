"""Whole dialogues inside one text: taken apart, refused, or, if they are none, one prompt."""

import pytest

from selfreward_lite.data.prompt_rows import extract_prompt
from selfreward_lite.data.rows import BadRow

TAKEN_APART = [
    "user: Why?\nassistant: So.",
    "human: Why?\n\nassistant: So.\n\nhuman: And?",
    "HUMAN: Why?\nASSISTANT: So.",
    "HUMAN: Why? ASSISTANT: So.",
    "user:\nWhy?\nbot:\nSo.",
    "### human: Why?\n### assistant: So.",
    "### human: Why?### assistant: So.",
    "### User\nWhy?\n\n### Assistant\nSo.",
    "## User:\nWhy?\n\n## AI:\n**Note:** so.",
    "#### **Human**\nWhy?\n#### **ChatGPT**\nSo.",
    "User: Why?\nChatGPT: So.\nUser: Thanks\nChatGPT: Welcome.",
    "Human: Why?\nClaude: So.",
    "User: Why?\nGPT-4: So.",
    "user: Why?\ngpt-3.5-turbo: So.",
    "Prompter: Why?\nAssistant: So.",
    "User: Why?\nAI Assistant: So.",
    "User：Why?\nAssistant：So.",
    "**User:** Why?\n\n**Assistant:** So.",
    "**Human**: Why?\n**AI**: So.",
    "__user:__ Why?\n__bot:__ So.",
    "*User:* Why?\n*Chatbot:* So.",
    "[Human]: Why?\n[Assistant]: So.",
    "[user] Why?\n[bot] So.",
    "[USER]\nWhy?\n[ASSISTANT]\nSo.",
    "[|Human|] Why?\n[|AI|] So.\n[|Human|]",
    "[|Human|]: Why?",
    "<user>Why?</user><assistant>So.</assistant>",
    "<user>\nWhy?\n</user>\n<assistant>\nSo.\n</assistant>",
    "<Human>: Why?\n<Bot>: So.",
    "You said:\nWhy?\nChatGPT said:\nSo.",
    "  user: Why?\r\n\r\n  assistant: So.\r\n",
    "### Human: Why?### Assistant: So.",
    "### User:\nWhy?\n\n### Assistant:\nSo.",
    "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: Oh\n\nAssistant: Yes",
    "USER: Why? ASSISTANT: So.</s>",
    "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nSo.<|eot_id|>",
    "<bos><start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\nSo.<end_of_turn>",
    "<|user|>\nWhy?</s>\n<|assistant|>\nSo.</s>",
    "<|prompter|>Why?<|endoftext|><|assistant|>So.<|endoftext|>",
]


@pytest.mark.parametrize("text", TAKEN_APART)
def test_the_first_turn_is_taken_whatever_marks_the_turns(text):
    assert extract_prompt({"text": text}) == "Why?"


def test_a_system_turn_is_kept_under_every_kind_of_mark():
    for text in (
        "system: Be terse.\nuser: Why?\nassistant: So.",
        "**System:** Be terse.\n**User:** Why?\n**Bot:** So.",
        "<system>Be terse.</system><user>Why?</user><assistant>So.</assistant>",
        "<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n",
    ):
        assert extract_prompt({"text": text}) == "Be terse.\n\nWhy?"


REFUSED = [
    ("### Question: Why?\n### Answer: So.", "request with its answer (behind '### Answer:')"),
    ("### Question:\nWhy?\n\n### Answer:\nSo.", "request with its answer"),
    ("### question: Why?### answer: So.", "request with its answer"),
    ("## Question\nWhy?\n## Answer\nSo.", "request with its answer"),
    ("**Question:** Why?\n\n**Answer:** So.", "request with its answer"),
    ("Instruction: Say why.\nResponse: So.", "request with its answer (behind 'Response:')"),
    ("instruction: Say why.\n\nresponse: So.", "request with its answer"),
    ("Prompt: Say why.\nCompletion: So.", "request with its answer"),
    ("### Prompt: Say why.\n### Response: So.", "request with its answer"),
    ("Be terse.\n\nHuman: Why?\n\nAssistant: So.", "a dialogue behind other text (from 'Human:'"),
    ("Be terse.\n\nHuman: Why?\n\nAssistant:", "a dialogue behind other text"),
    ("You are kind.\n\nUser: Why?\n\nAssistant: So.\n\nUser: And?", "(from 'User:' on)"),
    ("You are kind in a chat.\n\nUser: Why?\n\nAssistant: So.", "a dialogue behind other text"),
    ("A chat between a man and an AI.\n\nHuman: Why?\nAI: So.", "a dialogue behind other text"),
    ("The following is a talk with an AI.\n\nHuman: Why?\nAI: So.", "a dialogue behind other"),
    ("A chat.\n[|Human|] Why?\n[|AI|] So.", "holds '[|Human|]', markup of a chat template"),
    ("A chat.\n### human: Why?\n### assistant: So.", "markup of a chat template"),
    ("bot: Hello.\nuser: Why?", "begins with the assistant"),
    ("### Instruction:\nSay why.\n\n### Output:\nSo.", "request with its answer (behind '### Out"),
    ("### Instruction:\nSay why.\n\n### Input:\nIce.\n\n### Output:\nSo.", "with its answer"),
    ("**Instruction:** Say why.\n\n**Output:** So.", "request with its answer"),
    ("Instruct: Say why.\nOutput: So.", "request with its answer (behind 'Output:')"),
    ("Instruct: Say why.\nOutput: So.\nInstruct: And?\nOutput: No.", "with its answer"),
    ("<question>Why?</question>\n<answer>So.</answer>", "its answer (behind '<answer>')"),
    ("<instruction>Why?</instruction><response>So.</response>", "request with its answer"),
    ("<problem>1+1</problem><think>2.</think><solution>2</solution>", "with its answer"),
    ("Context: Ice is cold.\nUser: Why?\nAssistant: So.", "(from 'User:' on)"),
    ("Context: Below, all plays list it. Ice.\nUser: Why?\nAI: So.", "dialogue behind other text"),
    ("Background: Ice is cold.\nHuman: Why?\nAssistant: So.\nHuman: And?", "(from 'Human:' on)"),
]


@pytest.mark.parametrize(("text", "reason"), REFUSED, ids=lambda one: one[:40])
def test_what_may_be_a_dialogue_or_holds_its_answer_is_refused_in_one_line(text, reason):
    with pytest.raises(BadRow) as caught:
        extract_prompt({"text": text})
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


PROMPTS = [
    "Question: How many legs has a spider?",
    "Question: How many legs has a spider?\nAnswer:",
    "Question: How many legs has a spider?\nAnswer: Let's think step by step.",
    "Q: 1+1?\nA: 2\n\nQ: 2+2?\nA: 4\n\nQ: 3+3?\nA:",
    "Question: Who wrote it?\nAnswer: Bo.\nIs the answer right?",
    "### Question:\nHow many legs has a spider?\n\n### Answer:",
    "### Question: 1+1?\n### Answer: 2\n### Question: 2+2?\n### Answer:",
    "### Question:\nSort n numbers.\n\n### Answer: (use the given format)\n\n",
    "### Question:\nSort.\n### Format: code\n### Answer: in a block",
    "Instruction: Name a fruit.\nResponse:",
    "Instruction: Name a fruit.\nResponse: Apple\nScore:",
    "Instruction: Name a fruit.\nResponse: Apple\nScore: from 1 to 5",
    "Instruction: Name a fruit.\nResponse: Apple\n\nRate the response from 1 to 5.",
    "Instruction: Is it good?\nInput: great film\nOutput: yes\nInput: dull film\nOutput:",
    "Write a dialogue between User: and Bot: about the sea.",
    "Write a scene.\nUser: Hi.\nBot: Go away.",
    "Continue this talk:\n\nHuman: Hi.\n\nAssistant: Ho.\n\nHuman:",
    "Summarize the conversation below.\n\nUser: Hi.\n\nAssistant: Ho.",
    "Who is the more polite of the two?\n\nHuman: Hi.\n\nAssistant: Ho.",
    "You are a grader. Rate the following chat.\n\nUser: Hi.\n\nAssistant: Ho.",
    "I want a bot to talk like in this example.\n\nUser: Hi.\nBot: Ho.",
    "My bot failed.\n\nUser: Hi.\nBot: Go away.\n\nWhy did the bot say this?",
    "User: Hi.\nBot: Go away.\n\nRewrite what the bot says so that it is polite.",
    "user: Hi.\nassistant: Ho.\n\nWhat should the assistant have said instead?",
    "User: I cannot log in.\nPassword: none\nWhat do I answer?",
    "User: the one who pays. Bot: a program. Explain both words.",
    "Romeo: What light is this?\nJuliet: The east.\nRomeo: Go on in their voices.",
    "Customer: It broke.\nAgent: Sorry.\n\nSum it up.",
    "Human: the toolmaker\nElf: the archer\nWhich one wins?",
    "user: root\nassistant: none\nport: 22\nWhat is wrong with this file?",
    "user:pass@host and bot:pass@host: which is safe?",
    "user:Ann@host\nbot:Bo@host\nWhich of these addresses is safe?",
    "[user]\nname = Ann\n[bot]\nname = Bo\nTurn this into JSON.",
    "<user><name>Ann</name></user>\nParse this.",
    "<user> writes to <assistant> in my template. What are these signs called?",
    "class Bot:\n    user: str\n    assistant: str\nAdd a docstring.",
    'print("User: hi")\nprint("Assistant: ho")\nWhat does it print?',
    "# User\nWrite a guide to the user's settings, and one to # Assistant.",
    "**User:** means what in this manual?",
    "### Human rights\nWrite an essay.\n### AI rights\nAnd another.",
    "Human: is it a noun?\nAssistants: are they human?",
    "let f = [|x|] ++ [|user|x|] in f",
    "Explain the answer.\n### Answer: 42",
    "System: Linux.\nUser: root.\nHow do I add another?",
    "### Instruction:\nSay why.\n\n### Output:",
    "### Instruction: Is it good?\n### Input: fun\n### Output: yes\n### Input: dull\n### Output:",
    "### Question:\nSort n numbers.\n\n### Output:\nThe numbers in one line.",
    "### Instruction:\nName a fruit.\n\n### Output:\nApple\n\nRate the output from 1 to 5.",
    "Instruct: Name a fruit.\nOutput:",
    "Instruct me how to cook rice.\nOutput: a list",
    "<question>Why?</question>\n<answer></answer>",
    "<question>Why?</question>\n<answer>...</answer>",
    "<question>Why?</question>\n<answer>So.</answer>\nTurn this into JSON.",
    "<question>Why?</question>",
    "Context: a shop. Sum up the chat below.\nUser: Hi.\nAssistant: Ho.",
    "Context: a shop.\nUser: Hi.\nBot: Ho.\n\nRewrite what the bot says.",
    "Context: Ice is cold.\nQuestion: Is it?\nAnswer: Yes.",
]


@pytest.mark.parametrize("text", PROMPTS)
def test_a_prompt_that_holds_words_of_a_dialogue_stays_one(text):
    assert extract_prompt({"prompt": text}) == text


def test_a_chosen_answer_that_is_a_dialogue_is_an_answer():
    asked = "Write a short talk of a user and a bot."
    for answer in ("**User:** Hi.\n\n**Bot:** Ho.", "User: Hi.\nAI: Ho.", "user: Hi.\nbot: Ho."):
        assert extract_prompt({"prompt": asked, "chosen": answer}) == asked
