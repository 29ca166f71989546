"""Which pieces of a video become clips, and which bucket each goes to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Literal

from reelora.errors import ConfigError, nearest

from .frames import ClipSettings
from .probe import Probe

__all__ = ["HEAD", "ChoiceKind", "ClipChoice", "Piece", "Pieces", "pieces_of"]

ChoiceKind = Literal["head", "chunks", "sliding", "uniform"]


@dataclass(frozen=True, kw_only=True)
class ClipChoice:
    """Which pieces of a video are taken. Raises ConfigError for what is impossible.

    ``head``: its beginning; ``chunks``: one after the other to its end; ``sliding``: one every ``stride`` frames, the last
    of which ends with the video; ``uniform``: ``count`` of them, evenly from its beginning to its end.
    """

    kind: ChoiceKind = "head"
    stride: int = 8
    """Frames at the model's rate between the beginnings of two sliding pieces."""
    count: int = 4
    """Uniform pieces of each video."""
    most: int = 1000
    """No video gives more pieces than this; those beyond are listed."""

    def __post_init__(self) -> None:
        wrongs = {
            f"there is no choice {self.kind!r}, {nearest(self.kind, _CHOICES)}": self.kind not in _CHOICES,
            "stride, count and most must be at least 1": min(self.stride, self.count, self.most) < 1,
        }
        if any(wrongs.values()):
            raise ConfigError("; ".join(what for what, is_wrong in wrongs.items() if is_wrong) + ".")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Part of a video: from frame ``first`` at the model's rate on, made into one bucket's size."""

    settings: ClipSettings
    first: int

    def facts(self, probe: Probe) -> dict[str, object]:
        """What decides its pixels; how short clips are padded is left out where this one is not, so that it can change."""
        settings = self.settings
        is_short = probe.own_frames(settings.fps) - self.first < settings.num_frames
        return {
            "size": str(settings),
            "fps": float(settings.fps),
            "first": self.first,
            "padding": settings.padding if is_short else "",
            "fit": settings.fit,  # always: a stream may change its shape on the way
        }


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The pieces of one video, and what of it is in none of them ('' where nothing is)."""

    pieces: tuple[Piece, ...]
    leftover: str = ""


def pieces_of(probe: Probe, buckets: Sequence[ClipSettings], choice: ClipChoice) -> Pieces:
    """Choose pieces of a video and the bucket nearest to each; no piece where it is too short for all of them.

    Nearest is the bucket whose shape is (in the ratio of width to height), then that which enlarges least, then that whose
    number of frames is (in their ratio), among those of which the piece has its least share.
    """
    found = _CHOICES[choice.kind](probe, buckets, choice)
    beyond = len(found.pieces) - choice.most
    if beyond <= 0:
        return found
    return Pieces(pieces=found.pieces[: choice.most], leftover=f"{beyond} pieces beyond the first {choice.most} are not used")


# The choices.


def _head(probe: Probe, buckets: Sequence[ClipSettings], choice: ClipChoice) -> Pieces:
    bucket = _nearest_bucket(probe, buckets, _num_own(probe, buckets))
    return Pieces(pieces=(Piece(settings=bucket, first=0),) if bucket else ())


def _chunks(probe: Probe, buckets: Sequence[ClipSettings], choice: ClipChoice) -> Pieces:
    """The last chunk may go to a smaller bucket; what is too short for any is left over."""
    num_own, first = _num_own(probe, buckets), 0
    pieces: list[Piece] = []
    while first < num_own and (bucket := _nearest_bucket(probe, buckets, num_own - first)):
        pieces.append(Piece(settings=bucket, first=first))
        first += bucket.num_frames
    left = max(0, num_own - first)
    return Pieces(
        pieces=tuple(pieces),
        leftover=f"its last {left} frames are in no piece: too few for a bucket" if left and pieces else "",
    )


def _sliding(probe: Probe, buckets: Sequence[ClipSettings], choice: ClipChoice) -> Pieces:
    return _at(probe, buckets, lambda room: [*range(0, room, choice.stride), room])


def _uniform(probe: Probe, buckets: Sequence[ClipSettings], choice: ClipChoice) -> Pieces:
    return _at(probe, buckets, lambda room: _spread(room, min(choice.count, room + 1)))


def _spread(room: int, count: int) -> list[int]:
    gaps = max(1, count - 1)
    return [room * index // gaps for index in range(count)]


_CHOICES: Mapping[ChoiceKind, Callable[[Probe, Sequence[ClipSettings], ClipChoice], Pieces]] = {
    "head": _head,
    "chunks": _chunks,
    "sliding": _sliding,
    "uniform": _uniform,
}

HEAD = ClipChoice()
"""The beginning of each video."""


def _at(probe: Probe, buckets: Sequence[ClipSettings], firsts: Callable[[int], list[int]]) -> Pieces:
    """Pieces of one bucket; ``firsts`` says where they begin, given how far the last one may."""
    num_own = _num_own(probe, buckets)
    bucket = _nearest_bucket(probe, buckets, num_own)
    if bucket is None:
        return Pieces(pieces=())
    room = max(0, num_own - bucket.num_frames)
    return Pieces(pieces=tuple(Piece(settings=bucket, first=first) for first in dict.fromkeys(firsts(room))))


# Buckets.


def _num_own(probe: Probe, buckets: Sequence[ClipSettings]) -> int:
    return probe.own_frames(buckets[0].fps)


def _nearest_bucket(probe: Probe, buckets: Sequence[ClipSettings], num_own: int) -> ClipSettings | None:
    usable = [bucket for bucket in buckets if num_own >= bucket.min_frames]
    return min(usable, key=lambda bucket: _distance(probe, bucket, num_own), default=None)


def _distance(probe: Probe, bucket: ClipSettings, num_own: int) -> tuple[float, float, float, int]:
    height, width = probe.upright
    shape = abs(log(width / height * bucket.height / bucket.width))
    enlarged = max(0.0, log(bucket.height / height), log(bucket.width / width))
    # Rounded, so that shapes and sizes that differ by no pixel are equally near.
    return round(shape, 6), round(enlarged, 6), abs(log(num_own / bucket.num_frames)), -bucket.height * bucket.width
