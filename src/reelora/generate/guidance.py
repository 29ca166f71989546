"""How strongly guidance acts in each step."""

import math
from collections.abc import Callable, Mapping

from .config import GenerateConfig, GuidanceSchedule

__all__ = ["guidance_at"]


def guidance_at(config: GenerateConfig, *, index: int, timestep: int) -> float:
    """The factor of ``uncond + factor * (cond - uncond)`` in the step of this index (from 0), at this timestep (999 to 0)."""
    return _SCHEDULES[config.guidance_schedule](config, index, timestep)


def _constant(config: GenerateConfig, index: int, timestep: int) -> float:
    return config.guidance


def _dynamic(config: GenerateConfig, index: int, timestep: int) -> float:
    """As released: it takes the timestep (0 to 999) for the number of a step, so that the cosine's argument is huge and the
    factor goes up and down (6 in 5 steps: 6.8, 3.0, 2.5, 7.0, 1.8) instead of rising.

    Source: CogVideo at 7a1af71, sat/sgm/modules/diffusionmodules/guiders.py (DynamicCFG); the same in diffusers' pipelines
    with ``use_dynamic_cfg``.
    """
    return _raised(config, (config.steps - timestep) / config.steps)


def _by_index(config: GenerateConfig, index: int, timestep: int) -> float:
    """The same formula with the step in the place of the timestep: from 1 up to nearly 1 + guidance."""
    return _raised(config, index / config.steps)


def _raised(config: GenerateConfig, progress: float) -> float:
    return 1 + config.guidance * (1 - math.cos(math.pi * progress**config.guidance_exponent)) / 2


_SCHEDULES: Mapping[GuidanceSchedule, Callable[[GenerateConfig, int, int], float]] = {
    "constant": _constant,
    "dynamic": _dynamic,
    "index": _by_index,
}
