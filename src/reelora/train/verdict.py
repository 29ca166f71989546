"""Whether a run learns: the held-out clips with the adapter and without it, compared clip by clip.

Both see the same clips, noise and timesteps, so most of what makes a single loss noisy cancels in their difference. The clips
are the sample: intervals are Student's t over the clips' mean differences, two-sided with 95 %.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt
from statistics import fmean, stdev
from typing import Literal, Self

__all__ = ["BANDS", "Evaluation", "Gain", "Verdict", "judge"]

Errors = Sequence[Sequence[float]]
"""Of every clip at every timestep of the grid, which runs from little noise to much."""
Finding = Literal["learning", "no evidence yet", "over-fitting"]

BANDS = ("little noise", "some noise", "more noise", "most noise")

_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""97.5 % quantiles of Student's t for 1, 2, 3 ... degrees of freedom."""
_FEWEST = 3


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
    """By how much the mean error is lower, with the ends of its interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, differences: Sequence[float]) -> Self:
        """The mean of one difference per clip; of a single clip nothing is known."""
        count, mean = len(differences), fmean(differences)
        if count < 2:
            return cls(mean=mean, low=-inf, high=inf)
        half = _student(count - 1) * stdev(differences) / sqrt(count)
        return cls(mean=mean, low=mean - half, high=mean + half)

    @classmethod
    def between(cls, before: Errors, after: Errors) -> Self:
        """How much lower the errors are after than before, clip by clip."""
        return cls.of([fmean(b) - fmean(a) for b, a in zip(before, after, strict=True)])

    def __str__(self) -> str:
        return f"{self.mean:+.5f} ({self.low:+.5f} to {self.high:+.5f})"


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
    """Error of the base minus that with the adapter: above 0 the adapter is better."""
    bands: Mapping[str, Gain]
    """The same by how much noise is in the clips."""

    def __str__(self) -> str:
        since = f" since step {self.best_step}" if self.finding == "over-fitting" else ""
        few = f"; hold out at least {_FEWEST} clips to know more" if self.num_clips < _FEWEST else ""
        return f"{self.finding}{since}: held-out error lower than the base's by {self.gain}{few}"


def judge(base: Errors, evaluations: Sequence[Evaluation]) -> Verdict:
    """The verdict after the last of the evaluations.

    Learning: better than the base beyond chance. Over-fitting: worse than the best evaluation so far, or than the base, beyond
    chance. Otherwise there is no evidence yet.
    """
    last, best = evaluations[-1], min(evaluations, key=lambda evaluation: evaluation.loss)
    gain, loss_since_best = Gain.between(base, last.errors), Gain.between(last.errors, best.errors)
    is_worse = loss_since_best.low > 0 or gain.high < 0
    finding: Finding = "over-fitting" if is_worse else "learning" if gain.low > 0 else "no evidence yet"
    return Verdict(
        finding=finding,
        step=last.step,
        best_step=best.step,
        num_clips=len(base),
        loss=last.loss,
        gain=gain,
        bands=_bands(base, last.errors),
    )


def _bands(base: Errors, errors: Errors) -> dict[str, Gain]:
    """The gain in equal parts of the grid."""
    width = len(base[0])
    edges = [round(index * width / len(BANDS)) for index in range(len(BANDS) + 1)]
    return {
        name: Gain.between([clip[start:stop] for clip in base], [clip[start:stop] for clip in errors])
        for name, (start, stop) in zip(BANDS, pairwise(edges), strict=True)
    }


def _student(degrees: int) -> float:
    """Beyond the table Cornish and Fisher's first terms around the normal quantile, good to 0.001."""
    if degrees <= len(_STUDENT):
        return _STUDENT[degrees - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
