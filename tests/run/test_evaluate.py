"""Models of a run asked again: compared, as judges, for AlpacaEval; the run stays unchanged."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import scripted_run
from evaluate_command import evaluate, script_models
from scripted_runtime import Script, scripted_runtime
from typer.testing import CliRunner

from selfreward_lite.cli.main import app
from selfreward_lite.config import parse
from selfreward_lite.data import votes
from selfreward_lite.data.judge_sets import JudgeSet
from selfreward_lite.data.records import Comparison, Judgment, Prompt, Response
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.data.tiny.ranked import generate_ranked_rows as ranked_rows
from selfreward_lite.engine.api import Request
from selfreward_lite.engine.scripted import Reply
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.run import loop, prepare
from selfreward_lite.run.evaluate import EXACT, open_evaluation
from selfreward_lite.system.errors import DataError, UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    scripted_run.copy(folder / "mine", **{"prompts.count": "10", "iterations": "1"})
    return folder


@contextmanager
def opened(runs: Path, asked: list | None = None):
    chat = ChatFormat.load(TINY_MODEL)
    plain = scripted_runtime(chat)

    def open_engine(base, settings):
        if asked is not None:
            asked.append(base)
        return plain.open_engine(base, settings)

    with Store.read(runs / "mine") as store:
        given = replace(plain, open_engine=open_engine)
        with open_evaluation(store, parse(store.fact("settings")), given, lambda at: None) as work:
            yield work


def test_two_models_are_compared_in_both_orders(runs):
    with opened(runs) as work:
        met = work.compare_answers("M1", "M0", "M0")
        assert len(met) == len(work.run.held_out())
        assert {one.result for one in met} == {0.0, 0.5, 1.0}
        assert all(one.orders in {("A", "A"), ("A", "B"), ("B", "A"), ("B", "B")} for one in met)
        for one in met:
            assert one.result == {("A", "B"): 1.0, ("B", "A"): 0.0}.get(one.orders, 0.5)
        lengths = {
            one.prompt_id: len(one.text)
            for one in work.run.store.records(Response, iteration=1, model="M1")
        }
        assert [one.mine_length for one in met] == [lengths[one.id] for one in work.run.held_out()]


def test_nothing_is_asked_twice_and_the_run_stays_unchanged(runs):
    with Store.read(runs / "mine") as store:
        before = (store.count(Comparison), store.count(Judgment), store.stages())
    asked: list = []
    with opened(runs, asked) as work:
        first = work.compare_answers("M1", "base", "M1")
        assert work.compare_answers("M1", "base", "M1") == first
        other = work.compare_answers("base", "M1", "M1")
        assert [one.mine_length for one in other] == [one.their_length for one in first]
        assert work.notes.count(Comparison) >= len(first) + len(other)
    with opened(runs) as work:
        assert work.compare_answers("M1", "base", "M1") == first
    with Store.read(runs / "mine") as store:
        assert (store.count(Comparison), store.count(Judgment), store.stages()) == before


@pytest.mark.slow
def test_a_model_is_compared_with_one_of_another_run(runs):
    """Runs of one seed have the same ids for other answers; only common prompts count."""
    chat = ChatFormat.load(TINY_MODEL)
    for name, length, changed in (
        ("long", 3, {}),
        ("short", 2, {"evaluation.prompts": "4"}),
        ("else", 1, {"seed": "9"}),
    ):
        with Store.write(runs / name) as store:
            settings = prepare.load_or_create_settings(
                store, {**scripted_run.SMALL, "iterations": "0", **changed}, "tiny"
            )
            loop.run(store, settings, scripted_runtime(chat, length=length), lambda at: None)
    with opened(runs) as work:
        own = work.compare_answers("M1", "M0", "M0")
        for _ in range(2):  # asked, and read from what was kept
            long, short = (
                work.compare_answers("M1", "long/M0", "M0"),
                work.compare_answers("M1", "short/M0", "M0"),
            )
            assert [one.mine_length for one in long] == [one.mine_length for one in own]
            assert [one.mine_length for one in short] == [one.mine_length for one in own[:4]]
            assert all(one.orders for one in [*long, *short])
        assert sum(one.their_length for one in long) > 2 * sum(one.their_length for one in own)
        assert sum(one.their_length for one in short) > 1.5 * sum(
            one.their_length for one in own[:4]
        )
        exact = work.compare_answers("M0", "long/M0", EXACT)
        assert [one.mine_length for one in exact] == [one.their_length for one in own], (
            "own: M0 is the rival there"
        )
        assert [one.their_length for one in exact] == [one.their_length for one in long]
        with Store.write(runs / "begun"):
            pass
        with pytest.raises(UserError, match="begun has no settings yet"):
            work.compare_answers("M1", "begun/M0", "M0")
        with pytest.raises(UserError, match="else held out none of the prompts that mine did"):
            work.compare_answers("M1", "else/M0", "M0")
        with pytest.raises(UserError, match="long has no model 'M3'; it has base, M0"):
            work.compare_answers("M1", "long/M3", "M0")
        with pytest.raises(UserError, match="nowhere"):
            work.compare_answers("M1", "nowhere/M0", "M0")


def test_the_exact_scorer_needs_no_engine(runs):
    asked: list = []
    with opened(runs, asked) as work:
        met = work.compare_answers("M1", "M0", EXACT)
        assert len(met) == len(work.run.held_out())
        assert {one.orders for one in met} == {None}
    assert asked == []


def test_an_answer_that_never_came_loses(tmp_path):
    scripted_run.copy(tmp_path / "mine", **{"prompts.count": "10", "iterations": "1"})
    with Store.write(tmp_path / "mine") as store:
        (gone, *_) = store.records(Prompt, origin="held_out")
        store._db.execute(
            "DELETE FROM record_response WHERE prompt_id = ? AND model = 'M1'", (gone.id,)
        )
    with opened(tmp_path) as work:
        met = work.compare_answers("M1", "M0", "M0")
        place = [one.id for one in work.run.held_out()].index(gone.id)
        assert (met[place].result, met[place].orders, met[place].mine_length) == (0.0, None, 0)


def test_what_is_not_there_is_said(runs):
    with opened(runs) as work:
        with pytest.raises(UserError, match="mine has no model 'M7'; it has base, M0, M1"):
            work.compare_answers("M7", "M0", "M0")
        with pytest.raises(UserError, match=r"gone\.gguf does not exist"):
            work.compare_answers("M1", "M0", "gone.gguf")


def test_a_judge_of_ranked_data_is_asked_only_for_what_is_missing(runs):
    asked: list = []
    with opened(runs, asked) as work:
        own = JudgeSet.of("", "own", work.run.ranked().evaluation, {})
        few, digest = own.first(1), own.digest
        ids = {answer.id for answer in few.ranked[0].responses}
        first = work.score_answers("M1", few, digest, 1)
        assert {one.response_id for one in first} == ids
        drawn = work.score_answers("M1", own, digest, 1)
        assert len({one.response_id for one in drawn}) == len(own.answers())
        assert drawn[: len(first)] == first
        assert work.score_answers("M1", few, digest, 1) == first, "others were judged before"
        assert {one.index for one in work.score_answers("M1", few, digest, 2)} == {0, 1}


def test_every_prompt_gets_one_answer_in_order(runs):
    texts = ["Tell me of rivers.", "And of stones?", "Tell me of rivers."]
    with opened(runs) as work:
        found = work.answer_prompts("M1", texts)
        assert [one.prompt for one in found] == texts
        assert all(one.text and one.missing is None for one in found)
        assert work.answer_prompts("M1", texts) == found


# -- the command ----------


@pytest.fixture
def command(runs, monkeypatch):
    script_models(monkeypatch)

    def give(*arguments: str):
        return evaluate(runs, *arguments)

    give.runs = runs
    return give


def test_the_command_compares_the_newest_with_m0(command):
    _, said = command()
    assert (said["model"], said["against"], said["judge"]) == ("M1", "M0", "exact")
    assert said["won"] + said["tied"] + said["lost"] == said["prompts"] == 8
    assert said["win_rate_low"] <= said["win_rate"] <= said["win_rate_high"]
    assert said["flip_rate"] is None, "nobody was asked"
    _, said = command("--judge", "M0")
    assert 0 <= said["flip_rate"] <= 1
    assert 0 <= said["length_controlled_win_rate"] <= 1


def test_alpaca_eval_reads_what_is_exported(command, runs, tmp_path):
    """Its keys: instruction, output, and the generator that its leaderboard names."""
    ended, said = command("--export", "alpaca_eval", "--out", str(tmp_path))
    mine, theirs = (json.loads(Path(path).read_text()) for path in said["files"])
    assert [row["instruction"] for row in mine] == [row["instruction"] for row in theirs]
    with Store.read(runs / "mine") as store:
        given = {
            one.prompt_id: one.text for one in store.records(Response, iteration=1, model="M1")
        }
        texts = {one.text: given.get(one.id) for one in store.records(Prompt, origin="held_out")}
    assert all(row["output"] == texts[row["instruction"]] for row in mine)
    assert {row["generator"] for row in mine} == {"mine-M1"}
    assert {frozenset(row) for row in mine} == {frozenset({"instruction", "output", "generator"})}
    assert (
        f"alpaca_eval --model_outputs {said['files'][0]} --reference_outputs {said['files'][1]}"
        in ended.stderr
    )


def test_own_prompts_are_answered_in_the_order_of_their_file(command, tmp_path):
    file = tmp_path / "set.json"
    asked = [
        f"Question {n}?" + "\n " * n for n in range(5)
    ]  # AlpacaEval finds a rival's answer by the very text, spaces too
    file.write_text(
        json.dumps([{"instruction": text, "output": "x", "dataset": "koala"} for text in asked])
    )
    _, said = command(
        "--export", "alpaca_eval", "--prompts", str(file), "--out", str(tmp_path / "out")
    )
    for path in said["files"]:
        rows = json.loads(Path(path).read_text())
        assert [row["instruction"] for row in rows] == asked
        assert all(row["output"] for row in rows)


def answer_with(monkeypatch, replies: dict[str, Reply]) -> None:
    """Have the scripted models give these replies to prompts with these words."""
    usual = Script.reply

    def reply(self: Script, request: Request, sample: int) -> Reply:
        asked = self._chat.tokenizer.decode(list(request.tokens))
        found = next((one for words, one in replies.items() if words in asked), None)
        return found or usual(self, request, sample)

    monkeypatch.setattr(Script, "reply", reply)


def test_an_empty_answer_is_an_empty_output_and_no_answer_is_left_out(
    command, tmp_path, monkeypatch
):
    answer_with(monkeypatch, {"number 1": Reply(" "), "number 2": Reply("", "refused")})
    file, asked = tmp_path / "set.json", [f"Say number {n}." for n in range(4)]
    file.write_text(json.dumps([{"instruction": text} for text in asked]))
    given = ("--export", "alpaca_eval", "--prompts", str(file), "--out", str(tmp_path / "out"))
    for _ in range(2):  # asked, and read from what was kept
        ended, said = command(*given)
        rows = json.loads(Path(said["files"][0]).read_text())
        assert [row["instruction"] for row in rows] == [asked[0], asked[1], asked[3]]
        assert [bool(row["output"]) for row in rows] == [True, False, True]
        assert said["answers"] == 3
        assert said["empty"] == {"M1": 1}
        assert said["left_out"] == {"does not fit the context": 1}
        assert "the model ended at once: 1" in " ".join(ended.stderr.split())
        assert "left out of every file" in ended.stderr


def test_where_nothing_can_be_answered_the_reason_is_the_true_one(command, tmp_path, monkeypatch):
    """The model of the tiny world takes 1,024 tokens, whatever engine.context is."""
    answer_with(monkeypatch, {"word": Reply("", "refused")})
    file = tmp_path / "set.json"
    file.write_text(json.dumps([{"instruction": "A word."}, {"instruction": "Another word."}]))
    given = ("--export", "alpaca_eval", "--prompts", str(file), "--out", str(tmp_path / "out"))
    with pytest.raises(UserError, match="a sequence has 1,024 tokens, prompt and answer: shorten"):
        command(*given)
    answer_with(monkeypatch, {"word": Reply("", "failed")})
    file.write_text(json.dumps([{"instruction": "One more word."}]))
    with pytest.raises(UserError, match="the engine died on it; resume the run with `run`, or"):
        command(*given)


def test_held_out_prompts_without_an_answer_are_counted_by_their_reason(
    runs, tmp_path, monkeypatch
):
    script_models(monkeypatch)
    shutil.copytree(runs / "mine", tmp_path / "mine")
    with Store.write(tmp_path / "mine") as store:
        held_out = store.records(Prompt, origin="held_out")
        for number, place, reason in ((1, 0, "empty"), (0, 1, "does not fit the context")):
            gone = held_out[place].id
            assert any(one.prompt_id == gone for one in store.made_by(Response, number))
            store.select(
                "DELETE FROM record_response WHERE prompt_id = ? AND model = ? AND iteration = ?",
                *(gone, f"M{number}", number),
            )
            store.select(
                "INSERT INTO drops VALUES (?, 'eval_responses', ?, ?, 1)", number, gone, reason
            )
    _, said = evaluate(tmp_path, "--export", "alpaca_eval", "--out", str(tmp_path / "out"))
    mine, theirs = (json.loads(Path(path).read_text()) for path in said["files"])
    texts = [one.text for one in held_out]
    assert [row["instruction"] for row in mine] == [texts[0], *texts[2:]]
    assert [row["instruction"] for row in theirs] == [texts[0], *texts[2:]]
    assert (mine[0]["output"], bool(theirs[0]["output"])) == ("", True)
    assert said["empty"] == {"M1": 1, "M0": 0}
    assert said["left_out"] == {"does not fit the context": 1}


def test_bad_rows_are_skipped_where_that_is_advised(command, tmp_path):
    prompts, ranked = tmp_path / "prompts.jsonl", tmp_path / "ranked.jsonl"
    prompts.write_text('{"prompt": "Say something."}\n{"prompt": 5\n')
    rows = [row | {"text": row["text"].replace("letters", "signs")} for row in ranked_rows(4)]
    ranked.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"chosen": 1}]))
    export = ("--export", "alpaca_eval", "--prompts", str(prompts), "--out", str(tmp_path / "out"))
    judge = ("judge", "--ranked", str(ranked), "--judgments", "1")
    for asked in (export, judge):
        with pytest.raises(DataError, match="or skip such rows with --skip-bad"):
            command(*asked)
        ended, said = command(*asked, "--skip-bad")
        assert "left out: " in ended.stderr
        assert said.get("answers")
    for useless in (("judge", "--skip-bad"), (*export[:2], "--skip-bad"), ("--skip-bad",)):
        with pytest.raises(UserError, match="--skip-bad"):
            command(*useless)


def test_data_of_another_kind_is_refused_without_a_word_of_other_stages(command, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "Hi.", "chosen": "Yes.", "rejected": "No."}\n')
    with pytest.raises(DataError, match="ranked data must be in OASST's schema") as caught:
        command("judge", "--ranked", str(file))
    assert "seed stage" not in str(caught.value)


def test_a_judge_is_measured_on_any_ranked_data(command, runs, tmp_path):
    _, own = command("judge")
    assert (own["prompts"], own["model"]) == (6, "M1")
    assert own["over_longer"] == pytest.approx(own["pair_accuracy"] - own["longer_pair_accuracy"])
    assert own["over_longer_low"] <= own["over_longer"] <= own["over_longer_high"]
    with Store.read(runs / "mine") as store:
        stored = store.metrics(1)
    for name in ("pair_accuracy", "pair_accuracy_error", "pair_accuracy_without_ties"):
        assert own[f"longer_{name}"] == pytest.approx(stored[f"longer_{name}"])
    assert own["forced_share"] == pytest.approx(own["read_share"] - own["written_share"])
    file = tmp_path / "ranked.jsonl"
    rows = [row | {"text": row["text"].replace("letters", "signs")} for row in ranked_rows(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, other = command("judge", "--ranked", str(file), "--judgments", "2")
    assert other["answers"] == 3 * other["prompts"] > 0
    file.write_text("".join(json.dumps(row) + "\n" for row in ranked_rows(40)))
    ended, known = command("judge", "--ranked", str(file))
    assert known["prompts"] < 40
    assert "prompts that M0 was trained on, or could have been" in ended.stderr, (
        "else it would be measured on what taught it"
    )
    with pytest.raises(UserError, match="votes: no prompt with two ranked answers in it"):
        command("judge", "--ranked", "votes")
    for number in range(3):
        answers = (f"first {number}", f"second {number}")
        votes.add_vote(
            runs / "mine",
            votes.Vote(
                f"v{number}",
                "2026-01-01",
                f"Prompt {number}?",
                1,
                "M0",
                "M1",
                *answers,
                "a",
                True,
                "M1",
                None,
                "",
                "",
            ),
        )
    _, voted = command("judge", "--ranked", "votes")
    assert (voted["prompts"], voted["answers"]) == (3, 6)
    asked: list = []
    votes.add_vote(
        runs / "mine",
        votes.Vote(
            "v9",
            "2026-01-02",
            "Prompt 0?",
            1,
            "M0",
            "M1",
            "quite other words",
            "and these",
            "b",
            True,
            "M1",
            None,
            "",
            "",
        ),
    )
    with opened(runs, asked) as work:
        before = work.notes.count(Judgment)
    command("judge", "--ranked", "votes")
    with opened(runs, asked) as work:
        assert work.notes.count(Judgment) > before, (
            "other texts are judged anew, under the same place"
        )


def test_a_judge_stands_beside_picking_the_longer_answer(command, runs):
    ended, said = command("judge", "--model", "M1")
    assert f"{said['longer_pair_accuracy']:.3f} ± " in ended.stderr
    mean, interval = (
        line for line in ended.stderr.splitlines() if line.startswith("│ judge less longer")
    )
    assert f"{said['over_longer']:+.3f}" in mean
    assert f"{said['over_longer_low']:+.3f} to {said['over_longer_high']:+.3f}" in interval
    ended, alone = command("judge", "--model", "M1", "--most", "1")
    assert (alone["over_longer_low"], alone["over_longer_high"]) == (None, None)
    (interval,) = (
        line for line in ended.stderr.splitlines() if "│ judge less longer, 95 %" in line
    )
    assert "–" in interval, "one prompt has no interval"


def test_other_settings_are_asked_anew(command, tmp_path):
    _, one = command(
        "--export", "alpaca_eval", "--prompts", str(_set(tmp_path)), "--out", str(tmp_path / "a")
    )
    more = ("--set", "evaluation.draw.temperature=0.1")
    _, two = command(
        "--export",
        "alpaca_eval",
        "--prompts",
        str(_set(tmp_path)),
        "--out",
        str(tmp_path / "b"),
        *more,
    )
    assert len(one["files"]) == len(two["files"]) == 1, "of own prompts the rival answers nothing"
    assert len(list((Path(command.runs) / "mine" / "evaluation").iterdir())) >= 2


def _set(folder: Path) -> Path:
    file = folder / "few.json"
    file.write_text(json.dumps([{"instruction": f"Question {n}?"} for n in range(2)]))
    return file


@pytest.mark.parametrize(
    "option",
    [("--name", "mine"), ("--against", "M1"), ("--export", "alpaca_eval"), ("--out", "here")],
)
def test_options_before_a_part_are_refused(command, runs, option):
    with pytest.raises(UserError, match="write options of `evaluate judge` after the word judge"):
        ended = CliRunner().invoke(
            app, ["evaluate", *option, "judge", "--name", "mine", "--runs-dir", str(runs)]
        )
        raise ended.exception


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--prompts", "some.json"), "--prompts works only with --export"),
        (("--out", "there"), "--out works only with --export"),
        (("--export", "alpaca_eval", "--judge", "M0"), "leave --judge out"),
        (
            ("--export", "alpaca_eval", "--prompts", "some.json", "--against", "M0"),
            "leave --against out",
        ),
        (("--export", "alpaca_eval", "--against", "other/M3"), "export other/M3 with --name other"),
        (("--judge", "exact", "--set", "judge.count=2"), "--set has no effect"),
    ],
)
def test_no_option_is_ignored(command, options, says):
    with pytest.raises(UserError, match=says):
        command(*options)


def test_only_what_is_asked_now_can_be_set(command):
    with pytest.raises(
        UserError, match=r"--set dpo.beta: only evaluation, engine, judge can be set here"
    ):
        command("--set", "dpo.beta=0.2")
