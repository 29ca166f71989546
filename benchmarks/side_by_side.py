"""Two ways of doing the same work, in turn."""

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Row", "seconds_of_both"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table; ``ratio`` over 1 means that ours is better."""

    what: str
    unit: str
    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours if self.ours else float("inf")


def seconds_of_both(what: str, ours: Callable[[], object], theirs: Callable[[], object], *, repeats: int = 5) -> Row:
    """The best seconds of both, run in turn after one warm-up each: whatever else the machine does only ever adds to them."""
    ours()
    theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for work, found in zip((ours, theirs), times, strict=True):
            started = time.perf_counter()
            work()
            found.append(time.perf_counter() - started)
    return Row(what=what, unit="s", ours=min(times[0]), theirs=min(times[1]))
