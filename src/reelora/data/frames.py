"""One video, or a piece of it, as the model will see it: its rate, its size, its number of frames."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reelora.errors import ConfigError, DataError, nearest
from reelora.shapes import FramesU8

from .decode import Picture, open_footage, pixels_of
from .fitting import FITS, PADDINGS, Fit, Padding, fitted, place
from .probe import MOST_FPS, Probe, frame_times, probe_of
from .reports import ClipReport, report_of

if TYPE_CHECKING:
    from av import VideoFrame

__all__ = ["ClipSettings", "read_as", "read_clip", "too_short"]


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """What a clip is made into: one bucket of a data set. Raises ConfigError for what no clip can be."""

    num_frames: int
    height: int
    width: int
    fps: int | float
    min_share: int | float = 0.5
    """A clip that has fewer than this share of ``num_frames`` is refused; above it, it is padded."""
    fit: Fit = "crop"
    """What is done with a picture of another shape; a row of ``FITS``."""
    padding: Padding = "last"
    """What follows the last frame of a clip that is too short; a row of ``PADDINGS``."""

    def __post_init__(self) -> None:
        wrongs = {
            "num_frames must be at least 1": self.num_frames < 1,
            "height and width must be at least 1": min(self.height, self.width) < 1,
            f"fps must be positive and at most {MOST_FPS}": not (isfinite(self.fps) and 0 < self.fps <= MOST_FPS),
            "min_share must lie in 0 to 1": not 0 <= self.min_share <= 1,
            f"fit {self.fit!r} is unknown, {nearest(self.fit, FITS)}": self.fit not in FITS,
            f"padding {self.padding!r} is unknown, {nearest(self.padding, PADDINGS)}": self.padding not in PADDINGS,
        }
        if any(wrongs.values()):
            found = "; ".join(what for what, is_wrong in wrongs.items() if is_wrong)
            raise ConfigError(f"A clip of {self} at {self.fps} fps is impossible: {found}.")

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}"

    @property
    def min_frames(self) -> int:
        """The fewest frames that a clip must have of its own."""
        return max(1, ceil(self.num_frames * self.min_share))


def read_clip(
    path: Path,
    *,
    num_frames: int,
    height: int,
    width: int,
    fps: int | float,
    min_share: int | float = 0.5,
    fit: Fit = "crop",
    padding: Padding = "last",
) -> tuple[FramesU8, ClipReport]:
    """Decode a video into ``num_frames`` RGB frames of ``height x width`` at ``fps``, with a report of every change.

    Time: frame ``k`` is the picture on screen ``k / fps`` seconds after the first one, by timestamp, so a variable
    frame rate keeps its timing. Frames beyond ``num_frames`` are trimmed; a clip that is too short is padded, unless it
    has fewer than ``min_share * num_frames``. Size: turned upright by the file's display matrix, scaled (bicubic,
    antialiased, square pixels) to cover ``height x width`` and cropped, or to fit inside and filled; never squashed. A
    picture file is a clip of one frame.

    Raises DataError for a clip that is truncated, damaged, too short, or without pictures, FileFormatError for what
    is no video, and OSError where the file is missing.
    """
    settings = ClipSettings(
        num_frames=num_frames, height=height, width=width, fps=fps, min_share=min_share, fit=fit, padding=padding
    )
    frames, probe = read_as(Path(path), settings)
    return frames, report_of(Path(path).name, probe, settings, first=0)


def read_as(path: Path, settings: ClipSettings, *, first: int = 0) -> tuple[FramesU8, Probe]:
    """``read_clip`` with its settings in one value, from frame ``first`` at the model's rate on, and what the video is."""
    footage = open_footage(path)
    probe = probe_of(footage)
    count = min(probe.own_frames(settings.fps) - first, settings.num_frames)
    if count < settings.min_frames:
        raise DataError(f"{path}: {too_short(probe, settings)}")
    times = frame_times(settings.fps, footage.fps, range(first, first + count))
    frames = torch.stack(list(_fitted(_on_screen(footage.pictures(start=times[0]), times), probe, settings)))
    return frames[[PADDINGS[settings.padding].index(index, count) for index in range(settings.num_frames)]], probe


def too_short(probe: Probe, settings: ClipSettings) -> str:
    """Why a video gives no clip of this length."""
    return (
        f"is too short: {probe.seconds:.2f} s give {probe.own_frames(settings.fps)} frames at {settings.fps:g} fps; "
        f"{settings.num_frames} are wanted and at least {settings.min_frames} are needed. "
        "Give a longer clip, ask for fewer frames or lower data.min_share."
    )


def _on_screen(pictures: Iterable[Picture], times: Sequence[float]) -> Iterator["VideoFrame"]:
    """For each of the rising ``times`` the picture that began last before it; stops decoding when all are served."""
    asked = 0
    shown = None
    for time, picture in pictures:
        while shown is not None and asked < len(times) and times[asked] < time:
            yield shown
            asked += 1
        if asked == len(times):
            return
        shown = picture
    if shown is not None:
        yield from [shown] * (len(times) - asked)


def _fitted(pictures: Iterable["VideoFrame"], probe: Probe, settings: ClipSettings) -> Iterator[Tensor]:
    """Each picture at the model's size; one that is shown again is not computed again."""
    last, result = None, None
    for picture in pictures:
        if result is None or picture is not last:
            last, result = picture, _fit(picture, probe, settings)
        yield result


def _fit(picture: "VideoFrame", probe: Probe, settings: ClipSettings) -> Tensor:
    """A picture may differ from the first one in size and turn: some streams change on the way."""
    pixels, turns = pixels_of(picture)
    own = replace(probe, height=picture.height, width=picture.width, turns=turns)
    return fitted(pixels, place(own.upright, settings), settings)[0]
