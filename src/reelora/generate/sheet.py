"""Many clips on one picture."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from reelora.errors import ConfigError

from .clip import Clip
from .labels import BACKGROUND, INK, fitted_line, label_font

__all__ = ["contact_sheet", "evenly_spaced", "strip_of"]

_GAP = 8
_LABEL_HEIGHT = 16
_FRAME_GAP = 2


def contact_sheet(clips: Sequence[Clip], labels: Sequence[str], *, columns: int, frames: int = 5) -> UInt8[np.ndarray, "h w 3"]:
    """Clips in a grid of so many columns, each as a strip of evenly spaced frames (first and last among them) under its label.

    Raises ConfigError unless there is one label per clip, and at least one clip, column and frame.
    """
    from PIL import Image, ImageDraw

    _check(clips, labels, columns, frames)
    strips = [strip_of(clip.frames[evenly_spaced(len(clip.frames), frames)].cpu().numpy()) for clip in clips]
    height = _GAP + _LABEL_HEIGHT + max(strip.shape[0] for strip in strips)
    width = _GAP + max(strip.shape[1] for strip in strips)
    columns = min(columns, len(clips))
    rows = -(-len(clips) // columns)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), label_font()
    for index, (strip, label) in enumerate(zip(strips, labels, strict=True)):
        row, column = divmod(index, columns)
        left, top = column * width + _GAP, row * height + _GAP
        draw.text((left, top), fitted_line(label, font, width - _GAP), fill=INK, font=font)
        sheet.paste(Image.fromarray(strip), (left, top + _LABEL_HEIGHT))
    return np.asarray(sheet).copy()


def _check(clips: Sequence[Clip], labels: Sequence[str], columns: int, frames: int) -> None:
    problems = [f"{name} is {count}" for name, count in (("columns", columns), ("frames", frames)) if count < 1]
    if len(clips) != len(labels) or not clips:
        problems.append(f"there are {len(clips)} clips and {len(labels)} labels")
    if problems:
        raise ConfigError(
            f"A contact sheet needs clips, as many labels, and 1 or more columns and frames: {', '.join(problems)}."
        )


def evenly_spaced(total: int, count: int) -> list[int]:
    """So many of ``total`` frames, the first and the last among them; all where there are fewer."""
    return [int(index) for index in np.unique(np.linspace(0, total - 1, count).round())]


def strip_of(pictures: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "h s 3"]:
    """Frames beside each other."""
    gap = np.full((pictures.shape[1], _FRAME_GAP, 3), BACKGROUND, np.uint8)
    return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)
