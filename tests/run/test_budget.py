"""`--hours`: prompts that fit the time, an end with a trained model. The clock is a fake."""

import math
import shutil
from dataclasses import replace

import pytest
import scripted_run
from scripted_runtime import ScriptedRuntime, scripted_runtime

from selfreward_lite import config
from selfreward_lite.data.records import Prompt, Response, ResponsePair
from selfreward_lite.data.store import NO_TIME, Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.engine.scripted import ScriptedEngine
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.report import summary
from selfreward_lite.report.status import read_status
from selfreward_lite.run import loop, plan, prepare
from selfreward_lite.system.errors import OutOfTime

pytestmark = pytest.mark.slow  # runs that are timed, a quarter of a minute
ANSWER, STEP, EXPORT = (
    2.0,
    30.0,
    60.0,
)  # seconds, on the fake clock, of a completion, a training step, an export


class Clock:
    """Stands still but for what the scripted runtime take."""

    def __init__(self, monkeypatch) -> None:
        self.now, self.factor = 1000.0, 1.0
        self.jump = 0.0  # of the time of day, which nothing may depend on
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.time", lambda: 1e9 + self.now + self.jump)

    def pass_by(self, seconds: float) -> None:
        self.now += seconds * self.factor


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def slow_tools(clock: Clock) -> ScriptedRuntime:
    """A scripted runtime on which everything takes time; its trainer ends at its deadline."""
    chat = ChatFormat.load(TINY_MODEL)
    plain = scripted_runtime(chat)

    def open_engine(base, settings):
        engine = plain.open_engine(base, settings)
        assert isinstance(engine, ScriptedEngine)
        answer = engine._reply

        def reply(request, sample):
            clock.pass_by(ANSWER)
            return answer(request, sample)

        engine._reply = reply
        return engine

    def train(job, folder, report):
        began, done = clock.now, 0
        result = plain.train(job, folder, lambda said: None)
        steps = math.ceil(job.row_count * job.settings.epochs / job.settings.batch)
        while done < steps and not job.is_out_of_time:
            clock.pass_by(STEP)
            done += 1
            report({"step": done, "steps": steps, "values": {"loss": 0.69 - done / 100}})
        rows = min(job.row_count, done * job.settings.batch)
        return replace(
            result,
            rows=rows,
            steps=done,
            ended_early=done < steps,
            steps_planned=steps,
            train_seconds=clock.now - began,
            tokens=100 * rows,
        )

    def export_adapter(*arguments):
        clock.pass_by(EXPORT)
        return plain.export_adapter(*arguments)

    return ScriptedRuntime(open_engine, train, plain.export_base, export_adapter)


def run(clock: Clock, folder, hours: float, **settings: str) -> list[str]:
    """Run until `hours` from now; returns what was said in words."""
    said: list[str] = []

    def watch(at):
        if at.message:
            said.append(at.message)

    with Store.write(folder) as store:
        chosen = prepare.load_or_create_settings(store, {**scripted_run.SMALL, **settings}, "tiny")
        loop.run(store, chosen, slow_tools(clock), watch, clock.now + hours * 3600)
    return said


BIG = {
    "prompts.count": "200",
    "iterations": "1",
    "responses.count": "4",
    "judge.count": "3",
    "dpo.batch": "8",
}


@pytest.fixture
def seeded(clock, tmp_path):
    """A run whose seed stage is over, so that its speed is known."""
    run(clock, tmp_path / "run", math.inf, **{**BIG, "iterations": "0"})
    return tmp_path / "run"


def facts_of(folder) -> tuple[int, int | None, int | None]:
    """Prompts of M1, what was decided for it, and the newest model."""
    with Store.read(folder) as store:
        return store.count(Prompt, iteration=1), store.fact("prompts M1"), store.newest()


def test_the_number_of_prompts_fits_the_hours(clock, seeded):
    began = clock.now
    said = run(clock, seeded, 4.0, **BIG)
    prompts, decided, newest = facts_of(seeded)
    assert newest == 1, "it ends with a trained and measured model"
    assert prompts == decided
    assert 16 <= prompts < 200
    assert clock.now - began <= 4.0 * 3600
    assert clock.now - began >= 0.5 * 4.0 * 3600, "and does not waste the night"
    (words,) = [one for one in said if "prompts, so that" in one]
    assert words.startswith(
        f"{prompts} of 200 prompts, so that M1 is trained and measured in the 4.00 hours left"
    )
    with Store.read(seeded) as store:
        assert not store.drops(1, "judgments").get(NO_TIME)
        assert ["M1", "prompts", f"{prompts}", "200"] in summary.build_hours_table(store).rows
        assert all(
            passed for gate, (passed, _) in store.gates(1).items() if gate in ("signal", "counted")
        )


@pytest.mark.slow
def test_more_hours_allow_more_prompts_up_to_all_of_them(clock, seeded, tmp_path):
    counts = []
    for hours in (2.0, 4.0, 500.0):
        folder = tmp_path / f"{hours}"
        shutil.copytree(seeded, folder)
        assert (
            not [one for one in run(clock, folder, hours, **BIG) if "prompts, so that" in one]
            or hours < 500
        )
        counts.append(facts_of(folder)[0])
    assert counts[0] < counts[1] < counts[2] == 200


def test_too_few_hours_for_an_iteration_stop_before_it(clock, seeded):
    began = clock.now
    with pytest.raises(
        OutOfTime,
        match=r"0\.10 hours are left, too few for an iteration of 7 prompts.*resume with M1",
    ) as error:
        run(clock, seeded, 0.1, **BIG)
    assert error.value.exit_code == 130
    assert clock.now == began
    assert facts_of(seeded) == (0, None, 0)
    with Store.read(seeded) as store:
        assert summary.build_hours_table(store).rows == [["M1", str(error.value), "–", "–"]]
    assert read_status(seeded).time_is_up == str(error.value)
    run(clock, seeded, 4.0, **BIG)
    assert read_status(seeded).time_is_up == ""


def test_hours_that_end_within_a_step_are_said(clock, seeded, monkeypatch):
    def overrun(run, iteration):
        clock.pass_by(5 * 3600)
        raise KeyboardInterrupt  # as the signal does

    monkeypatch.setattr(loop, "ITERATION", (overrun,))
    for hours, said in ((6.0, ""), (4.0, "the hours ended in the middle of a step")):
        with pytest.raises(KeyboardInterrupt):
            run(clock, seeded, hours, **BIG)
        assert read_status(seeded).time_is_up.startswith(said)
        assert bool(read_status(seeded).time_is_up) is bool(said)


def test_a_machine_that_slows_down_still_ends_with_a_model(clock, seeded):
    """Twice as slow from the first answer on: less is judged, and the hours hold."""
    clock.factor = 2.0
    began = clock.now
    run(clock, seeded, 4.0, **BIG)
    assert facts_of(seeded)[2] == 1
    assert clock.now - began <= 4.0 * 3600
    with Store.read(seeded) as store:
        left_out = sum(
            store.drops(1, stage).get(NO_TIME, 0) for stage in ("responses", "judgments", "battles")
        )
        assert left_out > 0
        cut = {what for _, what, *_ in summary.build_hours_table(store).rows}
        assert cut & {"responses", "judgments", "battles"}
        assert store.count(ResponsePair, iteration=1) > 0
        assert store.gates(1)["signal"][0], "measured against the prompts that were judged"


def test_a_training_that_would_overrun_ends_early_and_is_counted(clock, seeded, monkeypatch):
    runtime = slow_tools

    def slower(clock):
        made = runtime(clock)

        def train(job, folder, report):
            clock.factor = 6.0
            result = made.train(job, folder, report)
            clock.factor = 1.0
            return result

        return replace(made, train=train)

    monkeypatch.setattr(f"{__name__}.slow_tools", slower)
    began = clock.now
    said = run(clock, seeded, 4.0, **BIG)
    with Store.read(seeded) as store:
        assert store.newest() == 1
        assert store.metrics(1)["training_ended_early"] == 1.0
        assert store.gates(1)["counted"][0], "it saw fewer rows than there were, as it was told to"
        done, planned = (
            store.metrics(1)[f"training_{name}"] for name in ("steps", "steps_planned")
        )
        cut = ["M1", "training steps", f"{done:.0f}", f"{planned:.0f}"]
        assert cut in summary.build_hours_table(store).rows
    assert f"ended by --hours after {done:.0f} of {planned:.0f} steps" in said
    assert clock.now - began <= 4.0 * 3600


class Interrupted(BaseException):
    pass


def test_a_resumed_run_keeps_the_decided_number_of_prompts(clock, seeded, monkeypatch):
    with Store.write(seeded) as store:
        chosen = prepare.load_or_create_settings(store, {**scripted_run.SMALL, **BIG}, "tiny")

        def interrupt(at):
            if at.stage == "judgments" and at.done > at.total // 3:
                raise Interrupted

        with pytest.raises(Interrupted):
            loop.run(store, chosen, slow_tools(clock), interrupt, clock.now + 4 * 3600)
    prompts, decided, newest = facts_of(seeded)
    assert newest == 0
    clock.pass_by(8 * 3600)  # the day between two nights
    began = clock.now
    said = run(clock, seeded, 3.0, **BIG)
    assert facts_of(seeded) == (prompts, decided, 1)
    assert clock.now - began <= 3.0 * 3600
    assert not said, "nothing was decided anew"
    with Store.read(seeded) as store:
        assert store.count(Response, iteration=1, model="M0") >= 3 * prompts


@pytest.mark.slow
def test_without_hours_nothing_is_fitted(clock, seeded):
    run(clock, seeded, math.inf, **BIG)
    assert facts_of(seeded) == (200, None, 1)
    with Store.read(seeded) as store:
        assert not summary.build_hours_table(store).rows


@pytest.mark.parametrize("jump", [-9.0, 9.0], ids=["set back", "set forward"])
def test_setting_the_time_of_day_cuts_nothing(clock, seeded, monkeypatch, jump):
    """The time of day jumps by hours while the model trains, as after NTP or a suspended night."""
    runtime = slow_tools

    def jumping(clock):
        made = runtime(clock)

        def train(job, folder, report):
            def jump_and_report(said):
                clock.jump = jump * 3600
                report(said)

            return made.train(job, folder, jump_and_report)

        return replace(made, train=train)

    monkeypatch.setattr(f"{__name__}.slow_tools", jumping)
    run(clock, seeded, 500.0, **BIG)
    with Store.read(seeded) as store:
        assert store.newest() == 1
        assert not store.metrics(1)["training_ended_early"]
        assert not summary.build_hours_table(store).rows


def test_an_iteration_under_way_is_not_cut_to_a_short_command(clock, seeded):
    with Store.write(seeded) as store:
        chosen = prepare.load_or_create_settings(store, {**scripted_run.SMALL, **BIG}, "tiny")

        def interrupt(at):
            if at.stage == "responses" and at.done > 3:
                raise Interrupted

        with pytest.raises(Interrupted):
            loop.run(store, chosen, slow_tools(clock), interrupt, clock.now + 4 * 3600)
    with pytest.raises(
        OutOfTime, match=r"0\.05 hours are left, and M1 needs \d\.\d\d to be trained and measured"
    ):
        run(clock, seeded, 0.05, **BIG)
    with Store.read(seeded) as store:
        assert not store.is_done(1, "responses"), "nothing was ended for want of time"
    run(clock, seeded, 4.0, **BIG)
    assert facts_of(seeded)[2] == 1


def test_costs_are_those_that_were_spent(clock, seeded):
    with Store.read(seeded) as store:
        settings = config.parse(store.fact("settings"))
        costs = plan.measure_costs(store, settings)
    assert costs["response"] == pytest.approx(ANSWER, rel=0.05)
    assert costs["judgment"] == pytest.approx(ANSWER, rel=0.05)
    assert costs["export"] == pytest.approx(EXPORT)
    assert costs["dpo"] == pytest.approx(costs["sft"] * 8 / 6)
