"""The paper table: arms share what they should, claims follow from rows, it resumes."""

import json
import math
import random
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature

import pytest
from repository import ROOT, generated_block
from scipy import stats
from scripted_run import SMALL
from scripted_runtime import scripted_runtime
from simulator import sped_up
from typer.testing import CliRunner

from selfreward_lite import config
from selfreward_lite.bench import claim_tables, claims, paper_table, seeds
from selfreward_lite.bench.claim_tables import PaperTable
from selfreward_lite.bench.claims import CLAIMS, QUESTIONS, Claim, Difference, Found
from selfreward_lite.bench.paper_table import ARMS
from selfreward_lite.bench.seeds import Arm, ModelRow, average
from selfreward_lite.cli import evaluate
from selfreward_lite.cli.main import app
from selfreward_lite.cli.options import parse_seeds
from selfreward_lite.data.records import (
    Battle,
    Candidate,
    Judgment,
    Outcome,
    Prompt,
    Response,
    ResponsePair,
)
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.data.tiny.bias import flip_brevity
from selfreward_lite.data.tiny.score import score_answer
from selfreward_lite.method import statistics
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.report import plots
from selfreward_lite.system.errors import UserError

SEEDS = (7, 8)
FEW = (
    Arm("Self-Rewarding", paper_table.SELF),
    Arm("Meta-Rewarding", {}),
    Arm("no EFT", {}, {"seed_stage.eft": "false"}),
)


def run_few(folder, open_runtime, said: list[str]) -> list[ModelRow]:
    settings = {**SMALL, "prompts.count": "5"}
    with sped_up(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeds, "open_runtime", open_runtime)
        return paper_table.run_table(folder, SEEDS, lambda at: None, said.append, FEW, settings)


@contextmanager
def scripted():
    yield scripted_runtime(ChatFormat.load(TINY_MODEL))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    said: list[str] = []
    return folder, run_few(folder, scripted, said), said


def test_every_arm_has_a_row_for_the_base_and_every_model(made):
    _, rows, said = made
    assert {(row.arm, row.seed, row.iteration) for row in rows} == {
        (arm.name, seed, iteration)
        for arm in FEW
        for seed in SEEDS
        for iteration in (-1, 0, 1, 2, 3)
    }
    assert said[0] == "seed 7: Self-Rewarding (1 of 6)"
    assert "h left" in said[-1]


def test_arms_share_their_seed_stage_and_their_prompts(made):
    folder, rows, _ = made
    runs = [folder / "seed-7" / arm.name for arm in FEW]
    texts = []
    for run in runs:
        with Store.read(run) as store:
            texts.append(
                [[one.text for one in store.records(Prompt, iteration=t)] for t in (1, 2, 3)]
            )
            assert store.count(Candidate)
    assert texts[0] == texts[1]
    assert [len(one) for one in texts[0]] == [5, 5, 5]
    first = {(row.arm, row.iteration): row.values for row in rows if row.seed == 7}
    assert first["Self-Rewarding", 0] == first["Meta-Rewarding", 0]
    assert first["Self-Rewarding", 0]["win_rate"] == 0.5, "against itself"
    with Store.read(runs[0]) as store:
        spent = sum(row.seconds for row in store.stages() if row.iteration > 0)
    assert sum(first["Self-Rewarding", t]["seconds"] for t in (1, 2, 3)) == pytest.approx(
        spent, abs=0.2
    )
    assert [first["Self-Rewarding", t].get("training_steps") for t in (0, 1, 2, 3)] == [
        None,
        3,
        3,
        3,
    ], "as the trainer said"
    assert (folder / "seed-7" / "seed-stage eft=false").is_dir()


def test_a_finished_table_is_read_and_other_settings_are_refused(made):
    folder, rows, _ = made

    @contextmanager
    def none():
        yield None

    with Store.write(folder / "seed-7" / "Meta-Rewarding") as store:
        begun = store.fact("settings")
        store.state(
            "settings",
            begun
            | {
                "dpo": {
                    key: begun["dpo"][key] for key in begun["dpo"] if key != "precompute_reference"
                }
            },
        )
    assert run_few(folder, none, []) == rows, "of a version with fewer settings"
    with Store.write(folder / "seed-7" / "Meta-Rewarding") as store:
        store.state("settings", begun | {"dpo": begun["dpo"] | {"beta": 0.5}})
    with pytest.raises(UserError, match="seed-7/Meta-Rewarding was started with other settings"):
        run_few(folder, none, [])
    with Store.write(folder / "seed-7" / "Meta-Rewarding") as store:
        store.state("settings", begun)


def test_every_arm_is_a_setting_that_there_is():
    for arm in ARMS:
        config.load("tiny", {**paper_table.SIZES, **arm.change, **arm.seed_stage})
    assert len({arm.name for arm in ARMS}) == len(ARMS)


def test_every_claim_is_about_arms_and_columns_that_there_are(made):
    _, rows, _ = made
    columns = set().union(*(row.values for row in rows)) | {
        "tie_accuracy",
        "meta_accuracy",
        "pair_accuracy",
    }
    for claim in (*CLAIMS, *QUESTIONS):
        for one in claim.differences:
            assert one.column in columns, one
            for model in filter(None, (one.more, one.less)):
                assert model[0] in {arm.name for arm in ARMS}, one


# -- claims ----------------------------------------------------------------------------------------


def rows_of(*seeds: tuple[float, float]) -> list[ModelRow]:
    return [
        ModelRow(arm, seed, 3, {} if value is None else {"x": value})
        for seed, pair in enumerate(seeds)
        for arm, value in zip("AB", pair, strict=True)
    ]


CLAIM = Claim("C", "", "A beats B", (Difference("A less B", "x", ("A", 3), ("B", 3)),))


@pytest.mark.parametrize(
    ("seeds", "verdict"),
    [
        (((1.0, 0.5), (1.1, 0.5), (0.9, 0.5)), "held"),
        (((0.5, 1.0), (0.5, 1.1), (0.5, 0.9)), "not held: the opposite"),
        (((1.0, 0.5), (0.5, 1.0), (1.0, 0.9)), "not held: no difference seen"),
        (((1.0, 0.5),), "not measured"),
        (((1.0, 0.5), (1.1, 0.5), (0.9, 0.5), (0.9, None)), "not measured"),
        ((), "not measured"),
    ],
)
def test_a_claim_is_held_where_its_interval_is_above_zero(seeds, verdict):
    assert claims.judge_claim(CLAIM, rows_of(*seeds)).verdict == verdict


def test_what_has_no_room_to_rise_says_nothing_of_a_claim():
    rows = [
        *rows_of((1.0, 1.0), (1.0, 1.0), (0.9, 1.0)),
        *(ModelRow("C", seed, 3, {"x": 0.5 + seed / 100}) for seed in range(3)),
    ]
    rows = [replace(row, values={**row.values, "judge_x": row.values["x"]}) for row in rows]
    full, held, fails, fell = (
        Difference(f"{more} less {less}", "judge_x", (more, 3), (less, 3))
        for more, less in (("A", "B"), ("A", "C"), ("C", "A"), ("C", "B"))
    )
    assert claims.judge_claim(Claim("C", "", "", (full,)), rows).verdict == "not testable here"
    judged = claims.judge_claim(Claim("C", "", "", (full, held)), rows)
    assert (judged.verdict, [one.verdict for one in judged.found]) == (
        "held where testable here",
        ["not testable here", "held"],
    )
    for lower in (fails, fell):
        assert (
            claims.judge_claim(Claim("C", "", "", (full, lower)), rows).verdict
            == "not held: the opposite"
        ), "from 1 too"
    free = Difference("A less B", "x", ("A", 3), ("B", 3))
    assert (
        claims.judge_claim(Claim("C", "", "", (free,)), rows).verdict
        == "not held: no difference seen"
    ), "what is no share may rise"


def test_a_claim_of_several_parts_is_as_good_as_its_worst():
    other = Difference("B less A", "x", ("B", 3), ("A", 3))
    both = Claim("C", "", "", (*CLAIM.differences, other))
    assert (
        claims.judge_claim(both, rows_of((1.0, 0.5), (1.1, 0.5), (0.9, 0.5))).verdict
        == "not held: the opposite"
    )
    unsure = Difference("y", "y", ("A", 3), ("B", 3))
    rows = [
        replace(row, values={**row.values, "y": float(row.seed % 2)}) if row.arm == "A" else row
        for row in rows_of((1.0, 0.5), (1.1, 0.5), (0.9, 0.5), (1.0, 0.5))
    ]
    rows = [replace(row, values={"y": 0.5, **row.values}) for row in rows]
    assert (
        claims.judge_claim(Claim("C", "", "", (*CLAIM.differences, unsure)), rows).verdict
        == "held in part"
    )
    assert (
        claims.judge_claim(Claim("C", "", "", (*both.differences, unsure)), rows).verdict
        == "not held: the opposite"
    )


def test_differences_are_taken_seed_by_seed():
    rng = random.Random(4)
    seeds = [(base + 0.1 + rng.gauss(0, 0.01), base) for base in (rng.random() for _ in range(8))]
    (found,) = claims.judge_claim(CLAIM, rows_of(*seeds)).found
    gaps = [a - b for a, b in seeds]
    expected = stats.t.interval(0.95, 7, loc=sum(gaps) / 8, scale=stats.sem(gaps))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.seeds == 8
    assert statistics.t_interval([1.0])[0] == 1.0


def test_the_document_is_json_and_holds_table_claims_and_rows(made):
    _, rows, _ = made
    table = PaperTable(rows)
    document = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert document["seeds"] == [7, 8]
    assert list(document["table"]) == ["M0 only", "Self-Rewarding", "Meta-Rewarding", "no EFT"]
    assert len(document["rows"]) == len(rows)
    assert {one["verdict"] for one in document["claims"]} >= {"not measured"}
    again = PaperTable([ModelRow(*row) for row in document["rows"]])
    assert again.to_json() == document, "all of it follows from its rows"
    assert plots.to_svg(plots.draw_curves(table.panels()))
    page = table.to_markdown()
    assert page.count("\n| ") == 3 + len(document["table"]) + len(document["claims"])
    assert "| C6 | EFT (here with decoys) improves all five metrics of the judge | " in page
    assert page.rstrip().endswith(claims.NOTES[-1]), (
        "what is not testable here, and what was given to the loop (C21)"
    )
    assert claims.NOTES[0] in page
    spent = document["seconds_of_an_arm"]
    assert 0 <= spent["median"] <= spent["most"]


def test_a_difference_as_text_says_what_it_lacks():
    found = Found("more", 0.1, 0.05, 0.15, 8, 8, has_room=True)
    assert str(found) == "more: +0.100 (+0.050 to +0.150)"
    full = Found("more", 0.0, -0.05, 0.05, 8, 8, has_room=False)
    assert str(full) == "more: +0.000 (-0.050 to +0.050, no room to rise)"
    lone = Found("more", 0.1, math.nan, math.nan, 1, 8, has_room=True)
    assert str(lone) == "more: +0.100 (– to –, seeds: 1)"


def test_an_arm_has_one_colour_in_all_panels():
    lines = {
        "first": {"A": [(0, 1.0, 0.1)], "B": [(0, 1.0, 0.1)]},
        "second": {"B": [(0, 1.0, 0.1)]},
    }
    first, second = (
        {one.get_label(): one[0].get_color() for one in axes.containers}
        for axes in plots.draw_curves(lines).axes
    )
    assert first["A"] != first["B"] == second["B"]


def test_data_columns_are_means_over_iterations():
    rows = [
        ModelRow("A", seed, t, {"tie_rate": t / 10 + seed}) for seed in (0, 1) for t in (1, 2, 3)
    ]
    assert claim_tables.average_arms(rows)["A"]["tie_rate"] == pytest.approx((0.7, 0.5))
    early = [*rows, ModelRow("A", 2, 1, {"tie_rate": 9.0})]
    assert claim_tables.average_arms(early)["A (M3, 2 seeds)"]["tie_rate"] == pytest.approx(
        (0.7, 0.5)
    )


def test_a_judgment_turned_flip_brevity_is_still_a_judgment():
    brief = "check a a ok\nsome yes\nhalf yes\nright yes\nform no\nbrief yes\nScore: 4"
    assert flip_brevity(brief).splitlines()[-2:] == ["brief no", "Score: 3"]
    assert flip_brevity(flip_brevity(brief)) == brief
    odd = "brief yes\nScore: 0"
    assert flip_brevity(odd) == odd, "no score outside the scale"
    assert flip_brevity("I would give it many points.") == "I would give it many points."


def test_the_command_writes_table_and_figure(made, monkeypatch, tmp_path):
    folder, rows, _ = made
    monkeypatch.setattr(
        paper_table,
        "run_table",
        lambda folder, seeds, *_: [row for row in rows if row.seed in seeds],
    )
    ended = CliRunner().invoke(
        app,
        [
            "evaluate",
            "paper-table",
            "--seeds",
            "7-8",
            "--runs-dir",
            str(folder),
            "--out",
            str(tmp_path / "out"),
        ],
    )
    assert ended.exception is None, ended.exception
    said = json.loads(ended.stdout.splitlines()[-1])
    assert set(said["verdicts"]) == {claim.name for claim in (*CLAIMS, *QUESTIONS)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "paper-table.json",
        "paper-table.md",
        "paper-table.png",
    }
    document = json.loads((tmp_path / "out" / "paper-table.json").read_text())
    assert document["command"].endswith("evaluate paper-table --seeds 7-8")
    assert document["hardware"]
    assert document["versions"]["llama-cpp-python"]
    table = PaperTable(rows)
    assert (tmp_path / "out" / "paper-table.md").read_text() == table.to_markdown()
    assert {name: document[name] for name in table.to_json()} == table.to_json()


def test_data_is_compared_with_exact_scores(tmp_path):
    """Answers worth 5, 3 and 0 points, all given 3; expected scores order two of three pairs."""
    prompt = Prompt("p", 1, "own", 0, "Sort the letters c a b.")
    texts = {"good": "The answer is a b c.", "wordy": "a b c", "none": "no idea"}
    expected = {"good": 3.4, "wordy": 2.0, "none": 2.5}
    responses = [
        Response(name, 1, "M0", "p", place, text, "stop", 5)
        for place, (name, text) in enumerate(texts.items())
    ]
    judgments = [
        Judgment(f"of {name}", 1, "M0", name, 0, "", "stop", 5, 3.0, value)
        for name, value in expected.items()
    ]
    told = {"near": 4.0, "far": 2.0, "farther": 1.0, "opposite": None}
    judgments += [
        Judgment(name, 1, "M0", "good", place, name, "stop", 5, score, None)
        for place, (name, score) in enumerate(told.items(), 1)
    ]
    battles = [
        ("near", "far", 1),
        ("far", "near", 1),
        ("farther", "far", -1),
        ("near", "opposite", 1),
        ("near", "far", 0),
    ]
    with Store.write(tmp_path / "run") as store:
        store.state("run", "seed 1")
        records = [prompt, *responses, *judgments]
        chosen = {
            "good": "none",
            "none": "wordy",
            "wordy": "wordy",
        }  # better, worse, of the same worth
        records += [
            ResponsePair(f"pair {one}", 1, "p", one, other, 3.0, 2.0, 9, 9, 0.0)
            for one, other in chosen.items()
        ]
        records += [
            Battle(str(place), 1, f"M{place}", "good", first, second, verdict, "")
            for place, (first, second, verdict) in enumerate(battles)
        ]
        store.begin_stage(1, "made", 1)
        store.commit(1, "made", "all", Outcome(tuple(records)))
        worth = {name: score_answer(prompt.text, text).score for name, text in texts.items()}
        assert (worth["good"], worth["none"]) == (5, 0)
        assert 0 < worth["wordy"] < 5
        found = paper_table.measure_data(store, 1)
        assert found["tie_accuracy"] == pytest.approx(2 / 3), "wordy stands below none, wrongly"
        assert found["pair_accuracy"] == pytest.approx(1 / 2)
        assert found["meta_accuracy"] == pytest.approx(2 / 3), (
            "one of three decided battles went to the farther one"
        )
        assert set(paper_table.measure_data(store, 2).values()) == {None}


def test_the_published_table_follows_from_its_rows():
    """docs/results.md and its JSON file. The sentences around the table rest on these verdicts."""
    path = ROOT / "docs" / "results" / "paper-table.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    published = signature(evaluate.paper_table).parameters["seeds"].default
    assert document["seeds"] == parse_seeds(published)
    assert {arm for arm, *_ in document["rows"]} == {arm.name for arm in paper_table.ARMS}
    table = PaperTable([ModelRow(*row) for row in document["rows"]])
    made = table.to_json()
    assert made == {name: document[name] for name in made}
    assert generated_block("results.md", "paper-table") == table.to_markdown()
    by_verdict = {
        verdict: {one["name"] for one in document["claims"] if one["verdict"] == verdict}
        for verdict in ("held", "held in part", "not held: the opposite", "not measured")
    }
    assert by_verdict == {
        "held": {"C8", "C9", "C15", "C16", "C17", "C18", "C19", "C20",
                 "Q0", "Q1", "Q3", "Q5", "Q9", "Q11", "Q12"},
        "held in part": {"C7"},
        "not held: the opposite": {"C10", "Q7"},
        "not measured": {"C6"},
    }  # fmt: skip
    best = [
        (row.iteration, row.values.get("judge_five_best"))
        for row in table.rows
        if row.arm == claims.SR
    ]
    assert (best.count((-1, 1.0)), best.count((0, 1.0))) == (4, 8), "no room to rise (C6)"
    assert best.count((-1, None)) == 1, "not measured (C6)"
    means = average(table.rows, ["length"])
    longer = [name for name, arm in means.items() if arm[3]["length"] > arm[0]["length"]]
    assert longer == ["biased: Self-Rewarding"]
