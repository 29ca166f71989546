"""The plot of a sweep: what becomes of a video when one thing changes along the rows and another along the columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from reelora.errors import ConfigError, first_few
from reelora.shapes import FramesU8

from .board import MIN_CELL, Board, board_for
from .clip import Clip
from .pictures import fit
from .sheet import evenly_spaced, strip_of

__all__ = ["Axis", "arrange_axes", "grid_sheet", "grid_video"]

Value = str | int | float | bool

Pictures = UInt8[np.ndarray, "t h w 3"]

_LEAST_SIDE = 128
"""Smaller cells are enlarged by whole numbers, pixel by pixel: their labels need room."""
_MOST_SHEET, _MOST_VIDEO = 8192, 4096
"""Pixels of a side: what viewers open, and what players decode."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One thing that changes: ``Axis(name="style", values=(0, 0.5, 1))``.

    Raises ConfigError without values, and for one that comes twice.
    """

    name: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        labels = self.labels
        if not labels:
            raise ConfigError(f"The axis {self.name!r} has no values; give one or more, such as {self.name}=0,0.5,1.")
        if repeated := sorted({label for label in labels if labels.count(label) > 1}):
            raise ConfigError(f"The axis {self.name!r} has values that come twice: {first_few(repeated)}. Give each once.")

    @property
    def labels(self) -> tuple[str, ...]:
        """``style=0.5`` for each value."""
        return tuple(f"{self.name}={value:.9g}" if type(value) is float else f"{self.name}={value}" for value in self.values)

    @property
    def description(self) -> dict[str, Any]:
        """For the metadata of files."""
        return {"name": self.name, "values": list(self.values)}


Axes = Axis | Sequence[Axis]
"""One axis; or several, nested, the last of which changes fastest; or none, for a single row or column."""


def arrange_axes(axes: Sequence[Axis]) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
    """Which of some axes go down the rows and which along the columns, in the order in which they were named.

    One is the columns; of two, the first is the rows; of three, the second and third are nested columns; of four, two and two.
    The cells of a grid so arranged are in the order of ``itertools.product`` over the values of all axes as named.
    """
    middle = len(axes) // 2
    return tuple(axes[:middle]), tuple(axes[middle:])


def grid_sheet(cells: Sequence[Clip], *, rows: Axes, columns: Axes, frames: int = 1, title: str = "") -> Clip:
    """One picture of all cells under their labels, as a clip of one frame: save it as ``.png``, ``.webp`` or ``.jpg``.

    Of each cell its middle frame is shown, or a strip of ``frames`` evenly spaced ones with the first and the last. Cells come
    row by row: in the order of ``itertools.product`` over the values of the rows' axes, then of the columns'. More than two
    axes are nested: each row and column is labelled by all of its axes, and the groups of the outer ones stand apart. Small
    cells are enlarged by whole numbers; where the sheet would have a side over 8192 pixels, all are reduced. Metadata:
    ``grid`` with both axes, and ``cells`` with those of every cell, in order.

    Raises ConfigError unless there is a cell for every pair of values, all have one size and rate, and there is room.
    """
    grid = _Grid.of(cells, rows, columns)
    if frames < 1:
        raise ConfigError(f"frames is {frames}; a sheet shows 1 or more of each cell.")
    shown = [cell.frames[_chosen(len(cell.frames), frames)].cpu() for cell in cells]
    most = max(len(pictures) for pictures in shown)
    board = grid.board(shown_beside=most, title=title, max_side=_MOST_SHEET)
    canvas = board.canvas()
    for (top, left), pictures in zip(board.places, shown, strict=True):
        strip = strip_of(_scaled(pictures, board))
        canvas[top : top + strip.shape[0], left : left + strip.shape[1]] = strip
    return Clip(frames=torch.from_numpy(canvas)[None], fps=cells[0].fps, metadata=grid.metadata)


def grid_video(cells: Sequence[Clip], *, rows: Axes, columns: Axes, title: str = "") -> Clip:
    """All cells side by side under their labels, playing together; a shorter one stays at its last frame.

    Cells, nesting, sizes (the largest side here is 4096 pixels, more than which players do not decode), metadata and errors as
    in `grid_sheet`. Its sides are even.
    """
    grid = _Grid.of(cells, rows, columns)
    board = grid.board(shown_beside=1, title=title, max_side=_MOST_VIDEO)
    length = max(len(cell.frames) for cell in cells)
    film = np.repeat(board.canvas()[None], length, axis=0)
    for (top, left), cell in zip(board.places, cells, strict=True):
        for index, picture in enumerate(cell.frames):
            scaled = _scaled(picture[None].cpu(), board)[0]
            last = length if index == len(cell.frames) - 1 else index + 1
            film[index:last, top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
    return Clip(frames=torch.from_numpy(film), fps=cells[0].fps, metadata=grid.metadata)


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """Checked cells with their axes."""

    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    height: int
    width: int
    metadata: Mapping[str, Any]

    @classmethod
    def of(cls, cells: Sequence[Clip], rows: Axes, columns: Axes) -> "_Grid":
        across, down = (((axes,) if isinstance(axes, Axis) else tuple(axes)) for axes in (columns, rows))
        if problems := _problems(cells, down, across):
            raise ConfigError(f"These clips make no grid: {'; '.join(problems)}.")
        axes = {name: [axis.description for axis in row] for name, row in (("rows", down), ("columns", across))}
        metadata = {"grid": axes, "cells": [dict(cell.metadata) for cell in cells]}
        _, height, width = cells[0].size
        return cls(rows=down, columns=across, height=height, width=width, metadata=metadata)

    def board(self, *, shown_beside: int, title: str, max_side: int) -> Board:
        """The largest board that fits: cells enlarged by a whole number, as they are, or reduced."""
        factors = range(max(1, ceil(_LEAST_SIDE / min(self.height, self.width))), 0, -1)
        sizes = [(self.height * factor, self.width * factor) for factor in factors]
        labels = [list(product(*(axis.labels for axis in axes))) for axes in (self.rows, self.columns)]
        while sizes:
            board = board_for(*labels, cell=sizes[0], beside=shown_beside, title=title)
            if max(board.size) <= max_side:
                return board
            share = min(0.99, max_side / max(board.size))
            smaller = int(sizes[0][0] * share), int(sizes[0][1] * share)
            sizes = sizes[1:] or ([smaller] if min(smaller) >= MIN_CELL else [])
        raise ConfigError(
            f"A grid of {len(labels[0])} x {len(labels[1])} cells does not fit {max_side} pixels: no cell would have "
            f"{MIN_CELL} of them. Make several grids with fewer values."
        )


def _problems(cells: Sequence[Clip], rows: Sequence[Axis], columns: Sequence[Axis]) -> list[str]:
    names = [axis.name for axis in (*rows, *columns)]
    counts = [prod(len(axis.values) for axis in axes) for axes in (rows, columns)]
    problems = []
    if len(set(names)) < len(names):
        problems.append(f"an axis is named twice in {', '.join(names)}")
    if len(cells) != prod(counts):
        problems.append(f"there are {len(cells)} of them, and {counts[0]} x {counts[1]} places")
    for what, values in (("sizes", {cell.size[1:] for cell in cells}), ("rates", {cell.fps for cell in cells})):
        if len(values) > 1:
            problems.append(f"they have several {what}: {first_few([str(value) for value in sorted(values)])}")
    return problems


def _chosen(total: int, count: int) -> list[int]:
    return [total // 2] if count == 1 else evenly_spaced(total, count)


def _scaled(pictures: FramesU8, board: Board) -> Pictures:
    factor, rest = divmod(board.cell_height, pictures.shape[1])
    if factor and not rest:
        return pictures.numpy().repeat(factor, axis=1).repeat(factor, axis=2)
    return fit(pictures, height=board.cell_height, width=board.cell_width).numpy()
