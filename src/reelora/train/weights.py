"""How much a clip's error counts at its noise level: one row per weighting."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from .config import TimestepConfig, Weighting
from .diffusion import Diffusion, Prediction, Timesteps

__all__ = ["WEIGHTS", "loss_weights"]

PerClip = Float[Tensor, " b"]
Weights = Mapping[Weighting, Callable[[PerClip, float], PerClip]]

WEIGHTS: Weights = {
    "flat": lambda snr, gamma: torch.ones_like(snr),
    "min_snr": lambda snr, gamma: snr.clamp(max=gamma) / (snr + 1),
}
"""Factors on the squared error of the velocity, from the signal-to-noise ratio ``a / (1 - a)`` and gamma.

Source of min_snr: arXiv:2303.09556; its weight on the clip, ``min(snr, gamma)``, is ``snr + 1`` times that on the velocity.
"""

_NOISE_WEIGHTS: Weights = {
    "flat": lambda snr, gamma: torch.ones_like(snr),
    "min_snr": lambda snr, gamma: snr.clamp(max=gamma) / snr,
}
"""The same on the squared error of the noise, of which the weight on the clip is ``snr`` times as large."""

_OF_PREDICTION: Mapping[Prediction, Weights] = {"v_prediction": WEIGHTS, "epsilon": _NOISE_WEIGHTS}


def loss_weights(diffusion: Diffusion, timesteps: Timesteps, config: TimestepConfig) -> PerClip:
    """How much the error of what the denoiser predicts counts at every timestep."""
    snr = diffusion.signal_to_noise(timesteps)
    return _OF_PREDICTION[diffusion.prediction][config.weighting](snr, config.snr_gamma)
