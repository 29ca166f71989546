"""Which noise level a visit is trained at."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .config import Distribution, TimestepConfig
from .draws import generator_for

__all__ = ["draw_timestep", "seen_shares"]

_STRATA = 16
_PLOT_DRAWS = 20_000

QUANTILES: Mapping[Distribution, Callable[[Tensor, TimestepConfig], Tensor]] = {
    "uniform": lambda share, config: share,
    "logit_normal": lambda share, config: torch.sigmoid(config.mean + config.std * torch.special.ndtri(share)),
}
"""The place in the schedule (0 clean, 1 noise) below which ``share`` of the draws lie. Source of logit-normal:
arXiv:2403.03206, section 3.1."""


def draw_timestep(
    config: TimestepConfig, *, num_timesteps: int, seed: int, visit: int, generator: torch.Generator
) -> Int[Tensor, ""]:
    """The timestep of a run's ``visit``-th clip; ``generator`` is that visit's own."""
    share = (torch.randint(num_timesteps, (), generator=generator, dtype=torch.float64) + 0.5) / num_timesteps
    if config.stratified:
        share = (_stratum(seed, visit) + share) / _STRATA
    place = QUANTILES[config.distribution](share, config)
    return (place * num_timesteps).long().clamp(max=num_timesteps - 1)


def seen_shares(config: TimestepConfig, *, num_timesteps: int, num_bins: int = 50) -> Float[Tensor, " n"]:
    """How often each of ``num_bins`` equal parts of the schedule is seen, relative to uniform: 1 everywhere if it is."""
    share = (torch.arange(_PLOT_DRAWS, dtype=torch.float64) + 0.5) / _PLOT_DRAWS
    places = (QUANTILES[config.distribution](share, config) * num_timesteps).long().clamp(max=num_timesteps - 1)
    return torch.bincount(places * num_bins // num_timesteps, minlength=num_bins) * num_bins / _PLOT_DRAWS


def _stratum(seed: int, visit: int) -> int:
    """Each of 16 shares once in every block of 16 visits, in an order of the block's own."""
    block, place = divmod(visit, _STRATA)
    return int(torch.randperm(_STRATA, generator=generator_for(seed, "strata", block))[place])
