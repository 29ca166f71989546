"""The pocket model's little world: one flat shape on a plain background, moving for two seconds.

Everything is drawn from numbers, seeded and antialiased: the coverage of a pixel is ``clip(1/2 - d, 0, 1)`` where ``d`` is
the exact signed distance in pixels from its centre to the outline. Lengths are in pixels of the 64 x 64 frame.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "FPS",
    "MOTIONS",
    "NUM_FRAMES",
    "OUTLINES",
    "SHAPES",
    "SIZE",
    "Combination",
    "Scene",
    "coverage",
    "draw",
    "draw_doodle",
    "is_held_out",
    "known_combinations",
    "outline",
    "sample_scene",
]

SIZE = 64
NUM_FRAMES = 17
FPS = 8

COLOURS = {
    "red": (220, 40, 40),
    "orange": (245, 145, 30),
    "yellow": (245, 225, 50),
    "green": (40, 165, 70),
    "cyan": (60, 210, 220),
    "blue": (45, 80, 220),
    "purple": (135, 55, 175),
    "pink": (245, 130, 190),
}
BACKGROUNDS = {"black": (16, 16, 16), "grey": (128, 128, 128), "white": (240, 240, 240), "brown": (96, 64, 44)}
MOTIONS = ("moves left", "moves right", "moves up", "moves down", "stands still", "grows", "shrinks")
DIRECTIONS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}

SHAPES = ("circle", "square", "triangle")
"""The shapes that the pocket model was trained on; ``OUTLINES`` can draw more."""

_RADIUS = (10.5, 12.5)
_TRAVEL = (14.0, 18.0)
_SMALL_RADIUS, _LARGE_RADIUS = (7.5, 8.5), (13.5, 15.5)
_MARGIN = 2.0
_JITTER = 2.0
"""Paths cross the middle of the frame, give or take this. Where they lie anywhere, a text says little about a noisy clip but
its colours, and a small model hardly learns to read the other words: given all else, the shape explains 4 % of what varies in
the latents of paths within 5 pixels of the middle, and 39 % within 2."""


class Combination(NamedTuple):
    """What the evaluator asks for: the part of a sentence that names the thing and what it does."""

    shape: str
    colour: str
    motion: str


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip as numbers. ``radius`` is that of a circle of the same area; places are those of the centre of area."""

    shape: str
    colour: str
    background: str
    motion: str
    start: tuple[float, float]
    end: tuple[float, float]
    start_radius: float
    end_radius: float

    @property
    def combination(self) -> Combination:
        return Combination(self.shape, self.colour, self.motion)

    def caption(self, *, noun: str | None = None) -> str:
        """The sentence that describes the clip; ``noun`` replaces the shape's own name."""
        return f"a {self.colour} {noun or self.shape} {self.motion} on a {self.background} background"


def _regular_polygon(num_corners: int, *, turn: float, inner: float | None = None) -> np.ndarray:
    """Corners (x right, y down) of a polygon around the origin; with ``inner``, a star whose notches lie at that radius."""
    count = num_corners * (1 if inner is None else 2)
    angles = turn + 2 * np.pi * np.arange(count) / count
    radii = np.ones(count) if inner is None else np.where(np.arange(count) % 2 == 0, 1.0, inner)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _polygon_area(corners: np.ndarray) -> float:
    x, y = corners.T
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


OUTLINES = {
    "circle": _regular_polygon(64, turn=0.0),
    "square": _regular_polygon(4, turn=np.pi / 4),
    "triangle": _regular_polygon(3, turn=-np.pi / 2),
    "star": _regular_polygon(5, turn=-np.pi / 2, inner=0.45),
}
"""Corners of every shape, before scaling. A circle of 64 corners is within 0.02 pixels of a round one at our sizes."""


def _nameless(number: int) -> np.ndarray:
    """Corners of an outline that has no word: three to twelve of them, at random radii, so that no regular star occurs."""
    rng = np.random.default_rng([5, number])
    count = int(rng.integers(3, 13))
    angles = 2 * np.pi * (np.arange(count) + rng.uniform(-0.3, 0.3, count)) / count + rng.uniform(0, 2 * np.pi)
    radii = rng.uniform(0.4, 1, count)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


@cache
def outline(shape: str) -> np.ndarray:
    """Corners ``(n, 2)`` of ``shape`` scaled to the area of the unit circle, so that equal radii mean equal areas.

    A name that is a number means an outline that has no word.
    """
    corners = _nameless(int(shape)) if shape.isdecimal() else OUTLINES[shape]
    return corners * np.sqrt(np.pi / _polygon_area(corners))


def _signed_distance(corners: np.ndarray, size: int) -> np.ndarray:
    """Distance ``(t, size, size)`` from each pixel centre to the outlines ``(t, n, 2)``, negative inside.

    The usual edge loop: distance to the nearest segment, sign by the crossing number.
    """
    centres = np.arange(size, dtype=np.float32) + 0.5
    px, py = centres[None, None, :], centres[None, :, None]
    nearest = np.full((len(corners), size, size), np.inf, dtype=np.float32)
    inside = np.zeros(nearest.shape, dtype=bool)
    for start, end in zip(np.moveaxis(corners, 1, 0), np.moveaxis(np.roll(corners, -1, axis=1), 1, 0), strict=True):
        (ax, ay), (bx, by) = start.T[..., None, None], end.T[..., None, None]
        ex, ey = bx - ax, by - ay
        wx, wy = px - ax, py - ay
        along = np.clip((wx * ex + wy * ey) / np.maximum(ex * ex + ey * ey, 1e-12), 0, 1)
        nearest = np.minimum(nearest, (wx - along * ex) ** 2 + (wy - along * ey) ** 2)
        inside ^= ((ay > py) != (by > py)) & (wx * ey * np.sign(ey) < wy * ex * np.sign(ey))
    return np.where(inside, -1, 1) * np.sqrt(nearest)


def coverage(corners: np.ndarray, *, size: int = SIZE) -> np.ndarray:
    """Share of each pixel that the outlines ``(t, n, 2)`` cover, float32 ``(t, size, size)`` in [0, 1]."""
    return np.clip(0.5 - _signed_distance(np.asarray(corners, dtype=np.float32), size), 0, 1)


def is_held_out(combination: Combination) -> bool:
    """Whether the pocket model never saw this combination: one in ten, spread so that every pair of words was seen."""
    shape, colour = SHAPES.index(combination.shape), list(COLOURS).index(combination.colour)
    return (3 * shape + 7 * colour + MOTIONS.index(combination.motion)) % 10 == 0


def known_combinations(*, held_out: bool) -> list[Combination]:
    """All combinations of the trained shapes that are held out from training, or all others."""
    every = (Combination(s, c, m) for s in SHAPES for c in COLOURS for m in MOTIONS)
    return [combination for combination in every if is_held_out(combination) == held_out]


def sample_scene(rng: Generator, combination: Combination, *, background: str | None = None) -> Scene:
    """A clip of ``combination`` near the middle, at a random size, wholly inside the frame all the time."""
    start_radius = end_radius = float(rng.uniform(*_RADIUS))
    if combination.motion in ("grows", "shrinks"):
        start_radius, end_radius = float(rng.uniform(*_SMALL_RADIUS)), float(rng.uniform(*_LARGE_RADIUS))
        if combination.motion == "shrinks":
            start_radius, end_radius = end_radius, start_radius
    step = np.array(DIRECTIONS.get(combination.motion, (0, 0))) * rng.uniform(*_TRAVEL)
    reach = np.abs(outline(combination.shape)).max() * max(start_radius, end_radius) + _MARGIN
    low, high = reach + np.maximum(-step, 0), SIZE - reach - np.maximum(step, 0)
    start = np.clip(SIZE / 2 - step / 2 + rng.uniform(-_JITTER, _JITTER, 2), low, high)
    return Scene(
        shape=combination.shape,
        colour=combination.colour,
        background=background or str(rng.choice(list(BACKGROUNDS))),
        motion=combination.motion,
        start=(float(start[0]), float(start[1])),
        end=(float(start[0] + step[0]), float(start[1] + step[1])),
        start_radius=start_radius,
        end_radius=end_radius,
    )


def draw(scene: Scene, *, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """The clip of ``scene``, uint8 ``(num_frames, 64, 64, 3)``; place and radius go evenly from start to end."""
    time = np.linspace(0, 1, num_frames)[:, None, None]
    radius = scene.start_radius + time * (scene.end_radius - scene.start_radius)
    centre = np.array(scene.start) + time * (np.array(scene.end) - np.array(scene.start))
    alpha = coverage(centre + radius * outline(scene.shape))[..., None]
    paint, ground = np.array(COLOURS[scene.colour]), np.array(BACKGROUNDS[scene.background])
    return np.rint(ground + alpha * (paint - ground)).astype(np.uint8)


def draw_doodle(rng: Generator, *, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """A clip outside the sentences, for the VAE alone: random polygons in random colours that slide, turn and scale.

    Corners lie at random radii, so that corners and notches of all kinds occur and no regular star does.
    """
    time = np.linspace(0, 1, num_frames)[:, None, None]
    ramp = np.linspace(0, 1, SIZE)[:, None, None] if rng.random() < 0.5 else np.linspace(0, 1, SIZE)[None, :, None]
    first, second = rng.uniform(0, 255, (2, 3))
    frames = np.broadcast_to(first + ramp * rng.uniform(0, 0.5) * (second - first), (num_frames, SIZE, SIZE, 3))
    for _ in range(rng.integers(1, 4)):
        count = int(rng.integers(3, 13))
        angles = np.sort(rng.uniform(0, 2 * np.pi) + 2 * np.pi * (np.arange(count) + rng.uniform(-0.3, 0.3, count)) / count)
        turned = angles + time[..., 0] * rng.normal(0, 0.5)
        radii = rng.uniform(0.4, 1, count) * rng.uniform(6, 20)
        corners = radii[:, None] * np.stack([np.cos(turned), np.sin(turned)], axis=-1)
        scale = 1 + time * rng.uniform(-0.5, 0.5)
        centre = rng.uniform(8, SIZE - 8, 2) + time * rng.normal(0, 10, 2)
        alpha = coverage(centre + scale * corners)[..., None]
        frames = frames + alpha * (rng.uniform(0, 255, 3) - frames)
    return np.rint(frames).astype(np.uint8)
