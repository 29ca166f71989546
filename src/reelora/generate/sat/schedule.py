"""SAT's noise schedule: which timesteps are visited, and how much of the clip the latents hold there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from reelora.errors import ConfigError

__all__ = ["SatSchedule", "sat_schedule"]

_TRAINED_ON: Mapping[str, Any] = {
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}
"""Of a scheduler's config: what all of CogVideoX was trained with, and SAT has no word for."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SatSchedule:
    """The steps of one sampling. A signal is a sqrt(alphas_cumprod): 0 in pure noise, 1 in the clip."""

    timesteps: tuple[int, ...]
    """What the network is told."""
    signals: Float[Tensor, " n+1"]
    """What the sampler takes before each step and after the last."""
    network_signals: Float[Tensor, " n"]
    """What the network's output is read with: the nearest that it was trained on."""


def sat_schedule(noise: Mapping[str, Any], *, steps: int) -> SatSchedule:
    """SAT's schedule of so many steps over the noise that a scheduler's config describes.

    SAT chooses the timesteps first and moves the signal of the last one to zero then, where diffusers moves the whole table:
    its signals between are up to 0.012 from those that the model was trained on (5 steps; 0.001 with 50). The network's output
    is read with the nearest signal of the whole table nevertheless.

    Raises ConfigError for noise of another kind than CogVideoX's. Source: CogVideo at 7a1af71,
    sat/sgm/modules/diffusionmodules/discretizer.py (ZeroSNRDDPMDiscretization) and denoiser.py (DiscreteDenoiser).
    """
    _check(noise)
    table = _alphas_cumprod(noise)
    timesteps = np.linspace(len(table) - 1, 0, steps, endpoint=False).astype(int)
    signals = _zero_snr(table[timesteps[::-1]]).flip(0)
    trained = _zero_snr(table)
    nearest = (signals - trained[:, None]).abs().argmin(dim=0)
    return SatSchedule(
        timesteps=tuple(map(int, timesteps)),
        signals=torch.cat([signals, signals.new_ones(1)]),
        network_signals=trained[nearest],
    )


def _check(noise: Mapping[str, Any]) -> None:
    odd = [f"{name} is {noise.get(name)!r}, not {value!r}" for name, value in _TRAINED_ON.items() if noise.get(name) != value]
    if odd:
        raise ConfigError(f"SAT has no sampling for this model's scheduler: {'; '.join(odd)}. Use sampling='diffusers'.")


def _alphas_cumprod(noise: Mapping[str, Any]) -> Float64[np.ndarray, " n"]:
    """Before the rescale: ``shifted = a / (s + (1 - s) a)``."""
    ends = (noise["beta_start"] ** 0.5, noise["beta_end"] ** 0.5)
    betas = (torch.linspace(*ends, noise["num_train_timesteps"], dtype=torch.float64) ** 2).numpy()
    table, shift = np.cumprod(1.0 - betas), noise.get("snr_shift_scale", 1.0)
    return table / (shift + (1 - shift) * table)


def _zero_snr(alphas_cumprod: Float64[np.ndarray, " n"]) -> Float[Tensor, " n"]:
    """Signals in float32, as SAT computes them, stretched so that the last is zero and the first stays."""
    signals = torch.tensor(alphas_cumprod, dtype=torch.float32).sqrt()
    first, last = signals[0].clone(), signals[-1].clone()
    return (signals - last) * (first / (first - last))
