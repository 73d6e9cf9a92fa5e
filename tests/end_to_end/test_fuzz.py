"""Broken inputs: each is read, or refused by an error of ours; none hangs.

The corpora are good inputs of every kind; hypothesis edits them. INPUTS in the environment says how
many in all: `INPUTS=100000 python -m pytest -n 0 -m slow tests/end_to_end/test_fuzz.py`.
"""

import gzip
import json
import os
import tomllib
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import limit, mutated

from selfreward_lite import config
from selfreward_lite.data.data_files import read_rows
from selfreward_lite.data.prompt_rows import extract_prompts
from selfreward_lite.data.ranked_rows import read_messages
from selfreward_lite.engine.loading import check_adapter
from selfreward_lite.method import parsing
from selfreward_lite.models.gguf_folder import check_gguf, find_shape
from selfreward_lite.system.errors import SelfRewardError

pytestmark = pytest.mark.slow  # minutes
INPUTS = int(os.environ.get("INPUTS", "4000"))
TEXTS, FILES, SETTINGS, MODELS = (INPUTS * share // 20 for share in (9, 7, 3, 1))
PATIENCE = 60  # seconds; an input takes milliseconds
FORMS = Path(__file__).parents[1] / "fixtures"
AWKWARD = [
    "\0",
    "\ud800",
    "\u202e",
    "\ufeff",
    "\r",
    "\n\n",
    "[",
    "{",
    '"',
    "'",
    "`",
    "```",
    "<think>",
]
PIECES = st.one_of(
    st.text(max_size=8),
    st.sampled_from([*AWKWARD, "Score: 5", "1e999", "-0", "nan", "null", "[" * 3000, "9" * 5000]),
)


def often(count: int):
    """Settings of hypothesis: so many examples, whatever they take."""
    return settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=[*HealthCheck]
    )


def read_forms(name: str) -> list[str]:
    lines = (FORMS / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_judges_texts():
    corpus = [
        *read_forms("judgment_forms.jsonl"),
        *read_forms("verdict_forms.jsonl"),
        "1. Sort the letters c a b.\n2. Reverse d o h k.\n",
    ]
    read: Counter[str] = Counter()

    @often(TEXTS)
    @given(mutated(corpus, PIECES), st.booleans(), mutated(corpus, PIECES))
    def fuzz(text, cut, judged):
        with limit(PATIENCE):
            score = parsing.parse_score(text, judged)
            assert score is None or 0 <= score <= 5
            assert parsing.parse_verdict(text, "Judgement", judged) in ("A", "B", None)
            assert parsing.parse_verdict(text, "Response") in ("A", "B", None)
            assert all(isinstance(one, str) for one in parsing.parse_prompts(text, cut=cut))
            parsing.find_appeal_to_judge(text)
        read["score" if score is not None else "none"] += 1

    fuzz()
    assert min(read["score"], read["none"]) > TEXTS / 100, read


ROWS = [
    {"prompt": "Sort the letters c a b.", "id": 7},
    {"instruction": "Sort.", "input": "c a b", "output": "a b c"},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Sort."},
        ]
    },
    {"conversations": [{"from": "human", "value": "Sort."}, {"from": "gpt", "value": "a b c"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Sort."}]}], "tools": []},
    {"turns": ["Sort the letters c a b.", "Again."], "category": "letters"},
    {
        "message_id": "a",
        "parent_id": None,
        "text": "Sort.",
        "role": "prompter",
        "lang": "en-GB",
        "rank": None,
        "deleted": False,
        "review_result": "t",
    },
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def make_parquet(folder: Path) -> bytes:
    path = folder / "good.parquet"
    pa.parquet.write_table(pa.Table.from_pylist([{"prompt": "Sort.", "n": 1}] * 3), path)
    return path.read_bytes()


def test_data_files(tmp_path):
    table = 'prompt,context\n"Sort the letters, c a b.",\nReverse d o.,"two\nlines"\n'
    lines = LINES.encode()
    good = {
        "a.jsonl": lines,
        "a.json": json.dumps(ROWS, indent=1).encode(),
        "a.csv": table.encode("utf-8-sig"),
        "a.tsv": table.replace(",", "\t").encode("utf-16"),
        "a.jsonl.gz": gzip.compress(lines, mtime=0),
        "a.csv.gz": gzip.compress(table.encode("cp1252"), mtime=0),
        "a.parquet": make_parquet(tmp_path),
    }
    pieces = st.binary(max_size=8) | PIECES.map(lambda text: text.encode("utf-8", "replace"))
    anything = mutated([*good.values()], pieces)
    # Made once: hypothesis takes longer to check a new strategy than to draw from it.
    files = [
        st.tuples(st.just(name), mutated([data], pieces) | anything) for name, data in good.items()
    ]
    read: Counter[str] = Counter()

    @often(FILES)
    @given(
        st.sampled_from(files).flatmap(lambda one: one),
        st.booleans(),
    )
    def fuzz(file, skip_bad):
        name, data = file
        path = tmp_path / name
        path.write_bytes(data)
        for use in (extract_prompts, read_messages):
            with limit(PATIENCE), suppress(SelfRewardError):
                use(read_rows(path, skip_bad=skip_bad))
                read[f"{use.__name__} {name}"] += 1

    fuzz()
    assert set(read) >= {f"extract_prompts {name}" for name in good}, read


def test_settings():
    corpus = [path.read_text(encoding="utf-8") for path in config.PRESETS_DIR.glob("*.toml")]
    keys = ["dpo.beta", "schedule.0.rho", "engine.context", "model.base", "iterations", "x", "dpo"]
    values = ["0.1", "true", '"tiny"', "[1, 2]", "{a = 1}", "1979-05-27", "0x10", "inf", "-1"]
    read: Counter[bool] = Counter()

    @often(SETTINGS // 2)
    @given(mutated(corpus, PIECES))
    def fuzz_files(text):
        try:
            tree = tomllib.loads(text)
        except (ValueError, RecursionError):  # no TOML; these files are ours
            return
        with limit(PATIENCE), suppress(SelfRewardError):
            config.parse({**tree, "preset": "mine"})
            read[True] += 1

    @often(SETTINGS // 2)
    @given(mutated(keys, PIECES), mutated(values, PIECES))
    def fuzz_options(key, value):
        with limit(PATIENCE), suppress(SelfRewardError):
            config.load("tiny", config.parse_overrides([f"{key}={value}"], {}))
            read[False] += 1

    fuzz_files()
    fuzz_options()
    assert min(read[True], read[False]) > SETTINGS / 200, read


def test_gguf_headers(made, tmp_path):
    numbers = [np.uint64(value).tobytes() for value in (0, 1, 2**31, 2**32, 2**62, 2**64 - 1)]
    wholes = [(made / name).read_bytes() for name in ("base.gguf", "adapter.gguf")]
    corpus = [part for whole in wholes for part in (whole[:200], whole[:2000], whole[:20_000])]
    path, read = tmp_path / "a.gguf", Counter[bool]()

    @often(MODELS)
    @given(
        mutated(corpus, st.binary(max_size=8) | st.sampled_from(numbers)),
        st.sampled_from([b"", *wholes]),
    )
    def fuzz(begin, whole):
        path.write_bytes(begin + whole[len(begin) :])
        for use in (
            check_gguf,
            lambda one: find_shape(str(one)),
            lambda one: check_adapter(str(one)),
        ):
            with limit(PATIENCE), suppress(SelfRewardError):
                use(path)
                read[bool(whole)] += 1

    fuzz()
    assert read[True], read
