"""Cards of task sets: accuracies and comparisons by hand; questions, seeds and what is left out."""

import pytest
from method_records import RUN, finish_asking, make_completions
from task_rows import write_rows

from selfreward_lite.data.records import TaskAnswer, make_id
from selfreward_lite.data.task_sets import parse_tasks
from selfreward_lite.method.roles import Role
from selfreward_lite.method.statistics import mean_and_error, paired_interval
from selfreward_lite.method.task_answers import ask_for_task_answers, pick_tasks
from selfreward_lite.method.task_card import build_card


def answer(model, task, strict, *, parts=1, loose=None, index=0, name="ifeval", **changed):
    fields = {"text": "", "finish": "stop", "tokens": 3, "faults": 0} | changed
    return TaskAnswer(
        make_id(RUN, TaskAnswer, 0, model, name, str(task), index),
        0,
        model,
        name,
        str(task),
        index,
        parts=parts,
        strict=strict,
        loose=strict if loose is None else loose,
        **fields,
    )


def test_accuracies_by_prompt_and_by_instruction_by_hand():
    """Of two prompts with 1 and 3 instructions, 0 and 2 followed strictly, 1 and 3 loosely."""
    card = build_card([answer("M0", 1, 0, loose=1), answer("M0", 2, 2, parts=3, loose=3)], ["M0"])
    (score,) = card.scores
    means = {metric: mean for metric, (mean, _) in score.accuracies.items()}
    assert means == {
        "strict": 0.0,
        "loose": 1.0,
        "instructions_strict": 2 / 4,
        "instructions_loose": 1.0,
    }
    assert (score.prompts, score.answers) == (2, 2)
    # an instruction is no draw of its own: the three of a prompt form one group
    assert score.accuracies["instructions_strict"][1] == mean_and_error([[0], [2 / 3] * 3])[1]


def test_several_answers_to_a_prompt_are_one_draw():
    once = build_card([answer("M0", n, n % 2) for n in range(10)], ["M0"]).scores[0]
    many = [answer("M0", n, n % 2, index=i) for n in range(10) for i in range(4)]
    again = build_card(many, ["M0"]).scores[0]
    assert again.accuracies == once.accuracies
    assert (again.prompts, again.answers) == (10, 40)


def test_models_are_compared_on_the_prompts_that_both_answered():
    base = [answer("base", n, 0) for n in range(40)] + [answer("base", 99, 1)]
    mine = [answer("M1", n, int(n < 20), index=i) for n in range(40) for i in range(2)]
    (change,) = build_card([*mine, *base], ["base", "M1"]).changes
    assert (change.model, change.against, change.verdict) == ("M1", "base", "better")
    assert (change.first.prompts, change.first.changed, change.first.mean) == (40, 20, 0.5)
    after = [[float(n < 20)] for n in range(40)]
    low, high = paired_interval(after, [[0.0]] * 40)
    assert (change.first.low, change.first.high) == pytest.approx((low, high))
    (back,) = build_card([*mine, *base], ["M1", "base"]).changes
    assert back.verdict == "worse"


def test_each_model_is_compared_with_the_first_and_the_one_before():
    models = ["base", "M0", "M1", "M2"]
    card = build_card([answer(model, 1, 1) for model in models], models)
    assert [(one.model, one.against) for one in card.changes] == [
        ("M0", "base"),
        ("M1", "base"),
        ("M1", "M0"),
        ("M2", "base"),
        ("M2", "M1"),
    ]
    assert {one.verdict for one in card.changes} == {"no difference seen"}


def test_the_loose_accuracy_decides_ifbench():
    given = [answer("base", n, 0, loose=0, name="ifbench") for n in range(20)]
    given += [answer("M0", n, 0, loose=1, name="ifbench") for n in range(20)]
    (change,) = build_card(given, ["base", "M0"]).changes
    assert change.verdict == "better"
    assert change.changes["strict"].direction == 0


def test_faults_and_cut_answers_are_counted():
    given = [answer("M0", 1, 0, faults=2), answer("M0", 2, 0, finish="length", name="ifeval")]
    (score,) = build_card(given, ["M0"]).scores
    assert (score.faults, score.cut) == (2, 0.5)


def test_a_limit_keeps_the_same_tasks_and_names_what_is_left_out(tmp_path):
    tasks = parse_tasks("ifeval", write_rows(tmp_path, "ifeval"))
    asked, left_out = pick_tasks(tasks, None)
    assert {one.key for one in asked} == {"11", "12"}
    assert left_out == {"length_constraints:number_sentences": 1}
    assert pick_tasks(tasks[::-1], 1)[0] == asked[:1], "whatever the order of the file"


def test_every_answer_is_scored_as_it_comes(tmp_path, role, chat):
    nails, *_ = parse_tasks("gsm8k", write_rows(tmp_path, "gsm8k"))
    asking = ask_for_task_answers(nails, role, 4)
    (request,) = next(asking)
    said = chat.tokenizer.decode(list(request.tokens), skip_special_tokens=True)
    assert "Two boxes hold 600 nails each." in said and "one number" in said
    texts = [" 2 * 600 = 1,200 ", "600", "600", ""]
    outcome = finish_asking(asking, [make_completions(request, texts)])
    assert [(one.text, one.strict, one.index) for one in outcome.records] == [
        ("2 * 600 = 1,200", 1, 0),
        ("600", 0, 1),
        ("600", 0, 2),
        ("", 0, 3),
    ]
    assert len({one.id for one in outcome.records}) == 4
    assert not outcome.drops


def test_an_answer_that_does_not_fit_is_dropped_and_counted(tmp_path, role):
    nails, *_ = parse_tasks("gsm8k", write_rows(tmp_path, "gsm8k"))
    asking = ask_for_task_answers(nails, role, 2)
    (request,) = next(asking)
    outcome = finish_asking(asking, [make_completions(request, ["", ""], finish="refused")])
    assert not outcome.records
    assert outcome.drops == {"does not fit the context": 2}


def test_two_models_get_the_same_seeds(tmp_path, role, chat):
    task, *_ = parse_tasks("gsm8k", write_rows(tmp_path, "gsm8k"))
    other = Role("M1", "x.gguf", chat, role.sampling, "compact", RUN, role.seed, 2)
    (one,), (two,) = (next(ask_for_task_answers(task, each, 3)) for each in (role, other))
    assert one.seeds == two.seeds
    assert one.key != two.key
