"""Sizes that clips may have: those that a user lists, or those that a model can do."""

from collections.abc import Sequence
from math import sqrt
from typing import Annotated

from pydantic import StringConstraints

from reelora.catalog import ModelFacts
from reelora.errors import ConfigError

__all__ = ["BucketText", "Size", "automatic_sizes", "checked_sizes"]

BucketText = Annotated[str, StringConstraints(pattern=r"^[1-9]\d*x[1-9]\d*x[1-9]\d*$")]
"""Frames, height and width: ``49x480x720``."""

Size = tuple[int, int, int]
"""Frames, height and width."""

_SHAPES = ((9, 16), (2, 3), (3, 4), (1, 1), (4, 3), (3, 2), (16, 9))
"""Width to height of what cameras and telephones make."""


def checked_sizes(buckets: Sequence[str], facts: ModelFacts) -> tuple[Size, ...]:
    """The sizes of a list; ConfigError says of each what a model cannot do, and for an empty list."""
    sizes = [_size(text) for text in buckets]
    problems = [problem for size in sizes if (problem := _problem(size, facts))]
    if problems or not sizes:
        raise ConfigError("\n".join(problems) or "data.buckets is an empty list: name sizes (49x480x720), or write auto.")
    return tuple(sizes)


def _size(text: str) -> Size:
    num_frames, height, width = map(int, text.split("x"))
    return num_frames, height, width


def _problem(size: Size, facts: ModelFacts) -> str:
    num_frames, height, width = size
    try:
        facts.check_video(num_frames=num_frames, height=height, width=width)
    except ConfigError as error:
        return f"data.buckets: {error}"
    return ""


def automatic_sizes(whole: Size, facts: ModelFacts, *, has_images: bool) -> tuple[Size, ...]:
    """All that a model can do with at most the frames of a size, in the usual shapes of about its area.

    A model whose position table is fixed can do that one size alone.
    """
    if facts.is_size_fixed:
        return (whole,)
    num_frames, height, width = whole
    first = 1 if has_images else 1 + facts.frame_group
    frames = range(first, num_frames + 1, facts.frame_group)
    sides = [(height, width), *(_sides(height * width, shape, facts) for shape in _SHAPES)]
    return tuple((count, *pair) for pair in dict.fromkeys(sides) for count in reversed(frames))


def _sides(area: int, shape: tuple[int, int], facts: ModelFacts) -> tuple[int, int]:
    """Height and width of a shape (width, height), in whole tokens and no side longer than the model knows."""
    width, height = shape
    return _side(sqrt(area * height / width), facts), _side(sqrt(area * width / height), facts)


def _side(length: float, facts: ModelFacts) -> int:
    step = facts.size_multiple
    return min(max(1, round(length / step)), facts.max_side // step) * step
