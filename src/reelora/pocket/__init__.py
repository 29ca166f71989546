"""The embedded default model, the little world it knows, and the scripts that made it."""

from pathlib import Path

from .clips import (
    BACKGROUNDS,
    COLOURS,
    FPS,
    MOTIONS,
    NUM_FRAMES,
    SHAPES,
    SIZE,
    Combination,
    Scene,
    draw,
    known_combinations,
    sample_scene,
)
from .judge import Verdict, judge

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "FPS",
    "MODEL",
    "MOTIONS",
    "NUM_FRAMES",
    "SHAPES",
    "SIZE",
    "Combination",
    "Scene",
    "Verdict",
    "draw",
    "judge",
    "known_combinations",
    "sample_scene",
]

MODEL = Path(__file__).parent / "model"
"""The folder of the model, in diffusers' layout."""
