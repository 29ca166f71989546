"""What was done to a clip, in words."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .fitting import FITS, PADDINGS, place
from .probe import Probe

if TYPE_CHECKING:
    from .frames import ClipSettings

__all__ = ["Change", "ClipReport", "report_of"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing that is done to a clip.

    ``resampled``, ``trimmed``, ``padded`` in time; ``turned``, ``resized``, ``cropped``, ``bordered`` in space.
    """

    kind: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ClipReport:
    """What a video is, and what is done to it. ``num_own_frames`` are those at the model's rate before any padding."""

    name: str
    source_frames: int
    source_fps: float
    source_height: int
    source_width: int
    num_own_frames: int
    changes: tuple[Change, ...]
    size: str
    """Frames, height and width of what it becomes: ``49x480x720``."""
    first: int = 0
    """Where in the video it begins, in frames at the model's rate."""
    crop_top: int = 0
    crop_left: int = 0
    """Rows and columns that are cut off above and to the left, after scaling."""
    upright_height: int = 0
    upright_width: int = 0
    """The source's size in square pixels, as a player shows it."""

    @property
    def micro_conditions(self) -> tuple[int, int, int, int, int, int]:
        """What SDXL is told of a picture: its own height and width, top and left of the crop, height and width that it gets.

        The crop is measured after scaling. Source: SDXL, arXiv:2307.01952, section 2.2.
        """
        height, width = map(int, self.size.split("x")[1:])
        return self.upright_height, self.upright_width, self.crop_top, self.crop_left, height, width

    def __str__(self) -> str:
        done = "; ".join(f"{change.kind}: {change.reason}" for change in self.changes)
        return f"{self.name}: {done or 'as it is'}"


def report_of(name: str, probe: Probe, settings: "ClipSettings", first: int) -> ClipReport:
    """What reading a video with these settings from frame ``first`` on does to it."""
    placed = place(probe.upright, settings)
    return ClipReport(
        name=name,
        source_frames=probe.num_frames,
        source_fps=round(probe.fps, 3),
        source_height=probe.height,
        source_width=probe.width,
        num_own_frames=probe.own_frames(settings.fps),
        changes=tuple(_changes(probe, settings, first)),
        size=str(settings),
        first=first,
        crop_top=max(0, -placed.top),
        crop_left=max(0, -placed.left),
        upright_height=round(probe.upright[0]),
        upright_width=round(probe.upright[1]),
    )


def _changes(probe: Probe, settings: "ClipSettings", first: int) -> Iterator[Change]:
    num_own = probe.own_frames(settings.fps)
    cases = {
        "resampled": _resampled(probe, settings),
        "trimmed": _trimmed(num_own, settings, first),
        "padded": _padded(num_own - first, settings),
        "turned": f"by {90 * probe.turns} degrees counter-clockwise, as the file asks" if probe.turns else "",
        **_in_space(probe, settings),
    }
    return (Change(kind=kind, reason=reason) for kind, reason in cases.items() if reason)


def _resampled(probe: Probe, settings: "ClipSettings") -> str:
    if probe.is_steady and abs(probe.fps - settings.fps) * probe.seconds <= 0.5:
        return ""
    steadiness = "" if probe.is_steady else " on average (variable)"
    slow = ", pictures are shown more than once" if settings.fps > 1.5 * probe.fps else ""
    return f"from {probe.fps:.4g} fps{steadiness} to {settings.fps:g} fps, by timestamp{slow}"


def _trimmed(num_own: int, settings: "ClipSettings", first: int) -> str:
    wanted, fps = settings.num_frames, settings.fps
    if first:
        return f"frames {first} to {min(first + wanted, num_own) - 1} of {num_own} at {fps:g} fps are used"
    return f"the first {wanted} of {num_own} frames at {fps:g} fps are used" if num_own > wanted else ""


def _padded(num_left: int, settings: "ClipSettings") -> str:
    missing = settings.num_frames - num_left
    words = PADDINGS[settings.padding].words.format(missing)
    return f"{num_left} of {settings.num_frames} frames at {settings.fps:g} fps; {words}" if missing > 0 else ""


def _in_space(probe: Probe, settings: "ClipSettings") -> dict[str, str]:
    upright, placed, row = probe.upright, place(probe.upright, settings), FITS[settings.fit]
    size, scaled = (settings.height, settings.width), (placed.height, placed.width)
    way = "enlarged" if placed.height > upright[0] else "reduced"
    kept = settings.height * settings.width / (placed.height * placed.width)
    cut = f"to {size[0]} x {size[1]} {row.words}, {kept:.0%} of the picture is kept"
    filled = f"{row.words} around {scaled[0]} x {scaled[1]}, which fill {1 / kept:.0%} of {size[0]} x {size[1]}"
    return {
        "resized": f"{way} from {upright[0]:g} x {upright[1]:g} to {scaled[0]} x {scaled[1]}" if scaled != upright else "",
        "cropped": cut if row.covers and scaled != size else "",
        "bordered": filled if not row.covers and scaled != size else "",
    }
