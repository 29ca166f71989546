"""Where the cells and the labels of a grid stand."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from .labels import BACKGROUND, INK, label_font, wrapped

if TYPE_CHECKING:
    from .labels import Font

__all__ = ["MIN_CELL", "Board", "board_for"]

MIN_CELL = 16
"""Pixels of a side under which a cell shows nothing."""

_GAP, _GROUP_GAP = 6, 20
_FRAME_GAP = 2
_FONT_SHARE, _LEAST_FONT, _MOST_FONT = 16, 12, 26
_MOST_LINES = 5
_LEAST_LABEL = 160

Labels = Sequence[Sequence[str]]
"""For each row or column the label by each of its axes, outer ones first."""


@dataclass(frozen=True, kw_only=True)
class _Text:
    top: int
    left: int
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Board:
    """A grid without its pictures."""

    height: int
    width: int
    cell_height: int
    cell_width: int
    """Of one picture; a cell may hold several beside each other."""
    places: tuple[tuple[int, int], ...]
    """Top and left of every cell, row by row."""
    texts: tuple[_Text, ...]
    font_size: int

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    def canvas(self) -> UInt8[np.ndarray, "h w 3"]:
        """The labels on their ground."""
        from PIL import Image, ImageDraw

        sheet = Image.new("RGB", (self.width, self.height), BACKGROUND)
        draw, font = ImageDraw.Draw(sheet), label_font(self.font_size)
        for text in self.texts:
            for index, line in enumerate(text.lines):
                draw.text((text.left, text.top + index * _line_height(self.font_size)), line, fill=INK, font=font)
        return np.asarray(sheet).copy()


def board_for(rows: Labels, columns: Labels, *, cell: tuple[int, int], beside: int, title: str) -> Board:
    """Lay out cells that hold so many pictures of size ``cell`` beside each other."""
    height, picture_width = cell
    width = beside * (picture_width + _FRAME_GAP) - _FRAME_GAP
    font_size = min(_MOST_FONT, max(_LEAST_FONT, height // _FONT_SHARE))
    font, line = label_font(font_size), _line_height(font_size)

    room = max(width, _LEAST_LABEL)
    most = max(1, height // line)
    beside_rows = [_lines(labels, font, room, most) for labels in rows]
    above_columns = [_lines(labels, font, width, _MOST_LINES * len(labels)) for labels in columns]
    margin = max((round(font.getlength(text)) for lines in beside_rows for text in lines), default=0)
    left = _GAP + (margin + 2 * _GAP if margin else 0)
    lefts = [left + offset for offset in _offsets(columns, width)]
    full_width = lefts[-1] + width + _GAP
    heading = wrapped(title, font, full_width - 2 * _GAP, most=_MOST_LINES)
    header = _GAP + line * len(heading) + (_GAP if heading else 0)
    top = header + line * max(len(lines) for lines in above_columns) + (_GAP if any(above_columns) else 0)
    tops = [top + offset for offset in _offsets(rows, height)]
    full_height = tops[-1] + height + _GAP
    texts = (
        _Text(top=_GAP, left=_GAP, lines=tuple(heading)),
        *(_Text(top=header, left=place, lines=lines) for place, lines in zip(lefts, above_columns, strict=True)),
        *(
            _Text(top=place + max(0, height - line * len(lines)) // 2, left=_GAP, lines=lines)
            for place, lines in zip(tops, beside_rows, strict=True)
        ),
    )
    return Board(
        height=full_height + full_height % 2,
        width=full_width + full_width % 2,
        cell_height=height,
        cell_width=picture_width,
        places=tuple((y, x) for y in tops for x in lefts),
        texts=texts,
        font_size=font_size,
    )


def _line_height(font_size: int) -> int:
    return font_size + font_size // 4


def _lines(labels: Sequence[str], font: "Font", width: int, most: int) -> tuple[str, ...]:
    """Every label begins on a line of its own."""
    share = max(1, most // max(1, len(labels)))
    return tuple(line for label in labels for line in wrapped(label, font, width, most=share))


def _offsets(labels: Labels, size: int) -> Iterator[int]:
    """Where each row or column begins; those that differ in an outer axis stand further apart."""
    offset = 0
    for index, label in enumerate(labels):
        if index:
            is_new_group = label[:-1] != labels[index - 1][:-1]
            offset += size + (_GROUP_GAP if is_new_group else _GAP)
        yield offset
