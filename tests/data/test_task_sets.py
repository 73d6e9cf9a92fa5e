"""Test sets: the table, files fetched and checked, rows of each schema."""

import json
import re

import httpx
import pytest
from task_rows import ROWS, pin, pin_small, write_rows

from selfreward_lite.data import download, task_sets
from selfreward_lite.data.task_sets import OPEN, SETS, Instruction, RankedPair, Task
from selfreward_lite.system.errors import DataError, UserError

CONTENT = b"".join(b'{"question": "%d", "answer": "#### %d"}\n' % (n, n) for n in range(2000))


class Server:
    """Answers as a server with ranges does; the first answers break after `breaks` bytes each."""

    def __init__(self, content: bytes) -> None:
        self.content, self.breaks = content, []
        self.asked: list[tuple[str, str]] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        wanted = request.headers.get("Range", "")
        self.asked.append((str(request.url), wanted))
        start = int(wanted.removeprefix("bytes=").rstrip("-") or 0)
        return httpx.Response(206 if start else 200, content=self.send(self.content[start:]))

    def send(self, rest: bytes):
        if not self.breaks:
            yield rest
            return
        yield rest[: self.breaks.pop(0)]
        raise httpx.ReadError("connection lost")


@pytest.fixture
def server(monkeypatch, tmp_path):
    found = Server(CONTENT)
    client = httpx.Client(transport=httpx.MockTransport(found.answer))
    monkeypatch.setattr(httpx, "stream", client.stream)
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(SETS, "gsm8k", pin(SETS["gsm8k"], CONTENT))
    return found


def refused(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    (line,) = str(caught.value).splitlines()
    return line


def test_every_file_is_pinned_and_free_to_use():
    paths = [file.path for one in SETS.values() for file in one.files]
    assert len(paths) == len(set(paths)) == 10
    for one in SETS.values():
        assert one.licence in OPEN
        for file in one.files:
            assert re.fullmatch(
                r"https://raw\.githubusercontent\.com/[\w-]+/[\w-]+/[0-9a-f]{40}/.+", file.url
            )
            assert re.fullmatch("[0-9a-f]{64}", file.sha256)
    assert round(sum(one.size for one in SETS.values()) / 1e6) == 6


def test_a_set_is_fetched_once(server, tmp_path):
    said = []
    folder = task_sets.fetch_set("gsm8k", lambda *progress: said.append(progress))
    assert (folder / "gsm8k-test.jsonl").read_bytes() == CONTENT
    assert said[-1] == ("gsm8k-test.jsonl", len(CONTENT), len(CONTENT))
    assert [url for url, _ in server.asked] == [SETS["gsm8k"].files[0].url]
    task_sets.fetch_set("gsm8k", lambda *_: None)
    assert len(server.asked) == 1
    assert len(task_sets.read_tasks("gsm8k")) == 2000


def test_an_interrupted_download_goes_on_where_it_stopped(server):
    server.breaks = [30_000] + [0] * download.ATTEMPTS
    line = refused(task_sets.fetch_set, "gsm8k", lambda *_: None)
    assert "which goes on where it stopped" in line and "connection lost" in line
    server.breaks = []
    server.asked.clear()
    folder = task_sets.fetch_set("gsm8k", lambda *_: None)
    assert [wanted for _, wanted in server.asked] == ["bytes=30000-"]
    assert (folder / "gsm8k-test.jsonl").read_bytes() == CONTENT


def test_what_is_not_the_pinned_file_is_not_kept(server, tmp_path):
    server.content = CONTENT.replace(b"#### 7", b"#### 8")
    assert "its sha256 differs" in refused(task_sets.fetch_set, "gsm8k", lambda *_: None)
    server.content = CONTENT[:-100]  # a server that is done too early
    assert "is cut" in refused(task_sets.fetch_set, "gsm8k", lambda *_: None)
    assert not (task_sets.home() / "gsm8k-test.jsonl").exists()
    server.content = CONTENT
    task_sets.fetch_set("gsm8k", lambda *_: None)


def test_without_a_network_one_line_says_what_to_do(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = refused(task_sets.fetch_set, "gsm8k", lambda *_: None)
    assert "HF_HUB_OFFLINE=1" in line and "--from" in line
    assert not server.asked


def test_missing_cut_and_other_files_are_one_line_each(monkeypatch, tmp_path):
    pin_small(monkeypatch, tmp_path)
    assert task_sets.find_paths("ifeval", tmp_path) == [tmp_path / "ifeval.jsonl"]
    path, whole = tmp_path / "ifeval.jsonl", (tmp_path / "ifeval.jsonl").read_bytes()
    path.write_bytes(whole[:-10])
    assert f"is cut: {len(whole) - 10} of {len(whole)} bytes" in refused(
        task_sets.read_tasks, "ifeval", tmp_path
    )
    path.write_bytes(whole.replace(b"rain", b"snow"))
    assert "its sha256 differs" in refused(task_sets.read_tasks, "ifeval", tmp_path)
    path.unlink()
    line = refused(task_sets.read_tasks, "ifeval", tmp_path)
    assert "evaluate fetch ifeval" in line and "CC-BY-4.0" in line and "--from" in line


def test_a_set_that_is_not_in_the_table_is_refused_with_the_reason():
    assert "choose of ifeval, ifbench, gsm8k" in refused(task_sets.find_set, "mmlu")
    assert "CC-BY-NC-4.0" in refused(task_sets.find_set, "alpaca_eval")
    assert "no licence file" in refused(task_sets.find_set, "judgebench")


def test_rows_of_each_schema_are_read(tmp_path):
    first, _, third = task_sets.parse_tasks("ifeval", write_rows(tmp_path, "ifeval"))
    assert first == Task(
        "ifeval",
        "11",
        "Describe rain without commas, in at least 5 words.",
        (
            Instruction("punctuation:no_comma", {}),
            Instruction(
                "length_constraints:number_words", {"relation": "at least", "num_words": 5}
            ),
        ),
    )
    assert third.key == "13"
    bench = task_sets.parse_tasks("ifbench", write_rows(tmp_path, "ifbench"))
    assert [one.instructions[0].values for one in bench] == [{}, {"N": 3.0}, {}], "no nulls"
    numbers = task_sets.parse_tasks("gsm8k", write_rows(tmp_path, "gsm8k"))
    assert [(one.key, one.answer) for one in numbers] == [("0", "1,200"), ("1", "-7"), ("2", "4.5")]


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("ifeval", {"prompt": 5}, "a text is not text"),
        ("ifeval", {"kwargs": [{}]}, "2 instructions and 1 sets of values"),
        ("ifbench", {"instruction_id_list": []}, "0 instructions"),
        ("gsm8k", {"answer": "1,200"}, "no #### before the answer"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path, name, change, reason):
    rows = [ROWS[name][1], ROWS[name][0] | change]
    with pytest.raises(DataError, match=reason) as caught:
        task_sets.parse_tasks(name, write_rows(tmp_path, name, rows))
    assert ":2: " in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_row_without_a_field_is_named(tmp_path):
    row = {key: value for key, value in ROWS["ifeval"][0].items() if key != "kwargs"}
    with pytest.raises(DataError, match="no field 'kwargs'; it is no file of IFEval"):
        task_sets.parse_tasks("ifeval", write_rows(tmp_path, "ifeval", [row]))


def test_pairs_of_the_ranked_sets(monkeypatch, tmp_path):
    bar = {"input": "Which?", "output_1": "this", "output_2": "that"}
    panda = {"instruction": "Shorten.", "input": "A b c.", "response1": "A.", "response2": "B."}
    votes = [(2, 2, 1), (0, 1, 1), (0, 0, 1), (0, 1, 2)]
    rows = [
        panda | {f"annotator{number}": vote for number, vote in enumerate(three, 1)}
        for three in votes
    ]
    (tmp_path / "llmbar").mkdir()
    for file in SETS["llmbar"].files:
        rows_of_part = [bar | {"label": 1}, bar | {"label": 2}]
        (tmp_path / file.path).write_text(json.dumps(rows_of_part))
    (tmp_path / "pandalm.json").write_text(json.dumps(rows))
    monkeypatch.setattr(task_sets, "find_file_fault", lambda file, path: None)
    (first, second, *more), drops = task_sets.read_pairs("llmbar", tmp_path)
    assert not drops
    assert first == RankedPair("llmbar", "Natural", "Which?", "this", "that")
    assert (second.better, second.worse) == ("that", "this")
    assert len(more) == 8
    found, drops = task_sets.read_pairs("pandalm", tmp_path)
    assert [(one.prompt, one.better, one.worse) for one in found] == [
        ("Shorten.\n\nA b c.", "B.", "A."),
        ("Shorten.\n\nA b c.", "A.", "B."),
    ]
    assert drops == {"pairs that no majority decided": 2}


def test_answers_of_pandalm_that_became_truth_values_are_words_again(monkeypatch, tmp_path):
    row = {"instruction": "True?", "input": "", "response1": True, "response2": "No."}
    row |= {"annotator1": 1, "annotator2": 1, "annotator3": 0}
    monkeypatch.setattr(task_sets, "find_file_fault", lambda file, path: None)
    (tmp_path / "pandalm.json").write_text(json.dumps([row, row | {"response2": "True"}]))
    found, drops = task_sets.read_pairs("pandalm", tmp_path)
    assert [(one.better, one.worse) for one in found] == [("True", "No.")]
    assert drops == {"pairs of the same answer twice": 1}
    (tmp_path / "pandalm.json").write_text(json.dumps([row, row | {"response1": 5}]))
    with pytest.raises(DataError, match="row 1: a text is not text"):
        task_sets.read_pairs("pandalm", tmp_path)
