"""The forward process of a model, and what its denoiser is asked to predict."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from jaxtyping import Float, Int
from torch import Tensor

from reelora.errors import ConfigError, nearest
from reelora.shapes import Latents

__all__ = ["Diffusion", "Prediction", "Timesteps", "per_clip_error"]

Timesteps = Int[Tensor, " b"]

Prediction = Literal["v_prediction", "epsilon"]
"""What a denoiser gives: the velocity, as all of CogVideoX, or the noise, as Stable Diffusion 1.5 and XL."""


@dataclass(frozen=True)
class Diffusion:
    """``x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise`` with the cumulative products ``a``, kept in float32.

    In bfloat16 the table would be wrong by more than 5 % at some steps. Source: DDPM, arXiv:2006.11239, section 2.
    """

    alphas: Float[Tensor, " n"]
    prediction: Prediction = "v_prediction"

    @classmethod
    def of(cls, scheduler: Any) -> Self:
        """The forward process of a diffusers scheduler, shift, zero terminal signal and kind of prediction included.

        Raises ConfigError for a kind that is not learned here, and where the noise is asked for at a step without signal.
        """
        prediction, alphas = scheduler.config.prediction_type, scheduler.alphas_cumprod.float()
        if prediction not in TARGETS:
            raise ConfigError(
                f"The scheduler's prediction_type {prediction!r} cannot be trained, {nearest(prediction, TARGETS)}."
            )
        if prediction == "epsilon" and not alphas[-1] > 0:
            raise ConfigError(
                "The scheduler asks for the noise (prediction_type epsilon) of latents that are nothing but noise at its last "
                "step (rescale_betas_zero_snr): no clip follows from it. Set one of them otherwise in scheduler_config.json."
            )
        return cls(alphas, prediction)

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

    def target(self, clean: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """What the denoiser should have said of ``noisy(clean, noise, timesteps)``."""
        return TARGETS[self.prediction](self, clean, noise, timesteps)

    def signal_to_noise(self, timesteps: Timesteps) -> Float[Tensor, " b"]:
        """``a / (1 - a)`` at every timestep; 0 where all is noise."""
        alpha = self.alphas.to(timesteps.device)[timesteps]
        return alpha / (1 - alpha)

    def _weights(self, timesteps: Timesteps) -> tuple[Tensor, Tensor]:
        alpha = self.alphas.to(timesteps.device)[timesteps].view(-1, 1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()


TARGETS: Mapping[str, Callable[[Diffusion, Latents, Latents, Timesteps], Latents]] = {
    "v_prediction": Diffusion.velocity,
    "epsilon": lambda diffusion, clean, noise, timesteps: noise,
}


def per_clip_error(predicted: Latents, wanted: Latents) -> Float[Tensor, " b"]:
    """Mean squared error of each clip, in float32."""
    return (predicted.float() - wanted.float()).square().flatten(1).mean(1)
