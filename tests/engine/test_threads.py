"""How many threads a tiny model gets on idle, busy and changing machines."""

import random

import pytest

from selfreward_lite.engine.loading import ThreadTuner

IDLE, BUSY = {1: 8.0, 2: 5.0}, {1: 8.0, 2: 60.0}  # milliseconds a step, by threads


def work(
    tuner: ThreadTuner, machine: dict[int, float], steps: int, rng: random.Random
) -> tuple[float, int]:
    """Seconds of the steps, and how many had two threads; one in ten takes three times as long."""
    spent, twos = 0.0, 0
    for _ in range(steps):
        seconds = (
            machine[tuner.threads] * rng.uniform(0.9, 1.1) * (3 if rng.random() < 0.1 else 1) / 1000
        )
        spent, twos = spent + seconds, twos + (tuner.threads == 2)
        tuner.add_step(seconds)
    return spent, twos


@pytest.mark.parametrize("seed", range(5))
def test_idle_machine_gives_both_cores(seed):
    tuner, rng = ThreadTuner(2), random.Random(seed)
    _, twos = work(tuner, IDLE, 2000, rng)
    assert twos > 1800


@pytest.mark.parametrize("seed", range(5))
def test_busy_machine_is_tried_rarely(seed):
    tuner, rng = ThreadTuner(2), random.Random(seed)
    spent, twos = work(tuner, BUSY, 2000, rng)
    assert twos <= 40
    assert spent < 1.25 * work(ThreadTuner(1), BUSY, 2000, rng)[0]


@pytest.mark.parametrize("seed", range(5))
def test_busy_is_noticed_at_once_and_idle_in_time(seed):
    tuner, rng = ThreadTuner(2), random.Random(seed)
    work(tuner, IDLE, 500, rng)
    assert tuner.threads == 2
    _, twos = work(tuner, BUSY, 100, rng)
    assert twos < 30
    work(tuner, IDLE, 1200, rng)
    assert work(tuner, IDLE, 500, rng)[1] > 400


def test_single_core_has_nothing_to_try():
    tuner = ThreadTuner(1)
    assert {tuner.add_step(0.01) for _ in range(100)} == {1}
