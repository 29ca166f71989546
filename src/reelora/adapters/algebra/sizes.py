"""How large a result may be: a rank, a share of the energy, or bytes for all modules together."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor

from reelora.errors import ConfigError

from .core import tails_of

__all__ = ["Size", "check_size_bytes", "exactly_one", "is_number", "share_bytes"]

ROUNDING = 1e-14
"""Share of the energy that float64 cannot tell from nothing: what lies on a bound must not fall beside it."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """At most this ``rank``, or the smallest rank that keeps this share of the energy; exactly one of them.

    Raises ConfigError for anything else.
    """

    rank: int | None = None
    keep: float | None = None
    """Share of the sum of the squared singular values, in (0, 1]."""

    def __post_init__(self) -> None:
        exactly_one(rank=self.rank, keep=self.keep)
        if self.rank is not None and not _is_count(self.rank):
            raise ConfigError(f"rank is {self.rank!r}: it has to be a whole number from 1 on.")
        if self.keep is not None and not (is_number(self.keep) and 0 < self.keep <= 1):
            raise ConfigError(f"keep is {self.keep!r}: it is a share of the energy, over 0 and at most 1 (often 0.99).")

    def rank_for(self, tails: Tensor, *, rounding: float = ROUNDING) -> int | None:
        """The rank to take, by what each rank from 0 on would lose; None if no listed rank keeps enough. At least 1."""
        if self.keep is None:
            return min(self.rank or 1, len(tails) - 1)
        enough = (tails <= self.allowed(tails, rounding=rounding)).nonzero()
        return max(1, int(enough[0])) if len(enough) else None

    def allowed(self, tails: Tensor, *, rounding: float = ROUNDING) -> float:
        """The energy that may be lost."""
        return (1 - (self.keep or 0) + rounding) * float(tails[0])


def exactly_one(**wishes: object) -> None:
    """Raise ConfigError unless exactly one of these is given."""
    given = [f"{name}={value}" for name, value in wishes.items() if value is not None]
    if len(given) != 1:
        raise ConfigError(
            f"Give exactly one of {', '.join(f'{name}=' for name in wishes)}: {' and '.join(given) or 'none'} is given."
        )


def check_size_bytes(size_bytes: int, costs: Mapping[str, int]) -> None:
    """Raise ConfigError for a budget that is no number of bytes, or under what rank 1 everywhere takes."""
    if not _is_count(size_bytes):
        raise ConfigError(f"size_bytes is {size_bytes!r}: it has to be a whole number of bytes, at least 1.")
    smallest = sum(costs.values())
    if size_bytes < smallest:
        raise ConfigError(
            f"{size_bytes:,} bytes are too few: the smallest possible is {smallest:,}, rank 1 in each of {len(costs)} modules."
        )


def share_bytes(values: Mapping[str, Tensor], costs: Mapping[str, int], size_bytes: int) -> dict[str, int]:
    """The rank of every module that keeps the most energy in all within a budget; at least 1 each.

    ``values`` are the singular values of every module, ``costs`` the bytes of one rank there: ranks are bought by energy per
    byte, which is the optimum where all costs are equal, and elsewhere short of it by less than the energy of one rank. What
    holds no energy is never bought.
    """
    ranks = dict.fromkeys(values, 1)
    left = size_bytes - sum(costs.values())
    for name in _by_worth(values, costs):
        if costs[name] <= left:
            ranks[name] += 1
            left -= costs[name]
    return ranks


def _by_worth(values: Mapping[str, Tensor], costs: Mapping[str, int]) -> Iterator[str]:
    """The module of every singular value beyond the first that holds energy, by energy per byte, descending."""
    names = list(values)
    worths = [_energies(values[name]) / costs[name] for name in names]
    owners = torch.cat([torch.full((len(worth),), number) for number, worth in enumerate(worths)])
    order = torch.sort(torch.cat(worths), descending=True, stable=True).indices
    return (names[owner] for owner in owners[order].tolist())


def _energies(values: Tensor) -> Tensor:
    tails = tails_of(values)
    held = int((tails[:-1] > ROUNDING * tails[0]).sum())
    return values[1:held].square()


def is_number(value: object) -> TypeGuard[float]:
    """Whether this is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
