"""Words on pictures: one font, and text that never leaves its room."""

from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

__all__ = ["BACKGROUND", "INK", "fitted_line", "label_font", "wrapped"]

BACKGROUND = (255, 255, 255)
INK = (30, 30, 30)
_MORE = "..."


def label_font(size: int | None = None) -> "Font":
    """The font of all labels, so many pixels high."""
    from PIL import ImageFont

    return ImageFont.load_default() if size is None else ImageFont.load_default(size)


def fitted_line(label: str, font: "Font", width: int) -> str:
    """The label on one line, shortened until it fits."""
    label = " ".join(label.split())
    if font.getlength(label) <= width:
        return label
    return label[: _num_fitting(label, font, width - font.getlength(_MORE))] + _MORE


def wrapped(label: str, font: "Font", width: int, *, most: int) -> list[str]:
    """The label on at most so many lines, broken between words where it can be, and shortened where that is not enough."""
    lines, rest = [], " ".join(label.split())
    while rest and len(lines) < most - 1 and font.getlength(rest) > width:
        count = max(1, _num_fitting(rest, font, width))
        space = rest.rfind(" ", 1, count + 1)
        end = space if space > 0 else count
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    return [*lines, fitted_line(rest, font, width)] if rest else lines


def _num_fitting(text: str, font: "Font", width: float) -> int:
    """How many of the first letters have room."""
    return max(0, bisect_right(range(len(text) + 1), width, key=lambda count: font.getlength(text[:count])) - 1)
