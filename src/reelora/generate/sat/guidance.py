"""How strongly SAT's guidance acts in each step."""

import math
from collections.abc import Callable, Mapping

from reelora.generate.config import GenerateConfig, GuidanceSchedule

__all__ = ["guidance_at"]


def guidance_at(config: GenerateConfig, timestep: int) -> float:
    """The factor of ``uncond + factor * (cond - uncond)``, which SAT applies to the clip that is foreseen."""
    return _SCHEDULES[config.guidance_schedule](config, timestep)


def _constant(config: GenerateConfig, timestep: int) -> float:
    return config.guidance


def _dynamic(config: GenerateConfig, timestep: int) -> float:
    """SAT's formula, in its order: it takes the timestep (0 to 999) for the number of a step, so that the cosine's argument is
    huge and the factor goes up and down (6 steps of 5: 6.8, 3.0, 2.5, 7.0, 1.8) instead of rising."""
    progress = (config.steps - timestep) / config.steps
    return 1 + config.guidance * (1 - math.cos(math.pi * progress**config.guidance_exponent)) / 2


_SCHEDULES: Mapping[GuidanceSchedule, Callable[[GenerateConfig, int], float]] = {"constant": _constant, "dynamic": _dynamic}
