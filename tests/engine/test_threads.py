"""How many threads a tiny model gets: on idle machines, on busy ones, and where that changes in between."""

import random

import pytest

from selfreward_lite.engine.loading import ThreadTuner

IDLE, BUSY = {1: 8.0, 2: 5.0}, {1: 8.0, 2: 60.0}  # milliseconds a step, by threads


def work(
    pace: ThreadTuner, machine: dict[int, float], steps: int, rng: random.Random
) -> tuple[float, int]:
    """The seconds that the steps take, and how many of them had two threads; a step in ten begins prompts and takes longer."""
    spent, twos = 0.0, 0
    for _ in range(steps):
        seconds = (
            machine[pace.threads] * rng.uniform(0.9, 1.1) * (3 if rng.random() < 0.1 else 1) / 1000
        )
        spent, twos = spent + seconds, twos + (pace.threads == 2)
        pace.add_step(seconds)
    return spent, twos


@pytest.mark.parametrize("seed", range(5))
def test_an_idle_machine_gives_both_cores(seed):
    pace, rng = ThreadTuner(2), random.Random(seed)
    _, twos = work(pace, IDLE, 2000, rng)
    assert twos > 1800


@pytest.mark.parametrize("seed", range(5))
def test_a_busy_machine_is_tried_seldom(seed):
    pace, rng = ThreadTuner(2), random.Random(seed)
    spent, twos = work(pace, BUSY, 2000, rng)
    assert twos <= 40
    assert spent < 1.25 * work(ThreadTuner(1), BUSY, 2000, rng)[0]


@pytest.mark.parametrize("seed", range(5))
def test_a_machine_that_becomes_busy_is_noticed_at_once_and_one_that_becomes_idle_in_time(seed):
    pace, rng = ThreadTuner(2), random.Random(seed)
    work(pace, IDLE, 500, rng)
    assert pace.threads == 2
    _, twos = work(pace, BUSY, 100, rng)
    assert twos < 30
    work(pace, IDLE, 1200, rng)
    assert work(pace, IDLE, 500, rng)[1] > 400


def test_a_single_core_has_nothing_to_try():
    pace = ThreadTuner(1)
    assert {pace.add_step(0.01) for _ in range(100)} == {1}
