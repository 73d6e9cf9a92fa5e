"""Task sets in small: files of each schema, and a table that names them as the real one does."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from selfreward_lite.data.task_sets import SETS, SetFile, TaskName, TestSet
from selfreward_lite.data.tiny.ranked import generate_ranked_rows

EMPTY = {"num_words": None, "relation": None, "keywords": None}  # as IFBench fills its rows
ROWS: dict[TaskName, list[dict]] = {
    "ifeval": [
        {
            "key": 11,
            "prompt": "Describe rain without commas, in at least 5 words.",
            "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
            "kwargs": [{}, {"relation": "at least", "num_words": 5}],
        },
        {
            "key": 12,
            "prompt": "Say hello in lower case, and end with: Bye.",
            "instruction_id_list": ["change_case:english_lowercase", "startend:end_checker"],
            "kwargs": [{}, {"end_phrase": "bye."}],
        },
        {
            "key": 13,
            "prompt": "Write two sentences about snow.",
            "instruction_id_list": ["length_constraints:number_sentences"],
            "kwargs": [{"relation": "at least", "num_sentences": 2}],
        },
    ],
    "ifbench": [
        {
            "key": "0",
            "prompt": "Write each word on a new line.",
            "instruction_id_list": ["format:newline"],
            "kwargs": [EMPTY],
        },
        {
            "key": "1",
            "prompt": "Name three numbers.",
            "instruction_id_list": ["count:numbers"],
            "kwargs": [EMPTY | {"N": 3.0}],
        },
        {
            "key": "2",
            "prompt": "Start with a verb.",
            "instruction_id_list": ["words:start_verb"],
            "kwargs": [EMPTY],
        },
    ],
    "gsm8k": [
        {"question": "Two boxes hold 600 nails each. How many?", "answer": "2*600\n#### 1,200"},
        {"question": "A debt of 3 grows by 4. What is left?", "answer": "-3-4\n#### -7"},
        {"question": "Half of nine?", "answer": "<<9/2=4.5>>\n#### 4.5"},
    ],
}


def write_rows(folder: Path, name: TaskName, rows: list[dict] | None = None) -> Path:
    """Write rows in the schema of a set, by default the hand-made ones; returns the file."""
    path = folder / SETS[name].files[0].path
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) + "\n" for row in (ROWS[name] if rows is None else rows)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def pin_small(monkeypatch, folder: Path) -> None:
    """Write the hand-made rows of all task sets, and let the table pin these files."""
    for name in ROWS:
        path = write_rows(folder, name)
        monkeypatch.setitem(SETS, name, pin(SETS[name], path.read_bytes()))


def pin(real: TestSet, content: bytes) -> TestSet:
    """A set of one file with this content instead of its own."""
    (file,) = real.files
    return replace(real, files=(_pin_file(file, content),))


def pin_ranked(monkeypatch, folder: Path) -> None:
    """Write small ranked sets, and let the table pin these files.

    LLMBar: in each part a pair whose better answer is longer, and one whose worse answer is.
    PandaLM: four decided pairs of three prompts, and one without a majority. OASST1: the tiny
    world's rows about other signs, three ranked answers to each of four prompts.
    """
    contents = {
        file.path: [
            {
                "input": f"{file.path}: what is rain?",
                "output_1": "Water that falls from clouds.",
                "output_2": "Ice.",
                "label": 1,
            },
            {
                "input": f"{file.path}: what is snow?",
                "output_1": "Hot stones that rise up to the clouds.",
                "output_2": "Frozen water.",
                "label": 2,
            },
        ]
        for file in SETS["llmbar"].files
    }
    contents["pandalm.json"] = [
        write_panda("Shorten.", "A b c.", "A.", "B, long.", (1, 1, 0)),
        write_panda("Shorten.", "A b c.", "Nothing.", "A.", (2, 2, 1)),
        write_panda("Add.", "", "5", "6", (1, 1, 1)),
        write_panda("Is it so?", "", True, "Perhaps.", (2, 0, 2)),
        write_panda("Is it so?", "", True, "Perhaps not.", (0, 1, 2)),
    ]
    texts = {name: json.dumps(rows) for name, rows in contents.items()}
    texts["oasst1-en-validation.jsonl"] = "".join(
        json.dumps(row | {"text": row["text"].replace("letters", "signs")}) + "\n"
        for row in generate_ranked_rows(4)
    )
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    for name in ("llmbar", "pandalm", "oasst1"):
        files = tuple(
            _pin_file(file, (folder / file.path).read_bytes()) for file in SETS[name].files
        )
        monkeypatch.setitem(SETS, name, replace(SETS[name], files=files))


def write_panda(instruction: str, given: str, first, second: str, votes) -> dict:
    """A row in PandaLM's schema."""
    row = {"instruction": instruction, "input": given, "response1": first, "response2": second}
    return row | {f"annotator{number}": vote for number, vote in enumerate(votes, 1)}


def _pin_file(file: SetFile, content: bytes) -> SetFile:
    return SetFile(file.path, file.url, hashlib.sha256(content).hexdigest(), len(content))
