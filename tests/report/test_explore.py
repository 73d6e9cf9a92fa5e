"""Exploring a run: search for prompts, the history of one prompt, series for plots."""

from collections import Counter
from statistics import fmean

import pytest
import scripted_run

from selfreward_lite.bench.app import fill_run
from selfreward_lite.data.records import (
    Battle,
    Judgment,
    JudgmentPair,
    Outcome,
    Prompt,
    Response,
    ResponsePair,
)
from selfreward_lite.data.store import Store
from selfreward_lite.report import explore, plots, summary
from selfreward_lite.run import prepare
from selfreward_lite.run.steps.seed_stage import FIRST_LOOK
from selfreward_lite.system.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    scripted_run.copy(folder, **{"prompts.count": "40"})
    with Store.read(folder) as store:
        yield store


def test_prompts_are_found_by_group_words_and_what_they_gave(run):
    assert explore.list_groups(run) == ["M2", "M1", "ranked by people", "held out"]
    prompts = run.records(Prompt, iteration=1)
    hits, total = explore.find_prompts(run, "M1")
    assert (total, [hit.id for hit in hits]) == (
        len(prompts),
        [one.id for one in sorted(prompts, key=lambda one: one.index)][:50],
    )
    word = prompts[3].text.split()[-1].strip(".")
    found, count = explore.find_prompts(run, "M1", f"{word.upper()} tell")
    assert count == len(found) == sum(word in one.text for one in prompts) > 0
    paired, without = (
        explore.find_prompts(run, "M1", pairs="gave a pair"),
        explore.find_prompts(run, "M1", pairs="gave none"),
    )
    assert paired[1] == run.count(ResponsePair, iteration=1)
    assert paired[1] + without[1] == total
    assert all(hit.chosen > hit.rejected for hit in paired[0])
    assert all(hit.chosen is None for hit in without[0])
    assert sum(hit.judgment_pair for hit in hits) == run.count(JudgmentPair, iteration=1) > 0


def test_what_is_searched_for_is_no_pattern(run):
    for words in ("%", "_", "\\", "' OR 1=1 --", '"'):
        assert explore.find_prompts(run, "M1", words) == ([], 0)


def test_pages_hold_every_prompt_once(run, monkeypatch):
    monkeypatch.setattr(explore, "PAGE", 7)
    seen = [hit.id for page in range(6) for hit in explore.find_prompts(run, "M1", page=page)[0]]
    assert len(seen) == len(set(seen)) == run.count(Prompt, iteration=1)


def test_a_prompt_shows_all_that_became_of_it(run):
    pair = run.records(ResponsePair, iteration=1)[0]
    found = explore.load_history(run, pair.prompt_id)
    parts = {one.part: one.response.id for one in found.answers}
    assert (parts["chosen"], parts["rejected"]) == (pair.chosen_id, pair.rejected_id)
    chosen = next(one for one in found.answers if one.part == "chosen")
    assert list(chosen.means("mean").values()) == pytest.approx([pair.chosen_score])
    judged = run.records(Judgment, iteration=1, response_id=pair.chosen_id)
    assert {one.id for one in chosen.judgments} == {one.id for one in judged}
    assert chosen.means("mean") == {
        "M0": pytest.approx(fmean(one.score for one in judged if one.score is not None))
    }
    assert found.why.startswith("Chosen: the shortest of ")


def test_why_there_is_no_pair_is_what_the_stage_counted(run):
    reasons = Counter()
    for hit in explore.find_prompts(run, "M1", pairs="gave none")[0]:
        why = explore.load_history(run, hit.id).why
        assert why.startswith("No pair: ")
        reasons[why.removeprefix("No pair: ").removesuffix(".")] += 1
    assert dict(reasons) == run.drops(1, "response_pairs")


def test_a_response_that_could_not_be_chosen_says_why(run):
    cut = next(one for one in run.records(Response, iteration=1) if one.finish == "length")
    found = explore.load_history(run, cut.prompt_id)
    assert (
        next(one for one in found.answers if one.response.id == cut.id).part
        == "cut by the length limit: in no pair"
    )


def test_battles_show_both_judgments_and_their_strengths(run):
    pair = run.records(JudgmentPair, iteration=1)[0]
    prompt = run.records(Response, id=pair.response_id)[0].prompt_id
    found = explore.load_history(run, prompt)
    fought = [
        one for one in run.records(Battle, iteration=1) if one.response_id == pair.response_id
    ]
    assert {one.id for one in found.battles} == {one.id for one in fought}
    assert found.judgment_pair == pair
    strengths = found.strengths
    assert strengths[pair.chosen_id] == pytest.approx(pair.chosen_strength)


def test_ranked_and_held_out_prompts_have_their_authors(run):
    ranked = explore.load_history(run, explore.find_prompts(run, "ranked by people")[0][0].id)
    people = [one for one in ranked.answers if one.response.model == "human"]
    assert [one.part for one in people] == [
        f"people's rank {place}" for place in range(len(people))
    ]
    held_out = explore.load_history(run, explore.find_prompts(run, "held out")[0][0].id)
    assert {one.response.model for one in held_out.answers} == {"base", "M0", "M1", "M2"}


@pytest.mark.parametrize("group", ["M9", "nothing", "M1; DROP TABLE facts"])
def test_a_group_that_is_not_there_is_said(run, group):
    with pytest.raises(UserError, match="has no prompts of"):
        explore.find_prompts(run, group)


def test_a_prompt_that_is_not_there_is_said(run):
    with pytest.raises(UserError, match="has no prompt nothing"):
        explore.load_history(run, "nothing")


def test_an_iteration_under_way_says_so(tmp_path):
    with Store.write(tmp_path / "mine") as store:
        fill_run(store, 100)
        assert explore.load_history(
            store, explore.find_prompts(store, "M1")[0][0].id
        ).why.startswith("Pairs are made when every response")


def steps(store: Store, work) -> int:
    """How many thousand instructions of its machine SQLite takes."""
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    store._db.set_progress_handler(count, 1000)
    work()
    store._db.set_progress_handler(None, 0)
    return counted


@pytest.mark.slow
def test_one_prompt_costs_the_same_in_a_large_run(tmp_path):
    costs = []
    for count in (1_000, 20_000):
        with Store.write(tmp_path / f"{count}") as store:
            fill_run(store, count)
            prompt = explore.find_prompts(store, "M1")[0][20].id
            costs.append(
                steps(store, lambda store=store, prompt=prompt: explore.load_history(store, prompt))
            )
    assert costs[1] <= costs[0] + 1, "a table was read from end to end"


# -- series --------------------------------------------------------------------------------------


def test_series_say_what_the_report_says(run):
    rows = summary.summarize_run(run)["iterations"]
    worth = plots.measurement_series(rows)
    rates = {one["model"]: one["value"] for one in worth["win_rate"]}
    assert rates == {f"M{row['iteration']}": row["win_rate_vs_seed"] for row in rows}
    shares = worth["shares"]
    assert {(one["model"], one["what"]): one["value"] for one in shares}["M1", "tie rate"] == rows[
        1
    ]["tie_rate"]


def test_scores_are_shares_of_what_was_read(run):
    given = [one.score for one in summary.load_training_judgments(run, 1) if one.score is not None]
    rows = [one for one in plots.score_shares(run) if one["judge"] == "M0"]
    assert sum(one["share"] for one in rows) == pytest.approx(1)
    assert {one["score"]: one["share"] for one in rows}[3] == pytest.approx(
        given.count(3.0) / len(given)
    )


def test_a_tie_counts_where_one_judgment_could_be_read(tmp_path):
    answers = [Response(f"r{n}", 1, "M0", "p", n, f"text {n}", "stop", 2) for n in range(2)]
    judged = [
        Judgment(f"j{n}{k}", 1, "M0", f"r{n}", k, "", "stop", 2, score, score)
        for n in range(2)
        for k, score in enumerate((3.0, None, None))
    ]
    with Store.write(tmp_path) as store:
        prepare.load_or_create_settings(store, {}, "tiny")
        store.commit(1, "responses", "p", Outcome([*answers, *judged]))
        assert summary.measure_tie_rate(store, 1, judged) == 1.0


def test_gaps_and_lengths_are_means_of_the_records(run):
    pairs = run.records(ResponsePair, iteration=1)
    rows = {(one["model"], one["which"]): one for one in plots.chosen_vs_rejected(run)}
    assert rows["M1", "chosen"]["score"] == pytest.approx(fmean(one.chosen_score for one in pairs))
    assert rows["M1", "rejected"]["characters"] == pytest.approx(
        fmean(one.rejected_length for one in pairs)
    )
    judged = {
        one.response_id for one in summary.load_training_judgments(run, 1) if one.score is not None
    }
    texts = {one.id: one.text for one in run.records(Response, iteration=1, model="M0")}
    assert sorted(one["characters"] for one in plots.lengths_and_scores(run, 1)) == sorted(
        len(texts[name]) for name in judged if name in texts
    )


def test_biases_of_the_meta_judge_by_hand(run):
    scores = {one.id: one.score for one in run.records(Judgment, iteration=1)}
    fought = [one for one in run.records(Battle, iteration=1) if one.verdict]
    read = [(one.verdict, scores[one.first_id], scores[one.second_id]) for one in fought]
    read = [one for one in read if None not in one]
    rows = {one["what"]: one["value"] for one in plots.meta_judge_bias(run) if one["judge"] == "M0"}
    assert rows["shown first"] == pytest.approx(fmean(one.verdict > 0 for one in fought))
    assert rows["shown first, equal scores"] == pytest.approx(
        fmean(verdict > 0 for verdict, a, b in read if a == b)
    )
    assert rows["higher score"] == pytest.approx(
        fmean((verdict > 0) == (a > b) for verdict, a, b in read if a != b)
    )


def test_pictures_are_drawn_from_the_same_series(run):
    axes = plots.draw_worth(run).get_axes()
    measured = plots.measurement_series(summary.summarize_run(run)["iterations"])
    assert [one.get_title() for one in axes] == [plots.PANELS[key].title for key in measured]
    assert len(axes) == 5
    curves = [title for title, points in plots.training_curves(run).items() if points]
    assert [one.get_title() for one in plots.draw_training(run).get_axes()] == curves
    assert curves == ["loss"], "what was not reported has no panel"


def test_the_judge_is_drawn_over_the_level_of_the_longer_answer(run):
    rows = summary.summarize_run(run)["iterations"]
    (axes,) = [
        one
        for one in plots.draw_worth(run).get_axes()
        if one.get_title() == plots.PANELS["agreement"].title
    ]
    (level,) = [line for line in axes.get_lines() if line.get_label() == plots.LONGER]
    assert set(level.get_ydata()) == {rows[0]["longer_pair_accuracy"]}
    assert level.get_linewidth() == 1
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {
        "judge pair accuracy",
        "pick the longer: pair accuracy",
    }
    drawn = plots.measurement_series(rows)["agreement"]
    assert {one["value"] for one in drawn if one["what"] == plots.LONGER} == {
        rows[0]["longer_pair_accuracy"]
    }


def test_forced_and_first_scores_are_counted(tmp_path):
    scripted_run.copy(tmp_path / "mine", iterations="1", **{"judge.close": "drop"})
    with Store.write(tmp_path / "mine") as store:
        drawn = summary.load_training_judgments(store, 1)
        read = [one.id for one in drawn if one.score is not None]
        store._db.execute("UPDATE record_judgment SET source = 'written'")
        for source, name in (("forced", read[0]), ("forced", read[1]), ("first", read[2])):
            store._db.execute("UPDATE record_judgment SET source = ? WHERE id = ?", (source, name))
        row = summary.summarize_run(store)["iterations"][1]
        assert (row["judgments_forced"], row["judgments_first"]) == (2, 1)
        assert row["judgments_unread"] == len(drawn) - len(read)
        assert row["forced_rate"] == pytest.approx(2 / len(drawn), abs=1e-4)
        shown = {row[0]: row for row in summary.build_run_table([row]).rows}
        assert shown["judgments forced"][1] == "2"


def test_series_of_a_run_that_has_nothing_are_empty(tmp_path):
    with Store.write(tmp_path / "mine") as store:
        fill_run(store, 0)
        assert (
            plots.chosen_vs_rejected(store),
            plots.meta_judge_bias(store),
            plots.score_shares(store),
            plots.lengths_and_scores(store, 1),
        ) == ([], [], [], [])


def test_judgments_of_the_first_look_are_not_among_those_of_eft(run):
    """The base judged some of the same answers before, to show whether it can judge."""
    looked = {one.response_id: one.id for one in run.records(Judgment) if one.index == FIRST_LOOK}
    counted = summary.load_training_judgments(run, 0)
    assert looked.keys() & {one.response_id for one in counted}
    assert counted and not {one.id for one in counted} & set(looked.values())
