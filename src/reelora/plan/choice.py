"""What was weighed against what, what was chosen, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .device import GIB, DeviceFacts

__all__ = ["AS_FAST", "Choice", "Row", "duration", "gibibytes", "pick"]

AS_FAST = 1.05
"""Estimates that differ by no more are as good as equal."""

Way = Any
"""A `Plan`, or for training a `TrainingPlan`: it says what it is, and how it is spelled."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One candidate with what is predicted of it."""

    plan: Way
    bytes_by_phase: Mapping[str, int]
    """At the peak of each phase, on the device; see `Choice` for which bytes count."""
    host_bytes: int = 0
    """On the host at the peak; 0 where the device is the host."""
    seconds: float
    """An estimate, for one batch (generation) or one step (training)."""
    order: float
    """The same by tabled speeds, which do not change from run to run: what is chosen follows from this."""
    why_not: str = ""
    """Why it is not for this device or this job; empty if it is."""
    is_last_resort: bool = False
    """Whether it is only for jobs that nothing else fits, since it changes the numbers."""

    @property
    def peak_bytes(self) -> int:
        return max(self.bytes_by_phase.values())

    @property
    def fits(self) -> bool:
        return not self.why_not

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        told = {"bytes": dict(self.bytes_by_phase), "peak_bytes": self.peak_bytes, "host_bytes": self.host_bytes}
        return {**self.plan.as_json(), **told, "seconds": self.seconds, "fits": self.fits, "why_not": self.why_not}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Candidates for one job on one device.

    Bytes are those of all tensors at once and of what the libraries take for themselves. On a CPU they are what the process
    holds resident beyond its imports: weights as pages of mapped files (which the system may drop and read again), computed
    tensors, and casts. What the C allocator keeps of freed memory comes on top, up to about a hundred mebibytes.
    """

    what: str
    """The job in a few words."""
    device: DeviceFacts
    rows: Sequence[Row]
    chosen_row: Row
    notes: tuple[str, ...] = field(default=())

    @property
    def chosen(self) -> Any:
        """The plan to run by: the fastest that fits, or, where none fits, the smallest."""
        return self.chosen_row.plan

    @property
    def fits(self) -> bool:
        return self.chosen_row.fits

    @property
    def answer(self) -> str:
        """The choice and why, in a sentence or two."""
        row, room = self.chosen_row, gibibytes(self.device.usable_bytes)
        told = f"{row.plan}: {gibibytes(row.peak_bytes)} of {room} that a job may take of {self.device}"
        if not row.fits:
            return f"Nothing fits. The smallest is {told}. Use fewer frames, a smaller size or a smaller batch."
        passed = [other for other in self.rows[: self.rows.index(row)] if not other.fits]
        why = f"; not {passed[0].plan}: {passed[0].why_not}" if passed else ""
        return f"{told}, about {duration(row.seconds)}{why}"

    def explain(self) -> str:
        """The table of all candidates, the chosen one marked, and what else is to be said."""
        phases = list(self.rows[0].bytes_by_phase)
        heads = ["", "plan", *phases, *(["host"] if self._has_host else []), "time", "verdict"]
        lines = [heads, *(self._cells(row, phases) for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([f"{self.what} on {self.device}", *table, "Times are estimates.", *self.notes])

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        device = {"name": self.device.name, "kind": self.device.kind, "is_pretended": self.device.is_pretended}
        device |= {"total_bytes": self.device.total_bytes, "usable_bytes": self.device.usable_bytes}
        return {
            "job": self.what,
            "device": device,
            "chosen": self.chosen.as_json() | {"spelled": self.chosen.spelled},
            "fits": self.fits,
            "peak_bytes": self.chosen_row.peak_bytes,
            "seconds": self.chosen_row.seconds,
            "rows": [row.as_json() for row in self.rows],
            "notes": list(self.notes),
        }

    @property
    def _has_host(self) -> bool:
        return not self.device.is_host

    def _cells(self, row: Row, phases: Sequence[str]) -> list[str]:
        verdict = "fits" if row.fits else row.why_not
        mark = "*" if row is self.chosen_row else ""
        host = [gibibytes(row.host_bytes)] if self._has_host else []
        sizes = [gibibytes(row.bytes_by_phase[phase]) for phase in phases]
        return [mark, row.plan.spelled, *sizes, *host, duration(row.seconds), verdict]


def pick(rows: Sequence[Row]) -> Row:
    """The first of the fastest that fit; a last resort only if no other fits; the smallest if none does.

    Rows whose estimates differ by no more than a twentieth count as equally fast, and the plainer ones come first.
    """
    fitting = [row for row in rows if row.fits]
    fitting = [row for row in fitting if not row.is_last_resort] or fitting
    if not fitting:
        return min(rows, key=lambda row: row.peak_bytes)
    least = min(row.order for row in fitting)
    return next(row for row in fitting if row.order <= AS_FAST * least)


def gibibytes(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.{int(seconds < 600)}f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
