"""When a run is past saving: a loss that is no number, or a model that has forgotten what it knew."""

import math
from collections.abc import Sequence
from statistics import fmean

__all__ = ["Guard"]

_WINDOW = 10
_FIRST = 5
_WORSE = 2.0
_AT_ONCE = 5.0


class Guard:
    """Watches the relative loss: that of the model divided by that of a prediction of nothing, on the same clips.

    A video model stays far below 1. Hopeless is 5 in a single step, or more than 1 in the mean of ten steps, unless it was
    half as bad from the start: some models have to learn everything.
    """

    def __init__(self, relative_losses: Sequence[float] = ()) -> None:
        self._first, self._last = list(relative_losses[:_FIRST]), list(relative_losses[-_WINDOW:])

    def is_hopeless(self, relative_loss: float) -> bool:
        """Take in the relative loss of one more step."""
        self._first = [*self._first, relative_loss][:_FIRST]
        self._last = [*self._last, relative_loss][-_WINDOW:]
        limit = max(1.0, _WORSE * min(self._first))
        is_forgetting = len(self._last) == _WINDOW and fmean(self._last) > limit
        return not math.isfinite(relative_loss) or relative_loss > _AT_ONCE or is_forgetting
