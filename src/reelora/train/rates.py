"""How the learning rate goes over a run: one row per schedule."""

from collections.abc import Callable, Mapping
from math import cos, pi
from typing import Literal

__all__ = ["SCHEDULES", "Schedule"]

Schedule = Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"]

SCHEDULES: Mapping[Schedule, Callable[[float, int, float], float]] = {
    "constant": lambda done, cycles, power: 1.0,
    "linear": lambda done, cycles, power: 1 - done,
    "cosine": lambda done, cycles, power: 0.5 * (1 + cos(pi * done)),
    "cosine_with_restarts": lambda done, cycles, power: 0.5 * (1 + cos(pi * (cycles * done % 1.0))),
    "polynomial": lambda done, cycles, power: (1 - done) ** power,
}
"""The rate as a share of the highest one, from the share of the run that is done after the warm-up, the number of cycles, and
the power. Source: the schedules of the same names in diffusers' ``optimization.py``."""
