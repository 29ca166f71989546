"""What becomes of every clip, found before the first is encoded, so that all that is wrong is said at once."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from reelora.errors import DataError, FileFormatError
from reelora.shapes import FramesU8

from .decode import file_hash
from .entries import CacheSettings
from .frames import read_as, too_short
from .pieces import Piece, pieces_of
from .probe import Probe
from .probes import find_probe
from .reports import ClipReport, report_of
from .sources import ClipSource

__all__ = ["OnProgress", "Plan", "PlannedClip", "Refusal", "plan_clips", "read_first_frame"]

OnProgress = Callable[[int, int, str], None]
"""Called as ``on_progress(done, total, name)`` after each piece of work."""

_WORKERS = 4
"""Files that are hashed and probed at once."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A clip that cannot be used, or the part of one that is not, and why in one line."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class PlannedClip:
    """One clip as it will be: a piece of a video, with the video's hash and facts and what is done to it."""

    source: ClipSource
    video: str
    probe: Probe
    piece: Piece
    report: ClipReport

    @property
    def name(self) -> str:
        """The video's name; of a piece that is not its beginning also where it begins: ``film.mp4@2.50s``."""
        return self.report.name

    @property
    def bucket(self) -> str:
        """Frames, height and width: ``49x480x720``."""
        return self.report.size


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What becomes of a data set: its clips, the videos that cannot be used, and the parts of videos that are in no clip."""

    clips: tuple[PlannedClip, ...]
    refusals: tuple[Refusal, ...]
    leftovers: tuple[Refusal, ...]

    @property
    def num_videos(self) -> int:
        """Videos that were looked at."""
        return len({clip.source.name for clip in self.clips}) + len(self.refusals)

    @property
    def bucket_sizes(self) -> dict[str, int]:
        """Clips of each bucket that has any."""
        return dict(sorted(Counter(clip.bucket for clip in self.clips).items()))

    def check(self) -> None:
        """Raise DataError with one line for each video that cannot be used."""
        check_refusals(self.refusals, self.num_videos)


def read_first_frame(clip: PlannedClip) -> FramesU8:
    """The first frame alone, as the model will see it: what image-to-video models are shown. Raises as ``read_clip`` does."""
    settings = replace(clip.piece.settings, num_frames=1, min_share=0)
    return read_as(clip.source.path, settings, first=clip.piece.first)[0]


def check_refusals(refusals: Sequence[Refusal], total: int) -> None:
    """Raise DataError with one line for each of some refusals, of so many clips."""
    if refusals:
        lines = "\n".join(f"  {refusal.reason}" for refusal in refusals)
        hint = " (data.skip_refused = true goes on without them)" if len(refusals) < total else ""
        raise DataError(f"{len(refusals)} of {total} clips cannot be used{hint}:\n{lines}")


def plan_clips(
    sources: Sequence[ClipSource], settings: CacheSettings, cache: Path, *, on_progress: OnProgress | None = None
) -> Plan:
    """Hash every video, find out what it is, and choose its pieces and their buckets; nothing is written.

    All that can be known without decoding whole videos is known here: files that are missing, truncated, no videos, without
    pictures, with an absurd rate, or too short. ``cache`` may know the facts of a video already.
    """
    with ThreadPoolExecutor(_WORKERS) as pool:
        looks = list(_counted(pool.map(lambda source: _look(source, cache), sources), sources, on_progress))
    planned = [_planned(source, look, settings) for source, look in zip(sources, looks, strict=True)]
    return Plan(
        clips=tuple(clip for clips, _, _ in planned for clip in clips),
        refusals=tuple(refusal for _, refusal, _ in planned if refusal),
        leftovers=tuple(leftover for _, _, leftover in planned if leftover),
    )


@dataclass(frozen=True, kw_only=True)
class _Look:
    """A video's hash and facts, or why it has none."""

    video: str = ""
    probe: Probe | None = None
    reason: str = ""


def _look(source: ClipSource, cache: Path) -> _Look:
    try:
        video = file_hash(source.path)
        return _Look(video=video, probe=find_probe(cache, video, source.path))
    except (DataError, FileFormatError, OSError) as error:
        return _Look(reason=str(error))


def _counted(looks: Iterable[_Look], sources: Sequence[ClipSource], on_progress: OnProgress | None) -> Iterator[_Look]:
    for done, (look, source) in enumerate(zip(looks, sources, strict=True), 1):
        if on_progress:
            on_progress(done, len(sources), source.name)
        yield look


def _planned(
    source: ClipSource, look: _Look, settings: CacheSettings
) -> tuple[list[PlannedClip], Refusal | None, Refusal | None]:
    """The clips of a video, its refusal, and what of it is left over."""
    if look.probe is None:
        return [], Refusal(name=source.name, reason=look.reason), None
    found = pieces_of(look.probe, settings.buckets, settings.choice)
    if not found.pieces:
        shortest = min(settings.buckets, key=lambda bucket: bucket.min_frames)
        return [], Refusal(name=source.name, reason=f"{source.path}: {too_short(look.probe, shortest)}"), None
    leftover = Refusal(name=source.name, reason=found.leftover) if found.leftover else None
    return [_clip(source, look.video, look.probe, piece) for piece in found.pieces], None, leftover


def _clip(source: ClipSource, video: str, probe: Probe, piece: Piece) -> PlannedClip:
    begins = f"@{piece.first / piece.settings.fps:.2f}s" if piece.first else ""
    report = report_of(source.name + begins, probe, piece.settings, piece.first)
    return PlannedClip(source=source, video=video, probe=probe, piece=piece, report=report)
