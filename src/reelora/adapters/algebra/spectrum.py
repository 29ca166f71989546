"""What the singular values of a pair say about it."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from reelora.adapters.pair import Pair
from reelora.errors import AdapterError

from .core import singular_values, tails_of
from .sizes import Size

__all__ = ["Spectrum", "spectrum"]

ENERGY = 0.99


@dataclass(frozen=True, eq=False, kw_only=True)
class Spectrum:
    """Facts of one update; its direction and its scale are two things, and only the scale may be unknown."""

    shares: Float64[Tensor, " k"]
    """The share of the energy (squared singular values) in each direction, descending; all 0 for an update of zero."""
    norm: float | None
    """The Frobenius norm of the update at strength 1; None while the scale is unknown."""
    effective_rank: int
    """The smallest rank that holds 99 % of the energy: what ``resize(keep=0.99)`` would leave. 0 for an update of zero."""

    @property
    def is_dead(self) -> bool:
        """Whether the update is exactly zero: A, B or the scale is."""
        return self.effective_rank == 0


def spectrum(pair: Pair) -> Spectrum:
    """The `Spectrum` of ``scale * B @ A``, also if the scale is unknown; AdapterError for NaN or infinite values."""
    if not pair.is_finite:
        raise AdapterError(f"{pair} holds NaN or infinite values: it has no spectrum.")
    scale = 1.0 if pair.scale is None else pair.scale
    values = singular_values(replace(pair, scale=scale))
    tails = tails_of(values)
    energy = float(tails[0])
    return Spectrum(
        shares=values.square() / energy if energy else torch.zeros_like(values),
        norm=None if pair.scale is None else energy**0.5,
        effective_rank=(Size(keep=ENERGY).rank_for(tails) or 0) if energy else 0,
    )
