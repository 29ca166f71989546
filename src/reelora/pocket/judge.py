"""Says what a clip shows by looking at its pixels alone: colour, contour and track of the largest object. No network.

The background is the median of the border. The object is the largest connected region that stands out from it; its colour
is that of its core, matched to the palette. How much of each pixel it covers follows from where the pixel lies between the
two colours, and its shape is the outline of the same area and centre whose coverage agrees best (intersection over union).
"""

from dataclasses import dataclass

import numpy as np

from .clips import COLOURS, MOTIONS, OUTLINES, coverage, outline

__all__ = ["Verdict", "judge"]

_CONTRAST = 40.0
"""Distance in RGB from the background at which a pixel stands out."""
_FEWEST_PIXELS = 20
_LEAST_OVERLAP = 0.6
"""Below this mean overlap with every outline an object has no shape we know."""
_LEAST_STAR_OVERLAP = 0.75
_SOFTEST = 6
"""How often outlines are softened before they are compared."""
_LEAST_TRAVEL = 6.0
_LEAST_GROWTH = 1.3


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was seen; None where nothing could be."""

    shape: str | None
    colour: str | None
    motion: str | None
    overlaps: dict[str, float]
    """Mean intersection over union with each outline."""


_NOTHING = Verdict(shape=None, colour=None, motion=None, overlaps={})


def _largest_regions(standing_out: np.ndarray) -> np.ndarray:
    """Of each frame of a boolean ``(t, h, w)``, the largest region of pixels that touch at their sides."""
    numbers = np.arange(1, standing_out[0].size + 1).reshape(standing_out.shape[1:])
    labels = np.where(standing_out, numbers, 0)
    while True:
        padded = np.pad(labels, ((0, 0), (1, 1), (1, 1)))
        around = [padded[:, 2:, 1:-1], padded[:, :-2, 1:-1], padded[:, 1:-1, 2:], padded[:, 1:-1, :-2]]
        spread = np.where(standing_out, np.maximum.reduce([labels, *around]), 0)
        if np.array_equal(spread, labels):
            break
        labels = spread
    counts = [np.bincount(frame.ravel(), minlength=2) for frame in labels]
    winners = np.array([1 + int(np.argmax(count[1:])) for count in counts])
    return standing_out & (labels == winners[:, None, None])


def _grow(region: np.ndarray) -> np.ndarray:
    """``region`` and all pixels that touch it, also at corners."""
    padded = np.pad(region, ((0, 0), (1, 1), (1, 1)))
    height, width = region.shape[1:]
    return np.logical_or.reduce([padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)])


def _soften(coverage: np.ndarray) -> np.ndarray:
    """``(t, h, w)`` with each pixel mixed with its neighbours, 1-2-1 along both axes: a blur of 0.7 pixels."""
    for axis in (1, 2):
        coverage = (np.roll(coverage, 1, axis) + 2 * coverage + np.roll(coverage, -1, axis)) / 4
    return coverage


def _overlap(seen: np.ndarray, shape: str, centres: np.ndarray, radii: np.ndarray) -> float:
    """Mean intersection over union with an outline, as sharp or soft as fits best: decoders blur, and blur makes all round."""
    expected = coverage(centres[:, None] + radii[:, None, None] * outline(shape), size=seen.shape[-1])
    found = []
    for _ in range(_SOFTEST + 1):
        found.append(float((np.minimum(seen, expected).sum((1, 2)) / np.maximum(seen, expected).sum((1, 2))).mean()))
        expected = _soften(expected)
    return max(found)


def _name_shape(overlaps: dict[str, float]) -> str | None:
    best = max(overlaps, key=lambda shape: overlaps[shape])
    floor = _LEAST_STAR_OVERLAP if best == "star" else _LEAST_OVERLAP
    return best if overlaps[best] >= floor else None


def _name_motion(centres: np.ndarray, radii: np.ndarray) -> str:
    """Motion from the straight lines that fit the centres ``(t, 2)`` and the logarithm of the radii ``(t,)``."""
    time = np.linspace(0, 1, len(radii))
    travel = np.polyfit(time, centres, 1)[0]
    growth = float(np.exp(np.polyfit(time, np.log(radii), 1)[0]))
    axis = int(np.argmax(np.abs(travel)))
    if max(growth, 1 / growth) >= _LEAST_GROWTH:
        return "grows" if growth > 1 else "shrinks"
    if abs(travel[axis]) < _LEAST_TRAVEL:
        return "stands still"
    return ("moves left", "moves right", "moves up", "moves down")[2 * axis + int(travel[axis] > 0)]


def judge(clip: np.ndarray) -> Verdict:
    """Name what the uint8 ``clip (t, h, w, 3)`` shows; frames without an object are left out, most must have one."""
    pixels = clip.astype(np.float32)
    border = np.concatenate([pixels[:, :2].reshape(len(clip), -1, 3), pixels[:, -2:].reshape(len(clip), -1, 3)], axis=1)
    ground = np.median(border, axis=1)[:, None, None]
    distance = np.linalg.norm(pixels - ground, axis=-1)
    region = _largest_regions(distance > _CONTRAST)
    found = region.sum((1, 2)) >= _FEWEST_PIXELS
    if found.mean() < 0.8:
        return _NOTHING
    pixels, ground, distance, region = pixels[found], ground[found], distance[found], region[found]
    core = region & (distance >= np.median(np.where(region, distance, np.nan)[region]))
    paint = np.median(pixels[core], axis=0)
    away = paint - ground
    seen = ((pixels - ground) * away).sum(-1) / np.maximum((away * away).sum(-1), 1.0)
    seen = np.clip(seen, 0, 1) * _grow(region)
    area = seen.sum((1, 2))
    painted = area >= _FEWEST_PIXELS / 2
    if painted.sum() < 0.8 * len(clip):
        return _NOTHING
    seen, area = seen[painted], area[painted]
    places = np.arange(clip.shape[1], dtype=np.float32) + 0.5
    centres = np.stack([(seen.sum(1) * places).sum(-1), (seen.sum(2) * places).sum(-1)], axis=1) / area[:, None]
    radii = np.sqrt(area / np.pi)
    overlaps = {shape: _overlap(seen, shape, centres, radii) for shape in OUTLINES}
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    colour = list(COLOURS)[int(np.argmin(np.linalg.norm(palette - paint, axis=1)))]
    motion = _name_motion(centres, radii)
    assert motion in MOTIONS
    return Verdict(shape=_name_shape(overlaps), colour=colour, motion=motion, overlaps=overlaps)
