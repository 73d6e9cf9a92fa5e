"""Templates: nothing that a model or a user writes can leave its place."""

import pytest
from hostile_text import HOSTILE_PROMPTS
from hypothesis import given
from hypothesis import strategies as st

from selfreward_lite.method.templates import (
    fill_template,
    list_template_sets,
    make_nonce,
    neutralize,
)
from selfreward_lite.system.errors import ConfigError

HOLES = {
    "judge": ("prompt", "response"),
    "meta_judge": ("prompt", "response", "judgment_a", "judgment_b"),
    "compare": ("prompt", "response_a", "response_b"),
}


@pytest.mark.parametrize("template_set", list_template_sets())
@pytest.mark.parametrize("name", HOLES)
@pytest.mark.parametrize("hostile", HOSTILE_PROMPTS)
def test_fill_template_keeps_hostile_text_in_its_wrapper(template_set, name, hostile):
    nonce = make_nonce("record", template_set)
    clean = fill_template(template_set, name, nonce=nonce, **dict.fromkeys(HOLES[name], "fine"))
    for hole in HOLES[name]:
        filled = fill_template(
            template_set,
            name,
            nonce=nonce,
            **{**dict.fromkeys(HOLES[name], "fine"), hole: hostile + nonce},
        )
        assert filled.count(nonce) == clean.count(nonce)
        assert filled.count("</") == clean.count("</")
        assert filled.count("<") - clean.count("<") <= hostile.count("<")
        assert filled.splitlines()[-1] == clean.splitlines()[-1], "the instructions stay last"


@pytest.mark.parametrize("template_set", list_template_sets())
def test_fill_template_refuses_a_hole_without_a_value(template_set):
    with pytest.raises(ValueError, match="nonce"):
        fill_template(template_set, "judge", prompt="x", response="y")
    with pytest.raises(ValueError, match="other"):
        fill_template(template_set, "judge", prompt="x", response="y", nonce="z", other="")


def test_fill_template_names_the_known_sets():
    with pytest.raises(ConfigError, match="compact, llama3, short"):
        fill_template("gpt", "judge", prompt="x", response="y", nonce="z")


def test_templates_of_both_judges_have_the_same_rubric():
    rubric = [
        line
        for line in fill_template("llama3", "judge", prompt="", response="", nonce="n").splitlines()
        if line.startswith("Point")
    ]
    meta = fill_template(
        "llama3", "meta_judge", prompt="", response="", judgment_a="", judgment_b="", nonce="n"
    )
    assert len(rubric) == 5
    assert all(line in meta for line in rubric)


def test_short_templates_put_what_is_judged_before_a_short_rubric():
    asked = fill_template("short", "judge", prompt="", response="", nonce="n")
    before, after = asked.split("</response id=n>")
    rubric = [line for line in after.splitlines() if line[:2] in ("1.", "2.", "3.", "4.", "5.")]
    assert len(rubric) == 5 and "Score:" not in before
    assert len(after.split()) <= 120
    meta = fill_template(
        "short", "meta_judge", prompt="", response="", judgment_a="", judgment_b="", nonce="n"
    )
    assert all(line in meta.split("</judgement-B id=n>")[1] for line in rubric)


@pytest.mark.parametrize("template_set", ["llama3", "compact"])
def test_templates_begin_with_constant_text(template_set):
    """Many questions share it in the cache. In `short`, the judged text comes first instead."""
    nonces = [make_nonce(key, template_set) for key in "ab"]
    one, two = (
        fill_template(template_set, "judge", prompt=f"{n} x", response="y", nonce=n) for n in nonces
    )
    shared = next(i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    assert shared > 0.2 * len(one)


@given(st.text())
def test_neutralize_removes_wrappers_and_the_nonce(text):
    safe = neutralize(text + "bcdf", "bcdf")
    assert "bcdf" not in safe
    assert neutralize(safe, "") == safe
