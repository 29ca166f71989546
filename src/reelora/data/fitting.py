"""How a picture comes to the size of a model, and how a short clip comes to its length: two tables and what they do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal, Protocol

import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from reelora.shapes import FramesU8

__all__ = ["FITS", "PADDINGS", "Fit", "FitRow", "Padding", "PaddingRow", "Placed", "fitted", "place"]

Fit = Literal["crop", "crop_start", "crop_end", "pad", "pad_edge"]
"""What is done with a picture of another shape."""

Padding = Literal["last", "loop", "bounce"]
"""What follows the last frame of a clip that is too short."""

OtherSizeU8 = UInt8[Tensor, "t _ _ c"]
"""The same frames at another size."""


@dataclass(frozen=True, kw_only=True)
class FitRow:
    """One way to a size: cover it and cut off the rest, or fit inside and fill what is left."""

    covers: bool
    share_before: float
    """How much of what is too much (or missing) lies above or to the left."""
    is_black: bool
    words: str


FITS: Mapping[Fit, FitRow] = {
    "crop": FitRow(covers=True, share_before=0.5, is_black=False, words="at the centre"),
    "crop_start": FitRow(covers=True, share_before=0.0, is_black=False, words="at the top or left"),
    "crop_end": FitRow(covers=True, share_before=1.0, is_black=False, words="at the bottom or right"),
    "pad": FitRow(covers=False, share_before=0.5, is_black=True, words="with black"),
    "pad_edge": FitRow(covers=False, share_before=0.5, is_black=False, words="with its outermost pixels"),
}


@dataclass(frozen=True, kw_only=True)
class PaddingRow:
    """One way to go on after the last of ``count`` frames."""

    index: Callable[[int, int], int]
    """The frame that is shown at a place, of so many."""
    words: str


PADDINGS: Mapping[Padding, PaddingRow] = {
    "last": PaddingRow(index=lambda place, count: min(place, count - 1), words="the last is repeated {} times"),
    "loop": PaddingRow(index=lambda place, count: place % count, words="it begins anew for {} frames"),
    "bounce": PaddingRow(index=lambda place, count: _bounced(place, count), words="it runs back and forth for {} frames"),
}


def _bounced(place: int, count: int) -> int:
    if count == 1:
        return 0
    turn = place % (2 * count - 2)
    return min(turn, 2 * count - 2 - turn)


class _Sized(Protocol):
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def fit(self) -> Fit: ...


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where an upright picture of square pixels goes: its size after scaling, and where its corner lies in the result."""

    height: int
    width: int
    top: int
    left: int
    """Negative where rows or columns are cut off, positive where some are filled."""


def place(upright: tuple[float, float], size: _Sized) -> Placed:
    """Scale evenly to cover the size or to fit inside it, whichever its fit says; never squash."""
    row = FITS[size.fit]
    ratios = size.height / upright[0], size.width / upright[1]
    scale = max(ratios) if row.covers else min(ratios)
    height, width = (_side(full * scale, side, row) for full, side in zip(upright, (size.height, size.width), strict=True))
    # Rounded down of what is too much, so that an odd row is lost below.
    top, left = (_before(whole - own, row) for whole, own in ((size.height, height), (size.width, width)))
    return Placed(height=height, width=width, top=top, left=left)


def _side(scaled: float, side: int, row: FitRow) -> int:
    return max(side, round(scaled)) if row.covers else max(1, min(side, round(scaled)))


def _before(room: int, row: FitRow) -> int:
    return ceil(room * row.share_before) if room < 0 else floor(room * row.share_before)


def fitted(pixels: FramesU8, placed: Placed, size: _Sized) -> OtherSizeU8:
    """Upright frames at the size that was asked for."""
    scaled = _resized(pixels, (placed.height, placed.width))
    rows, columns = (_sources(*axis) for axis in _axes(placed, size))
    # Sources outside the picture are taken from its edge, which a black border then covers.
    shown = scaled[:, rows.clamp(0, placed.height - 1)][:, :, columns.clamp(0, placed.width - 1)]
    if FITS[size.fit].is_black:
        inside = _inside(rows, placed.height)[:, None] & _inside(columns, placed.width)[None]
        shown = shown * inside[None, :, :, None]
    return shown.contiguous()


def _axes(placed: Placed, size: _Sized) -> tuple[tuple[int, int], tuple[int, int]]:
    return (size.height, placed.top), (size.width, placed.left)


def _sources(count: int, before: int) -> Tensor:
    return torch.arange(count) - before


def _inside(sources: Tensor, count: int) -> Tensor:
    return (sources >= 0) & (sources < count)


def _resized(pixels: FramesU8, size: tuple[int, int]) -> OtherSizeU8:
    if pixels.shape[1:3] == size:
        return pixels
    planes = rearrange(pixels, "t h w c -> t c h w")
    return rearrange(interpolate(planes, size=size, mode="bicubic", antialias=True), "t c h w -> t h w c")
