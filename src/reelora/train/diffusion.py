"""The forward process of CogVideoX and what its transformer is asked to predict."""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reelora.shapes import Latents

__all__ = ["Diffusion", "Timesteps"]

Timesteps = Int[Tensor, " b"]


@dataclass(frozen=True)
class Diffusion:
    """``x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise`` with the cumulative products ``a``, kept in float32.

    In bfloat16 the table would be wrong by more than 5 % at some steps. Source: DDPM, arXiv:2006.11239, section 2.
    """

    alphas: Float[Tensor, " n"]

    @classmethod
    def of(cls, scheduler: object) -> Self:
        """The forward process of a diffusers scheduler, shift and zero terminal signal included."""
        return cls(scheduler.alphas_cumprod.float())  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas)

    def noisy(self, clean: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """``x_t`` of every clip at its own timestep."""
        signal, spread = self._weights(timesteps)
        return signal * clean + spread * noise

    def velocity(self, clean: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """``v = sqrt(a_t) noise - sqrt(1 - a_t) x_0``. Source: arXiv:2202.00512, appendix D."""
        signal, spread = self._weights(timesteps)
        return signal * noise - spread * clean

    def _weights(self, timesteps: Timesteps) -> tuple[Tensor, Tensor]:
        alpha = self.alphas.to(timesteps.device)[timesteps].view(-1, 1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()


def per_clip_error(predicted: Latents, wanted: Latents) -> Float[Tensor, " b"]:
    """Mean squared error of each clip, in float32."""
    return (predicted.float() - wanted.float()).square().flatten(1).mean(1)


def draw_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Gaussian noise drawn on the CPU, so that one seed means the same noise on every device."""
    return torch.randn(shape, generator=generator, dtype=torch.float32)
