"""From noise to latents, step by step, as SAT does it."""

from collections.abc import Sequence

import torch

from reelora.generate.config import GenerateConfig
from reelora.generate.guidance import guidance_at
from reelora.generate.steps import StepWatch
from reelora.shapes import Latents

from .network import SatNetwork
from .schedule import SatSchedule
from .solvers import SOLVERS, Draw, Step

__all__ = ["denoise", "drawn_noise"]


def denoise(network: SatNetwork, schedule: SatSchedule, draw: Draw, config: GenerateConfig, watch: StepWatch) -> Latents:
    """All steps in float32, whatever the network computes in; the first noise that is drawn is what it begins with."""
    x, last_clean = draw(), None
    for index, timestep in enumerate(schedule.timesteps):
        signal, guidance = schedule.network_signals[index], guidance_at(config, index=index, timestep=timestep)
        clean = network.foresee(x, timestep=timestep, signal=signal, guidance=guidance)
        x = SOLVERS[config.scheduler](Step(schedule=schedule, index=index), x, clean, last_clean, draw)
        last_clean = clean
        watch.after_step()
    return x


def drawn_noise(generators: Sequence[torch.Generator], shape: tuple[int, int, int, int], device: torch.device) -> Draw:
    """Noise ``(b, f, c, h, w)`` of one batch, drawn on the CPU by a generator per video: device and company do not matter."""
    return lambda: torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
