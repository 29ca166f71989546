"""One video as the model will see it: its rate, its size, its number of frames, and what that did to it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from reelora.errors import ConfigError, DataError
from reelora.shapes import FramesU8

from .decode import Footage, Picture, open_footage, pixels_of

if TYPE_CHECKING:
    from av import VideoFrame

__all__ = ["Change", "ClipReport", "ClipSettings", "read_as", "read_clip"]

OtherSizeU8 = UInt8[Tensor, "t _ _ c"]
"""The same frames at another size."""

# A picture counts as shown a third of a frame early: containers round timestamps to their tick (Matroska: 1 ms), and
# without slack every other frame of a 24 fps file would be read twice. A third, since sums of halves, quarters and
# fifths (the ratios of common rates) never fall on its edge.
_SLACK = 1 / 3


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """What every clip of a data set is made into. Raises ConfigError for what no clip can be."""

    num_frames: int
    height: int
    width: int
    fps: int | float
    min_share: int | float = 0.5
    """A clip that has fewer than this share of ``num_frames`` is refused; above it, its last frame is repeated."""

    def __post_init__(self) -> None:
        wrongs = {
            "num_frames must be at least 1": self.num_frames < 1,
            "height and width must be at least 1": min(self.height, self.width) < 1,
            "fps must be positive": not (isfinite(self.fps) and self.fps > 0),
            "min_share must lie in 0 to 1": not 0 <= self.min_share <= 1,
        }
        if any(wrongs.values()):
            found = "; ".join(what for what, is_wrong in wrongs.items() if is_wrong)
            raise ConfigError(f"{self} is impossible: {found}.")

    @property
    def min_frames(self) -> int:
        """The fewest frames that a clip must have of its own."""
        return max(1, ceil(self.num_frames * self.min_share))


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing that was done to a clip: ``trimmed``, ``padded``, ``resampled``, ``turned``, ``resized`` or ``cropped``."""

    kind: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ClipReport:
    """What a clip was, and what was done to it. ``num_own_frames`` are those at the model's rate before any padding."""

    name: str
    source_frames: int
    source_fps: float
    source_height: int
    source_width: int
    num_own_frames: int
    changes: tuple[Change, ...]

    def __str__(self) -> str:
        done = "; ".join(f"{change.kind}: {change.reason}" for change in self.changes)
        return f"{self.name}: {done or 'as it is'}"


def read_clip(
    path: Path, *, num_frames: int, height: int, width: int, fps: int | float, min_share: int | float = 0.5
) -> tuple[FramesU8, ClipReport]:
    """Decode a video into ``num_frames`` RGB frames of ``height x width`` at ``fps``, with a report of every change.

    Time: frame ``k`` is the picture on screen ``k / fps`` seconds after the first one, by timestamp, so a variable
    frame rate keeps its timing. Frames beyond ``num_frames`` are trimmed; a clip that is too short repeats its last
    frame, unless it has fewer than ``min_share * num_frames``. Size: turned upright by the file's display matrix,
    scaled (bicubic, antialiased, square pixels) to cover ``height x width``, then cropped at the centre; never
    squashed. A picture file is a clip of one frame.

    Raises DataError for a clip that is truncated, damaged, too short, or without pictures, FileFormatError for what
    is no video, and OSError where the file is missing.
    """
    return read_as(Path(path), ClipSettings(num_frames=num_frames, height=height, width=width, fps=fps, min_share=min_share))


def read_as(path: Path, settings: ClipSettings) -> tuple[FramesU8, ClipReport]:
    """``read_clip`` with its settings in one value."""
    footage = open_footage(path)
    num_own = _num_own_frames(footage, settings)
    if num_own < settings.min_frames:
        raise DataError(_too_short(footage, settings, num_own))
    pictures = _on_screen(footage.pictures(), _asked_times(footage, settings, min(num_own, settings.num_frames)))
    shown = list(_fitted(pictures, footage, settings))
    frames = torch.stack([frame for frame, _ in shown])
    padding = frames[-1:].expand(settings.num_frames - len(frames), -1, -1, -1)
    return torch.cat([frames, padding]), _report(footage, settings, num_own, shown[0][1])


# Time.


def _num_own_frames(footage: Footage, settings: ClipSettings) -> int:
    """How many frames at the model's rate begin, by more than the slack, before the footage ends."""
    return max(1, ceil(footage.seconds * settings.fps - _SLACK))


def _too_short(footage: Footage, settings: ClipSettings, num_own: int) -> str:
    return (
        f"{footage.path}: is too short: {footage.seconds:.2f} s give {num_own} frames at {settings.fps:g} fps; "
        f"{settings.num_frames} are wanted and at least {settings.min_frames} are needed. "
        "Give a longer clip, ask for fewer frames or lower min_share."
    )


def _asked_times(footage: Footage, settings: ClipSettings, count: int) -> list[float]:
    slack = _SLACK / max(footage.fps, settings.fps)
    return [index / settings.fps + slack for index in range(count)]


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


# Space.


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """How a picture came to its size: ``stored`` as decoded, ``upright`` in square pixels, ``covering`` before the crop."""

    stored: tuple[int, int]
    upright: tuple[float, float]
    covering: tuple[int, int]
    turns: int


def _fitted(pictures: Iterable["VideoFrame"], footage: Footage, settings: ClipSettings) -> Iterator[tuple[Tensor, _Fit]]:
    """Each picture at the model's size; one that is shown again is not computed again."""
    last, fitted = None, None
    for picture in pictures:
        if fitted is None or picture is not last:
            last, fitted = picture, _fit(picture, footage.pixel_aspect, settings)
        yield fitted


def _fit(picture: "VideoFrame", pixel_aspect: float, settings: ClipSettings) -> tuple[Tensor, _Fit]:
    pixels, turns = pixels_of(picture)
    _, rows, columns, _ = pixels.shape
    upright = (rows * pixel_aspect, float(columns)) if turns % 2 else (float(rows), columns * pixel_aspect)
    scale = max(settings.height / upright[0], settings.width / upright[1])
    covering = (max(settings.height, round(upright[0] * scale)), max(settings.width, round(upright[1] * scale)))
    fit = _Fit(stored=(picture.height, picture.width), upright=upright, covering=covering, turns=turns)
    return _cropped(_resized(pixels, covering), settings.height, settings.width)[0], fit


def _resized(pixels: FramesU8, size: tuple[int, int]) -> OtherSizeU8:
    if pixels.shape[1:3] == size:
        return pixels
    planes = rearrange(pixels, "t h w c -> t c h w")
    return rearrange(interpolate(planes, size=size, mode="bicubic", antialias=True), "t c h w -> t h w c")


def _cropped(pixels: FramesU8, height: int, width: int) -> OtherSizeU8:
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    return pixels[:, top : top + height, left : left + width].contiguous()


# The report.


def _report(footage: Footage, settings: ClipSettings, num_own: int, fit: _Fit) -> ClipReport:
    return ClipReport(
        name=footage.path.name,
        source_frames=footage.num_frames,
        source_fps=round(footage.fps, 3),
        source_height=fit.stored[0],
        source_width=fit.stored[1],
        num_own_frames=num_own,
        changes=tuple(_changes(footage, settings, num_own, fit)),
    )


def _changes(footage: Footage, settings: ClipSettings, num_own: int, fit: _Fit) -> Iterator[Change]:
    wanted, fps = settings.num_frames, settings.fps
    is_resampled = not footage.is_steady or abs(footage.fps - fps) * footage.seconds > 0.5
    height, width = fit.upright
    scale = fit.covering[0] / height
    kept = settings.height * settings.width / (fit.covering[0] * fit.covering[1])
    steadiness = "" if footage.is_steady else " on average (variable)"
    cases = {
        "resampled": (is_resampled, f"from {footage.fps:.4g} fps{steadiness} to {fps:g} fps, by timestamp"),
        "trimmed": (num_own > wanted, f"the first {wanted} of {num_own} frames at {fps:g} fps are used"),
        "padded": (
            num_own < wanted,
            f"{num_own} of {wanted} frames at {fps:g} fps; the last is repeated {wanted - num_own} times",
        ),
        "turned": (fit.turns != 0, f"by {90 * fit.turns} degrees counter-clockwise, as the file asks"),
        "resized": (
            fit.covering != (height, width),
            f"{'enlarged' if scale > 1 else 'reduced'} from {height:g} x {width:g} to {fit.covering[0]} x {fit.covering[1]}",
        ),
        "cropped": (
            fit.covering != (settings.height, settings.width),
            f"to {settings.height} x {settings.width} at the centre, {kept:.0%} of the picture is kept",
        ),
    }
    return (Change(kind=kind, reason=reason) for kind, (is_so, reason) in cases.items() if is_so)
