"""What the held-out clips prove."""

import math
import random

import pytest

from reelora.train import Evaluation, Gain, judge
from reelora.train.student import student_quantile

BASE = [[1.0 + 0.3 * clip + 0.1 * time for time in range(8)] for clip in range(6)]


def after(step, *gains, noise=0.0, seed=0):
    """An evaluation in which a share of each clip's error is gone, with some noise."""
    draw = random.Random(seed)
    gains = gains * 6 if len(gains) == 1 else gains
    errors = [
        [error * (1 - gain + draw.gauss(0, noise)) for error in clip]
        for clip, gain in zip(BASE[: len(gains)], gains, strict=True)
    ]
    return Evaluation(step=step, errors=errors)


def test_a_base_against_itself_is_no_evidence():
    verdict = judge(BASE, [Evaluation(step=0, errors=BASE)])
    assert (verdict.finding, verdict.gain.mean, verdict.gain.low, verdict.gain.high) == ("no evidence yet", 0, 0, 0)
    assert str(verdict) == "no evidence yet: held-out error equal to the base's (95 % interval 0.0% to 0.0%)"


def test_a_gain_on_every_clip_is_learning():
    assert judge(BASE, [after(0, 0), after(9, 0.02, noise=0.005)]).finding == "learning"


def test_a_gain_within_the_noise_is_no_evidence():
    assert judge(BASE, [after(0, 0), after(9, 0.001, noise=0.05)]).finding == "no evidence yet"


def test_a_gain_on_one_clip_alone_is_no_evidence():
    assert judge(BASE, [after(0, 0), after(9, 0.5, 0, 0, 0, 0, 0)]).finding == "no evidence yet"


def test_what_a_gain_is_does_not_depend_on_how_hard_a_clip_is():
    """Clips whose errors are far apart, and each of them halved."""
    base = [[0.01] * 8, [1.0] * 8, [30.0] * 8, [2.0] * 8]
    verdict = judge(base, [Evaluation(step=1, errors=[[error / 2 for error in clip] for clip in base])])
    assert verdict.finding == "learning"
    assert (verdict.gain.low, verdict.gain.mean, verdict.gain.high) == pytest.approx((0.5, 0.5, 0.5))


def test_errors_that_rise_again_are_over_fitting_since_the_best_step():
    runs = [after(0, 0), after(10, 0.05, noise=0.002, seed=1), after(20, 0.01, noise=0.002, seed=2)]
    verdict = judge(BASE, runs)
    assert (verdict.finding, verdict.best_step, verdict.step) == ("over-fitting", 10, 20)
    assert str(verdict).startswith("over-fitting since step 10: held-out error 5.0% below the base's then, now 1.")


def test_a_small_rise_after_a_large_gain_is_no_alarm():
    """It is the same on all clips, beyond all chance, and a twentieth of what was gained."""
    verdict = judge(BASE, [after(0, 0), after(10, 0.5), after(20, 0.475, noise=0.001)])
    assert (verdict.finding, verdict.best_step) == ("learning", 10)


def test_the_best_of_many_evaluations_is_no_evidence_against_the_last():
    """A run that stands still, measured after every step: each evaluation differs from the others by chance alone."""
    draw, found, runs = random.Random(0), 0, 300
    for _ in range(runs):
        steps = [after(step, *(draw.gauss(0, 0.02) for _ in BASE)) for step in range(1, 16)]
        found += judge(BASE, [after(0, 0), *steps]).finding == "over-fitting"
    assert found / runs <= 0.05  # 2.5 % for the best, and as much for the base


def test_worse_than_the_base_is_over_fitting_from_the_start():
    verdict = judge(BASE, [after(0, 0), after(5, -0.05, noise=0.002)])
    assert (verdict.finding, verdict.best_step) == ("over-fitting", 0)


def test_of_one_clip_nothing_is_known_and_more_are_advised():
    verdict = judge(BASE[:1], [Evaluation(step=9, errors=[[0.1] * 8])])
    assert verdict.finding == "no evidence yet"
    assert verdict.gain.low == -math.inf
    assert str(verdict).endswith("the base's; hold out at least 3 clips to know more")


def test_bands_split_the_gain_by_how_much_noise_there_is():
    errors = [[error * (0.8 if time >= 6 else 1) for time, error in enumerate(clip)] for clip in BASE]
    bands = judge(BASE, [Evaluation(step=1, errors=errors)]).bands
    assert [round(gain.mean, 6) for gain in bands.values()] == [0, 0, 0, 0.2]


def test_the_interval_is_students():
    """scipy.stats.ttest_1samp([1, 2, 3, 4, 6]).confidence_interval() of SciPy 1.14: 0.811574, 5.588426."""
    gain = Gain.of([1, 2, 3, 4, 6])
    assert (gain.low, gain.high) == pytest.approx((0.811574, 5.588426), abs=1e-3)


@pytest.mark.parametrize(
    ("confidence", "degrees", "quantile"),
    [
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.95, 16, 2.120),
        (0.95, 30, 2.042),
        (0.95, 100, 1.984),
        (0.9, 7, 1.895),
        (0.99, 4, 4.604),
        (0.999, 11, 4.437),
    ],
)
def test_quantiles_are_those_of_the_usual_tables(confidence, degrees, quantile):
    assert student_quantile(confidence, degrees) == pytest.approx(quantile, abs=5e-4)


@pytest.mark.parametrize("count", [3, 4, 8])
def test_chance_alone_is_called_learning_as_often_as_the_interval_says(count):
    draw = random.Random(count)
    runs = 4000
    found = sum(Gain.of([draw.gauss(0, 1) for _ in range(count)]).low > 0 for _ in range(runs))
    assert found / runs == pytest.approx(0.025, abs=0.008)  # three deviations of 4000 draws
