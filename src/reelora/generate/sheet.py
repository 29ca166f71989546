"""Many clips on one picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from reelora.errors import ConfigError

from .clip import Clip

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

__all__ = ["contact_sheet"]

_BACKGROUND = (255, 255, 255)
_INK = (30, 30, 30)
_GAP = 8
_LABEL_HEIGHT = 16
_FRAME_GAP = 2


def contact_sheet(clips: Sequence[Clip], labels: Sequence[str], *, columns: int, frames: int = 5) -> UInt8[np.ndarray, "h w 3"]:
    """Clips in a grid of so many columns, each as a strip of evenly spaced frames (first and last among them) under its label.

    Raises ConfigError unless there is one label per clip, and at least one clip, column and frame.
    """
    from PIL import Image, ImageDraw, ImageFont

    _check(clips, labels, columns, frames)
    strips = [_strip(clip, frames) for clip in clips]
    height = _GAP + _LABEL_HEIGHT + max(strip.shape[0] for strip in strips)
    width = _GAP + max(strip.shape[1] for strip in strips)
    columns = min(columns, len(clips))
    rows = -(-len(clips) // columns)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for index, (strip, label) in enumerate(zip(strips, labels, strict=True)):
        row, column = divmod(index, columns)
        left, top = column * width + _GAP, row * height + _GAP
        draw.text((left, top), _fitted(label, font, width - _GAP), fill=_INK, font=font)
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


def _strip(clip: Clip, count: int) -> UInt8[np.ndarray, "h w 3"]:
    """Evenly spaced frames beside each other; all of a clip that has fewer."""
    pictures = clip.frames.cpu().numpy()
    chosen = np.unique(np.linspace(0, len(pictures) - 1, count).round().astype(int))
    gap = np.full((pictures.shape[1], _FRAME_GAP, 3), _BACKGROUND, np.uint8)
    return np.concatenate([part for index in chosen for part in (pictures[index], gap)][:-1], axis=1)


def _fitted(label: str, font: "Font", width: int) -> str:
    """The label on one line, shortened until it fits."""
    label = " ".join(label.split())
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(f"{label}...") > width:
        label = label[:-1]
    return f"{label}..."
