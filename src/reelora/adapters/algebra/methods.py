"""The ways of merging that act on dense updates: a table, and what its rows are made of."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from types import MappingProxyType
from typing import NamedTuple

import torch

from reelora.adapters.pair import Update

__all__ = ["METHODS", "Method", "draw_for"]

Thin = Callable[[Update, float, torch.Generator], Update]
"""Leaves this share of the entries of an update, and zeros; may write into the update."""
Join = Callable[[Iterator[Update]], Update]
"""One update of several, each already multiplied by its strength and made only when it is asked for."""


class Method(NamedTuple):
    """One way of merging: each update is thinned, multiplied by its strength, and all are joined."""

    thin: Thin | None
    join: Join | None
    """None: nothing is made dense, the factors themselves are put side by side."""
    meaning: str


def draw_for(seed: int, *what: object) -> torch.Generator:
    """Random numbers that depend on the seed and on what they are for, never on what was drawn before."""
    digest = hashlib.sha256(repr((seed, *what)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def largest(update: Update, density: float, _draw: torch.Generator) -> Update:
    """TIES, algorithm 1: the entries of largest magnitude stay, per module; of equal ones at the threshold, all do."""
    kept = max(1, round(density * update.numel()))
    # numpy finds the threshold in place; kthvalue would take three times the memory of the update.
    magnitudes = update.abs().view(-1).cpu().numpy()
    magnitudes.partition(len(magnitudes) - kept)
    threshold = float(magnitudes[len(magnitudes) - kept])
    return update.masked_fill_(update.abs() < threshold, 0.0)


def random(update: Update, density: float, draw: torch.Generator) -> Update:
    """DARE, section 3.2: each entry stays with probability ``density`` and is divided by it, so that the mean is the update."""
    dropped = torch.rand(update.shape, generator=draw).to(update.device) >= density
    return update.masked_fill_(dropped, 0.0).div_(density)


def total(updates: Iterator[Update]) -> Update:
    """The sum."""
    joined = next(updates)
    for update in updates:
        joined += update
    return joined


def elected_mean(updates: Iterator[Update]) -> Update:
    """TIES, algorithm 1: the sign with the larger sum is elected per entry; the mean of the entries that have it.

    Where both signs weigh the same none is elected, and the entry is 0. Sums and counts of both signs are all that is held,
    however many updates there are.
    """
    first = next(updates)
    sums = {sign: torch.zeros_like(first) for sign in (1, -1)}
    counts = {sign: torch.zeros_like(first, dtype=torch.int16) for sign in (1, -1)}
    for update in chain([first], updates):
        for sign in (1, -1):
            sums[sign] += update.mul(sign).clamp_(min=0)
            counts[sign] += update.mul(sign) > 0
    elected = (sums[1] - sums[-1]).sign_()
    means = {sign: sums[sign].div_(counts[sign].clamp_(min=1)) for sign in (1, -1)}
    return means[1].mul_(elected > 0).sub_(means[-1].mul_(elected < 0))


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "sum": Method(None, None, "sum of strength x update, exact (task arithmetic, arXiv:2212.04089, section 2)"),
        "ties": Method(
            largest, elected_mean, "TIES, arXiv:2306.01708, algorithm 1: trim, elect sign, mean of those that agree"
        ),
        "dare": Method(random, total, "DARE, arXiv:2311.03099, section 3.2: drop at random, rescale, sum"),
        "dare_ties": Method(random, elected_mean, "DARE in place of trimming, then TIES' election and mean"),
        "magnitude_prune": Method(largest, total, "TIES' trimming, then the sum"),
    }
)
"""Every method by name."""
