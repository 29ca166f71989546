"""A look at every clip before the first is encoded, so that all that is wrong is said at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from reelora.errors import DataError, FileFormatError

from .frames import ClipReport, ClipSettings, read_as
from .sources import ClipSource

__all__ = ["OnProgress", "Refusal", "Survey", "survey"]

OnProgress = Callable[[int, int, str], None]
"""Called as ``on_progress(done, total, name)`` after each piece of work."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A clip that cannot be used, and why in one line."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What becomes of every clip: those that can be used with what is done to them, and those that cannot."""

    reports: tuple[ClipReport, ...]
    refusals: tuple[Refusal, ...]

    def check(self) -> None:
        """Raise DataError with one line for each clip that cannot be used."""
        if self.refusals:
            total = len(self.reports) + len(self.refusals)
            lines = "\n".join(f"  {refusal.reason}" for refusal in self.refusals)
            raise DataError(f"{len(self.refusals)} of {total} clips cannot be used:\n{lines}")


def survey(clips: Sequence[ClipSource], settings: ClipSettings, *, on_progress: OnProgress | None = None) -> Survey:
    """Decode every clip as ``read_clip`` would, keep the reports, and list those that it refuses with its reasons."""
    reports: list[ClipReport] = []
    refusals: list[Refusal] = []
    for done, clip in enumerate(clips, 1):
        try:
            reports.append(replace(read_as(clip.path, settings)[1], name=clip.name))
        except (DataError, FileFormatError, OSError) as error:
            refusals.append(Refusal(name=clip.name, reason=str(error)))
        if on_progress:
            on_progress(done, len(clips), clip.name)
    return Survey(reports=tuple(reports), refusals=tuple(refusals))
