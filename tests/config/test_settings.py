"""Settings: presets, overrides, limits, and errors that say what to do."""

from typing import get_args

import pytest

from selfreward_lite import config
from selfreward_lite.config.parsing import list_settings
from selfreward_lite.config.settings import Model
from selfreward_lite.method.templates import list_template_sets
from selfreward_lite.system.errors import ConfigError


def test_every_preset_loads_and_names_itself():
    assert config.presets() == [
        "overnight",
        "paper",
        "qwen3",
        "qwen3-small",
        "small",
        "smol",
        "t4",
        "tiny",
    ]
    for preset in config.presets():
        assert config.load(preset).preset == preset


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("dpo.beta", "0.2", 0.2),
        ("seed", "7", 7),
        ("seed_stage.strict", "false", False),
        ("model.base", "some/where", "some/where"),
        ("model.base", '"12"', "12"),
        ("schedule.1.rho", "0.25", 0.25),
    ],
)
def test_overrides_are_read_as_toml_else_as_text(key, text, value):
    found = config.load("tiny", {key: text}).model_dump()
    for part in key.split("."):
        found = found[int(part) if part.isdigit() else part]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("dpo.bet", "1", "dpo.bet: no such setting; did you mean dpo.beta? docs/settings.md lists"),
        ("dpo.bta", "1", "did you mean dpo.beta?"),
        ("Dpo.Beta", "1", "did you mean dpo.beta?"),
        ("learning-rate", "1", "did you mean sft.learning_rate or dpo.learning_rate?"),
        ("schedule.1.rh", "0", "did you mean schedule.1.rho?"),
        ("nothing.like.it", "1", "nothing.like.it: no such setting; docs/settings.md lists"),
        ("dpo.epochs.x", "1", "dpo.epochs.x: no such setting; did you mean dpo.epochs?"),
        ("dpo", "0.1", "dpo is a group of settings: set one of them, as in --set dpo.learning_rat"),
        ("schedule", "1", "schedule is a group of settings: set one of them, as in --set schedul"),
        ("schedule.0", "1", "schedule.0 is a group of settings: set one of them, as in --set sch"),
        ("schedule.3.rho", "0", "schedule.3.rho: 3 is not an entry of that list (0 to 2)"),
        ("engine.threads.x", "1", "engine.threads.x: no such setting; did you mean engine.threads"),
        ("dpo.beta", "0", "dpo.beta=0: give a number above 0; docs/settings.md lists all settings"),
        (
            "dpo.beta",
            "0,2",
            "dpo.beta=0,2: give a number, with a point in place of the comma: 0.2;",
        ),
        ("dpo.beta", "true", "dpo.beta: give a number, not true"),
        ("iterations", "true", "iterations: give a whole number, not true"),
        ("iterations", "1,000", "iterations=1,000: give a whole number, without a comma: 1000;"),
        ("engine.threads", "false", "engine.threads: give a whole number, not false"),
        ("gates.judging", "maybe", "gates.judging=maybe: give true or false;"),
        (
            "engine.servers",
            "http://me:pw@gpu:8000",
            "engine.servers=http://…@gpu:8000: give a list",
        ),
        ("prompts.file", "", "prompts.file is empty: give it a value, or leave it out;"),
        ("model.base", '" "', "model.base is empty: give it a value, or leave it out;"),
        ("seed_stage.eval_prompts", "100000", "with ranked=tiny, which a program writes, 5,000 at"),
        ("seed_stage.length_bias", "1.5", "seed_stage.length_bias=1.5: give a number of at most 1"),
        ("sft.micro_batch", "3", "micro_batch 3 does not divide batch 32"),
        ("schedule." + "9" * 5000 + ".rho", "0", " is not an entry of that list (0 to 2)"),
        ("iterations", "1001", "iterations=1001: give a number of at most 1000"),
        ("prompts.count", "9" * 400, "prompts.count: at most 4,294,967,295"),
    ],
)
def test_bad_overrides_are_one_clear_line(key, text, message):
    with pytest.raises(ConfigError) as error:
        config.load("tiny", {key: text})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_lists_of_names_may_be_emptied():
    assert config.load("tiny", {"prompts.ignore": "a,b"}).prompts.ignore == ("a", "b")
    assert config.load("tiny", {"prompts.ignore": ""}).prompts.ignore == ()
    assert config.load("tiny", {"evaluation.tasks": ""}).evaluation.tasks == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Tiny", "no preset 'Tiny'; choose one of overnight, paper,"),
        ("Tiny", "; did you mean tiny?"),
        ("my.toml", "your own settings are given on top of one, each with --set KEY=VALUE"),
        ("../presets/tiny", "../presets/tiny: a preset is one of overnight, paper,"),
        ("", "no preset ''; choose one of"),
    ],
)
def test_a_preset_that_does_not_ship_is_refused_with_what_to_do(name, message):
    with pytest.raises(ConfigError) as error:
        config.load(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_setting_of_every_preset_has_a_name_that_can_be_set():
    """What is suggested is complete, and no setting of a preset is refused by its name."""
    tiny = config.load("tiny").model_dump()
    names = list_settings()
    assert len(names) > 100
    for name in names:
        found = tiny
        for part in name.split("."):
            found = found[int(part) if part.isdigit() else part]
        assert not isinstance(found, dict), name


def test_task_sets_alone_may_be_set_to_nothing():
    assert config.load("tiny", {"evaluation.tasks": ""}).evaluation.tasks == ()


@pytest.mark.parametrize(
    ("preset", "wanted", "message"),
    [
        ("tiny", {"pairs.verify": "veto"}, "pairs.verify=veto has nothing to check"),
        ("tiny", {"judge.count": "0"}, "judge.count=0 leaves no score"),
        ("smol", {"schedule.0.judgment_pairs": "true"}, "judge.count=0 gives no judgments"),
        ("smol", {"prompts.constraints": "2"}, "have constraints of their own"),
        ("smol", {"gates.judging": "true"}, "gates.judging needs evaluation.canary_judgments"),
        ("tiny", {"evaluation.outside_judgments": "0"}, "gates.judging needs evaluation.canary"),
    ],
)
def test_settings_without_anything_that_decides_are_refused(preset, wanted, message):
    with pytest.raises(ConfigError) as error:
        config.load(preset, wanted)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_set_options_need_an_equals_sign():
    assert config.parse_overrides(["a.b = 1", "c==2"]) == {"a.b": "1", "c": "=2"}
    with pytest.raises(ConfigError, match="write it as --set key=value"):
        config.parse_overrides(["dpo.beta"])


def test_last_schedule_entry_holds_for_later_iterations():
    settings = config.load("tiny")
    assert settings.for_iteration(1) is settings.schedule[0]
    assert settings.for_iteration(9) is settings.schedule[-1]


def test_every_preset_has_a_valid_schedule():
    for preset in config.presets():
        settings = config.load(preset)
        assert settings.schedule
        assert all(entry.rho < 0.5 for entry in settings.schedule)


def test_the_template_sets_are_those_that_ship():
    annotation = Model.model_fields["templates"].annotation
    assert sorted(get_args(annotation)) == list_template_sets()


def test_what_cannot_be_read_is_forced_unless_a_run_follows_the_paper():
    dropping = [name for name in config.presets() if config.load(name).judge.close == "drop"]
    assert dropping == ["paper"]


def test_a_run_of_before_closings_goes_on_without_them():
    stored = config.load("tiny").model_dump(mode="json")
    del stored["judge"]["close"]
    assert config.parse(config.complete(stored)).judge.close == "drop"
    assert config.load("tiny", {"judge.close": "force"}).judge.close == "force"
