"""Whether a run learns: the held-out clips with the adapter and without it, compared clip by clip.

Both see the same clips, noise and timesteps, so most of what makes a single loss noisy cancels between them. A gain is the
share of a clip's error that is gone: easy clips and hard ones then say alike how much was learned. The clips are the sample:
intervals are Student's t over the clips' gains, two-sided with 95 %.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt
from statistics import fmean, stdev
from typing import Literal, Self

from .student import student_quantile

__all__ = ["BANDS", "Evaluation", "Gain", "Verdict", "best_step", "judge"]

Errors = Sequence[Sequence[float]]
"""Of every clip at every timestep of the grid, which runs from little noise to much."""
Finding = Literal["learning", "no evidence yet", "over-fitting"]

BANDS = ("little noise", "some noise", "more noise", "most noise")

_CONFIDENCE = 0.95
_FEWEST = 3
_LOST = 0.1
"""Share of the best gain that may go again before a run is said to over-fit."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The errors on the held-out clips after a step."""

    step: int
    errors: Errors

    @property
    def loss(self) -> float:
        return fmean(error for clip in self.errors for error in clip)


@dataclass(frozen=True, kw_only=True)
class Gain:
    """By which share of it an error is lower on average over the clips, with the ends of its interval; 0.1 is 10 %."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, gains: Sequence[float], *, confidence: float = _CONFIDENCE) -> Self:
        """The mean of one gain per clip; of a single clip nothing is known."""
        count, mean = len(gains), fmean(gains)
        if count < 2:
            return cls(mean=mean, low=-inf, high=inf)
        half = student_quantile(confidence, count - 1) * stdev(gains) / sqrt(count)
        return cls(mean=mean, low=mean - half, high=mean + half)

    @classmethod
    def between(cls, before: Errors, after: Errors) -> Self:
        """By which share the errors are lower after than before."""
        return cls.of(_gains(before, after))

    @property
    def interval(self) -> str:
        """Its ends in words; empty where nothing is known of them."""
        return "" if self.high == inf else f" (95 % interval {_percent(self.low)} to {_percent(self.high)})"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the held-out clips say of a run after ``step`` steps."""

    finding: Finding
    step: int
    best_step: int
    """Whose weights had the lowest held-out error; over-fitting counts from there."""
    num_clips: int
    loss: float
    """Mean error on the held-out clips."""
    gain: Gain
    """Of the adapter over the base."""
    best_gain: float
    """That of the best step."""
    bands: Mapping[str, Gain]
    """The gain by how much noise is in the clips."""

    def __str__(self) -> str:
        few = f"; hold out at least {_FEWEST} clips to know more" if self.num_clips < _FEWEST else ""
        now = f"{_side(self.gain.mean)} the base's{self.gain.interval}{few}"
        if self.finding == "over-fitting":
            return (
                f"over-fitting since step {self.best_step}: held-out error {_side(self.best_gain)} the base's then, now {now}"
            )
        return f"{self.finding}: held-out error {now}"


def judge(base: Errors, evaluations: Sequence[Evaluation]) -> Verdict:
    """The verdict after the last of the evaluations.

    Over-fitting: worse than the base beyond chance, or more than a tenth of the best gain so far is gone again beyond chance.
    Learning: otherwise, better than the base beyond chance. Else there is no evidence yet. The best of many evaluations is best
    partly by luck, so the chance is shared out among all those that might have been it (Bonferroni).
    """
    last, best = evaluations[-1], _best(base, evaluations)
    gain, best_gains = Gain.between(base, last.errors), _gains(base, best.errors)
    lost = [(1 - _LOST) * then - now for then, now in zip(best_gains, _gains(base, last.errors), strict=True)]
    confidence = 1 - (1 - _CONFIDENCE) / max(1, len(evaluations) - 1)
    is_worse = gain.high < 0 or Gain.of(lost, confidence=confidence).low > 0
    finding: Finding = "over-fitting" if is_worse else "learning" if gain.low > 0 else "no evidence yet"
    return Verdict(
        finding=finding,
        step=last.step,
        best_step=best.step,
        num_clips=len(base),
        loss=last.loss,
        gain=gain,
        best_gain=fmean(best_gains),
        bands=_bands(base, last.errors),
    )


def best_step(base: Errors, evaluations: Sequence[Evaluation]) -> int:
    """The step with the largest gain over the base, the earliest of equals."""
    return _best(base, evaluations).step


def _best(base: Errors, evaluations: Sequence[Evaluation]) -> Evaluation:
    return max(evaluations, key=lambda evaluation: fmean(_gains(base, evaluation.errors)))


def _gains(before: Errors, after: Errors) -> list[float]:
    """Of each clip the share of its error that is gone."""
    return [1 - fmean(a) / fmean(b) for b, a in zip(before, after, strict=True)]


def _bands(base: Errors, errors: Errors) -> dict[str, Gain]:
    """The gain in equal parts of the grid."""
    width = len(base[0])
    edges = [round(index * width / len(BANDS)) for index in range(len(BANDS) + 1)]
    return {
        name: Gain.between([clip[start:stop] for clip in base], [clip[start:stop] for clip in errors])
        for name, (start, stop) in zip(BANDS, pairwise(edges), strict=True)
    }


def _side(gain: float) -> str:
    return f"{_percent(abs(gain))} {'below' if gain > 0 else 'above'}" if _percent(gain) != _percent(0) else "equal to"


def _percent(share: float) -> str:
    """To a tenth, and never a minus in front of zero."""
    return f"{round(share, 3) + 0.0:.1%}"
