"""What a video is: the facts that its plan needs, found without decoding more than its first picture."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from reelora.errors import DataError

from .decode import Footage, open_footage, turns_of

__all__ = ["MOST_FPS", "Probe", "frame_times", "probe_of", "probe_video"]

# A picture counts as shown a third of a frame early: containers round timestamps to their tick (Matroska: 1 ms), and
# without slack every other frame of a 24 fps file would be read twice. A third, since sums of halves, quarters and
# fifths (the ratios of common rates) never fall on its edge.
_SLACK = 1 / 3

MOST_FPS = 1000
"""No camera's file; what claims more has broken timestamps."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A video's length, rate and size. ``height`` and ``width`` are as stored; ``turns`` are quarters, counter-clockwise."""

    num_frames: int
    seconds: float
    fps: float
    is_steady: bool
    height: int
    width: int
    pixel_aspect: float
    """Width of one pixel over its height."""
    turns: int

    @property
    def upright(self) -> tuple[float, float]:
        """Height and width in square pixels, as a player shows it."""
        rows, columns = (self.width, self.height) if self.turns % 2 else (self.height, self.width)
        return (rows * self.pixel_aspect, float(columns)) if self.turns % 2 else (float(rows), columns * self.pixel_aspect)

    def own_frames(self, fps: float) -> int:
        """How many frames at a rate begin, by more than the slack, before the video ends."""
        return max(1, ceil(self.seconds * fps - _SLACK))


def probe_video(path: Path) -> Probe:
    """Read a video's packets and decode its first picture. Raises as ``open_footage`` does, and DataError for absurd rates."""
    return probe_of(open_footage(path))


def probe_of(footage: Footage) -> Probe:
    """The facts of an opened video, for which its first picture is decoded."""
    _check_rate(footage)
    with closing(footage.pictures()) as pictures:
        _, picture = next(pictures)
    return Probe(
        num_frames=footage.num_frames,
        seconds=footage.seconds,
        fps=footage.fps,
        is_steady=footage.is_steady,
        height=picture.height,
        width=picture.width,
        pixel_aspect=footage.pixel_aspect,
        turns=turns_of(picture),
    )


def _check_rate(footage: Footage) -> None:
    if footage.num_frames > 1 and footage.fps > MOST_FPS:
        raise DataError(
            f"{footage.path}: its {footage.num_frames} frames last {footage.seconds:.3g} s, which is {footage.fps:.0f} fps: "
            "its timestamps are broken. Encode it again at its true rate: ffmpeg -r 24 -i OLD NEW."
        )


def frame_times(fps: float, source_fps: float, places: Sequence[int]) -> list[float]:
    """When the frames at ``places`` of a rate are taken, in seconds after the first picture."""
    slack = _SLACK / max(source_fps, fps)
    return [index / fps + slack for index in places]
