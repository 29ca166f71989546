"""What the held-out clips prove."""

import math
import random

import pytest

from reelora.train import Evaluation, Gain, judge

BASE = [[1.0 + 0.3 * clip + 0.1 * time for time in range(8)] for clip in range(6)]


def after(step, *gains, noise=0.0, seed=0):
    """An evaluation in which each clip's error is lower by its gain, with some noise."""
    draw = random.Random(seed)
    gains = gains * 6 if len(gains) == 1 else gains
    errors = [
        [error - gain + draw.gauss(0, noise) for error in clip] for clip, gain in zip(BASE[: len(gains)], gains, strict=True)
    ]
    return Evaluation(step=step, errors=errors)


def test_a_base_against_itself_is_no_evidence():
    verdict = judge(BASE, [Evaluation(step=0, errors=BASE)])
    assert (verdict.finding, verdict.gain.mean, verdict.gain.low, verdict.gain.high) == ("no evidence yet", 0, 0, 0)


def test_a_gain_on_every_clip_is_learning():
    assert judge(BASE, [after(0, 0), after(9, 0.02, noise=0.005)]).finding == "learning"


def test_a_gain_within_the_noise_is_no_evidence():
    assert judge(BASE, [after(0, 0), after(9, 0.001, noise=0.05)]).finding == "no evidence yet"


def test_a_gain_on_one_clip_alone_is_no_evidence():
    assert judge(BASE, [after(0, 0), after(9, 0.5, 0, 0, 0, 0, 0)]).finding == "no evidence yet"


def test_errors_that_rise_again_are_over_fitting_since_the_best_step():
    runs = [after(0, 0), after(10, 0.05, noise=0.002, seed=1), after(20, 0.01, noise=0.002, seed=2)]
    verdict = judge(BASE, runs)
    assert (verdict.finding, verdict.best_step, verdict.step) == ("over-fitting", 10, 20)
    assert "since step 10" in str(verdict)


def test_worse_than_the_base_is_over_fitting_from_the_start():
    verdict = judge(BASE, [after(0, 0), after(5, -0.05, noise=0.002)])
    assert (verdict.finding, verdict.best_step) == ("over-fitting", 0)


def test_of_one_clip_nothing_is_known_and_more_are_advised():
    verdict = judge(BASE[:1], [Evaluation(step=9, errors=[[0.1] * 8])])
    assert verdict.finding == "no evidence yet"
    assert verdict.gain.low == -math.inf
    assert "hold out at least 3" in str(verdict)


def test_bands_split_the_gain_by_how_much_noise_there_is():
    errors = [[error - (0.2 if time >= 6 else 0) for time, error in enumerate(clip)] for clip in BASE]
    bands = judge(BASE, [Evaluation(step=1, errors=errors)]).bands
    assert [round(gain.mean, 6) for gain in bands.values()] == [0, 0, 0, 0.2]


def test_the_interval_is_students():
    """scipy.stats.ttest_1samp([1, 2, 3, 4, 6]).confidence_interval() of SciPy 1.14: 0.811574, 5.588426."""
    gain = Gain.of([1, 2, 3, 4, 6])
    assert (gain.low, gain.high) == pytest.approx((0.811574, 5.588426), abs=1e-3)


@pytest.mark.parametrize(("count", "quantile"), [(17, 2.1199), (31, 2.0423), (101, 1.9840)])
def test_beyond_the_table_the_interval_is_students_too(count, quantile):
    """Quantiles of Student's t for 16, 30 and 100 degrees of freedom, from the usual tables."""
    values = [(-1.0) ** index for index in range(count)]
    gain = Gain.of(values)
    mean = sum(values) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    assert (gain.high - gain.mean) / (deviation / math.sqrt(count)) == pytest.approx(quantile, abs=1e-3)


@pytest.mark.parametrize("count", [3, 4, 8])
def test_chance_alone_is_called_learning_as_often_as_the_interval_says(count):
    draw = random.Random(count)
    runs = 4000
    found = sum(Gain.of([draw.gauss(0, 1) for _ in range(count)]).low > 0 for _ in range(runs))
    assert found / runs == pytest.approx(0.025, abs=0.008)  # three deviations of 4000 draws
