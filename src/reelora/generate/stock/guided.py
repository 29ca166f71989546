"""Guidance in whatever schedule a config names, for any stock pipeline."""

from typing import Any

from reelora.generate.config import GenerateConfig
from reelora.generate.guidance import guidance_at

__all__ = ["Guided"]


class Guided:
    """Guidance that may differ from step to step, in whatever schedule a config names."""

    scheduler: Any
    config_of_job: GenerateConfig
    next_step: int = 0
    """Told by whoever follows the steps."""

    @property
    def guidance_scale(self) -> float:
        """The factor of the step that is next."""
        timestep = int(self.scheduler.timesteps[self.next_step])
        return guidance_at(self.config_of_job, index=self.next_step, timestep=timestep)
