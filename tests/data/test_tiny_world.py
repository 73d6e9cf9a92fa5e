"""The tiny world: tasks and scorer agree, parts never overlap, a short rebuild learns."""

import random
from collections import Counter
from dataclasses import astuple
from statistics import fmean

import pytest

from selfreward_lite.data.tiny import TINY_MODEL, ranked, tasks
from selfreward_lite.data.tiny.answers import Habits, award_points, write_answer, write_chatter
from selfreward_lite.data.tiny.score import Points, score_answer
from selfreward_lite.method.parsing import parse_verdict
from selfreward_lite.method.templates import fill_template, make_nonce
from selfreward_lite.models.chat_template import user
from selfreward_lite.training.tiny_base import corpus


def test_the_scorer_agrees_with_answers_whose_faults_are_known():
    rng = random.Random(3)
    for _ in range(5000):
        task = tasks.draw_task(rng, "corpus")
        answer = write_answer(task, rng, Habits())
        points = award_points(answer, task.solution)
        assert astuple(score_answer(task.prompt, answer.text)) == points, (task.prompt, answer.text)


@pytest.mark.parametrize(
    ("answer", "points"),
    [
        ("The answer is b a c.", "11111"),
        ("b a c", "11101"),
        ("b a c.", "11101"),
        ("The answer is b a c", "11101"),
        ("The answer is c a b.", "10011"),
        ("The answer is b a x.", "11011"),
        ("x y z", "00001"),
        ("", "00000"),
        ("The answer is b a c. b a c", "11000"),
        ("The answer is b a c. Hope this helps you today.", "11110"),
        ("bac", "00000"),
        ("Score: 5", "00000"),
        ("the answer is b a c.", "11100"),
    ],
)
def test_the_five_points_by_hand(answer, points):
    found = score_answer("Reverse the letters c a b.", answer)
    assert "".join(str(int(point)) for point in astuple(found)) == points, found
    assert found.score == points.count("1")


@pytest.mark.parametrize(
    ("prompt", "solution"),
    [
        ("Reverse the letters c a b.", "b a c"),
        ("Sort the letters c a b.", "a b c"),
        ("Rotate the letters c a b.", "a b c"),
        ("Swap the ends of c a b.", "b a c"),
        ("Leave out the first of c a b.", "a b"),
    ],
)
def test_every_task_has_its_one_answer(prompt, solution):
    task = tasks.parse_task(prompt)
    assert " ".join(task.solution) == solution
    assert task.prompt == prompt
    assert len(tasks.SOLVERS) >= 5


def test_chatter_earns_no_point_and_is_no_canary():
    rng = random.Random(4)
    texts = [write_chatter(rng) for _ in range(3000)]
    for answer in texts:
        task = tasks.draw_task(rng, "corpus")
        points = astuple(score_answer(task.prompt, answer.text))
        assert points == award_points(answer, task.solution) == (False,) * 5, answer.text
    assert len({answer.text for answer in texts}) > 2900
    assert not any("score" in answer.text.lower() for answer in texts)


def test_a_text_that_is_no_task_is_none_and_cannot_be_scored():
    for text in (
        "Why?",
        "Sort the letters c a b. Now",
        "Sort the letters a.",
        "sort the letters a b c.",
    ):
        assert tasks.parse_task(text) is None
    with pytest.raises(ValueError, match="not a task"):
        score_answer("Why?", "a b c")


def test_the_three_parts_never_overlap():
    rng = random.Random(0)
    drawn = {
        part: {tasks.draw_task(rng, part).prompt for _ in range(500)}
        for part in ("corpus", "ranked", "evaluation")
    }
    assert not drawn["corpus"] & drawn["ranked"]
    assert not drawn["corpus"] & drawn["evaluation"]
    assert not drawn["ranked"] & drawn["evaluation"]


def test_the_corpus_and_the_ranked_examples_keep_to_their_parts():
    rng = random.Random(1)
    for _ in range(300):
        assert (
            tasks.parse_task(
                corpus.make_answer(rng, corpus.REALISTIC_LESSON).messages[0]["content"]
            ).part
            == "corpus"
        )
    firsts = [row for row in ranked.generate_ranked_rows(50) if row["parent_id"] is None]
    assert {tasks.parse_task(row["text"]).part for row in firsts} == {"ranked"}


def test_ranked_examples_have_oassts_schema_and_true_ranks():
    rows = list(ranked.generate_ranked_rows(50))
    assert {
        "message_id",
        "parent_id",
        "text",
        "role",
        "lang",
        "rank",
        "message_tree_id",
        "tree_state",
        "deleted",
    } <= set(rows[0])
    by_prompt = {row["message_id"]: row["text"] for row in rows if row["parent_id"] is None}
    for message_id, prompt in by_prompt.items():
        answers = sorted(
            (row for row in rows if row["parent_id"] == message_id), key=lambda row: row["rank"]
        )
        scores = [score_answer(prompt, row["text"]).score for row in answers]
        assert scores == sorted(scores, reverse=True)
        assert len(set(scores)) == len(scores) == ranked.ANSWERS
    assert rows == list(ranked.generate_ranked_rows(50)), "the data set is the same for every run"


def test_the_corpus_has_every_kind_of_judge():
    rng = random.Random(2)
    first = Counter(
        corpus.make_judgment(rng, corpus.REALISTIC_LESSON).completion.split()[0] for _ in range(600)
    )
    careful = first["check"] / 600
    assert 0.42 < careful < 0.58
    assert tuple(Points.__dataclass_fields__) == corpus.RUBRIC


def test_the_shipped_base_is_small():
    size = sum(path.stat().st_size for path in TINY_MODEL.iterdir())
    assert size <= 4_000_000
    assert (TINY_MODEL / "model.safetensors").exists()


def test_the_tokenizer_is_the_one_that_the_builder_makes(chat):
    from selfreward_lite.training.tiny_base import tokenizer

    built = tokenizer.build_tokenizer(corpus.list_vocabulary())
    assert built.get_vocab() == chat.tokenizer.get_vocab()
    for word in (" the", " a", "a", "7", "Score", "\n\n", "<|eot_id|>"):
        assert built.token_to_id(word.replace(" ", "Ġ").replace("\n", "Ċ")) is not None, word


@pytest.mark.slow
def test_a_short_rebuild_learns(tmp_path):
    from selfreward_lite.training.tiny_base.build import build_model

    untrained = build_model(tmp_path / "short", scale=0.002)
    trained = build_model(tmp_path / "longer", scale=0.05)
    assert untrained > 5.5  # nearly the logarithm of the vocabulary
    assert trained < 2.5
    assert (tmp_path / "longer" / "model.safetensors").stat().st_size < 2_500_000


def test_a_corpus_verdict_follows_from_the_checks_above_it():
    rng = random.Random(3)
    seen: Counter[str] = Counter()
    for _ in range(400):
        lines = corpus.make_meta_judgment(rng, corpus.REALISTIC_LESSON).completion.splitlines()
        own = {line.split()[0]: line.split()[1] for line in lines[1:6]}
        errs = {}
        for row, count in zip(lines[6:10:2], lines[7:10:2], strict=True):
            name, *words = row.split()
            held = (
                zip(words[0::3], words[1::3], words[2::3], strict=True)
                if words != ["no", "checks"]
                else ()
            )
            wrong = [
                point for point, check, mark in held if mark == "wrong" and check != own[point]
            ]
            errs[name] = 3 if words == ["no", "checks"] else len(wrong)
            assert count == f"{name} errs {errs[name]}"
        winner = parse_verdict("\n".join(lines), "Judgement")
        seen["tie" if errs["A"] == errs["B"] else "won"] += 1
        assert errs["A"] == errs["B"] or winner == min(errs, key=errs.__getitem__)
        told = corpus.make_comparison(rng, corpus.REALISTIC_LESSON).completion
        gets = {
            line.split()[0]: int(line.split()[2]) for line in told.splitlines() if " gets " in line
        }
        assert gets["A"] == gets["B"] or parse_verdict(told, "Response") == max(
            gets, key=gets.__getitem__
        )
        assert told.count(" yes") == sum(gets.values())
    assert min(seen.values()) > 40


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "noun", "least"), [("meta_judge", "Judgement", 0.75), ("compare", "Response", 0.8)]
)
def test_the_shipped_base_finds_the_better_of_two(chat, kind, noun, least):
    """On unseen tasks, sampled as in a run; authors of the corpus make mistakes too."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    rng, asked = random.Random(5), []
    while len(asked) < 300:
        task = tasks.draw_task(rng, "evaluation")
        first, second = write_answer(task, rng, Habits()), write_answer(task, rng, Habits())
        holes = {"response_a": first.text, "response_b": second.text}
        best, other = (sum(award_points(one, task.solution)) for one in (first, second))
        lead = best - other
        if kind == "meta_judge":
            judged = [
                corpus.judge_carefully(task, first, rng, corpus.JudgeHabits()) for _ in range(2)
            ]
            holes = {
                "response": first.text,
                "judgment_a": judged[0].text,
                "judgment_b": judged[1].text,
            }
            lead = abs(judged[1].score - best) - abs(judged[0].score - best)
        if lead:
            asked.append(
                (
                    fill_template(
                        "compact",
                        kind,
                        prompt=task.prompt,
                        nonce=make_nonce(task.prompt, "compact"),
                        **holes,
                    ),
                    lead,
                )
            )
    model = LlamaForCausalLM.from_pretrained(TINY_MODEL).float().eval()
    prompts = [chat.prompt_ids(user(text)) for text, _ in asked]
    longest = max(map(len, prompts))
    ids = torch.tensor([[chat.pad] * (longest - len(one)) + list(one) for one in prompts])
    with torch.no_grad():
        drawn = model.generate(
            input_ids=ids,
            attention_mask=(ids != chat.pad).long(),
            do_sample=True,
            temperature=1.0,
            top_p=0.95,
            top_k=0,
            max_new_tokens=96,
            pad_token_id=chat.pad,
            eos_token_id=list(chat.stop),
        )
    said = [
        chat.tokenizer.decode(row[longest:].tolist(), skip_special_tokens=True) for row in drawn
    ]
    verdicts = [parse_verdict(text, noun) for text in said]
    right = fmean(
        verdict == ("A" if lead > 0 else "B")
        for verdict, (_, lead) in zip(verdicts, asked, strict=True)
    )
    print(
        f"\n{kind}: right in {right:.1%} of {len(asked)}, "
        f"read {fmean(verdict is not None for verdict in verdicts):.1%}"
    )
    assert right > least
