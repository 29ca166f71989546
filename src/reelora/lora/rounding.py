"""How fused weights are rounded."""

import zlib
from collections.abc import Callable

import torch

from reelora.errors import ConfigError, nearest

__all__ = ["ROUNDINGS", "Noise", "check_rounding", "noise_of"]

ROUNDINGS = ("nearest", "stochastic")
"""To the nearest number, or up or down by chance with the odds that keep the mean (arXiv:1502.02551)."""
Noise = Callable[[str], torch.Generator | None]
"""What decides the rounding of one tensor, by its name; None to round to the nearest."""


def check_rounding(rounding: str) -> None:
    """Raise ConfigError unless it is one of `ROUNDINGS`."""
    if rounding not in ROUNDINGS:
        raise ConfigError(f"There is no rounding {rounding!r}: {nearest(rounding, ROUNDINGS)}")


def noise_of(rounding: str, seed: int) -> Noise:
    """The noise for tensors by name (``transformer.proj_out.weight``), the same whenever and wherever one is fused."""
    if rounding == "nearest":
        return lambda name: None
    return lambda name: torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
