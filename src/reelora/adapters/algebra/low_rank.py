"""Dense updates into pairs: a randomised singular value decomposition that proves how good it is, or else the full one.

Blocked subspace iteration (Halko, Martinsson, Tropp, arXiv:0909.4061, algorithm 4.4) with spare directions. A fixed number of
passes is good for a steep spectrum and poor for a flat one. So each pass is measured, and passes are added until what is lost
is *proved* to be near the least possible.

The proof. Let the rows of V be the found directions, ``g_1 >= g_2 ...`` their energies (squared singular values), ``c_i`` the
norms of their residuals under ``G = W^T W``, and mu the largest energy outside the first k, read off the spare ones. By Courant
and Fischer the i-th eigenvalue of G is at most the largest of G without ``v_1 ... v_{i-1}``, and so at most that of the matrix
``[[g_i, r_i], [r_i, mu]]`` with ``r_i^2 = c_i^2 + ... + c_k^2`` (sharp for steep spectra); the first k together are at most
``sum max(g_i, mu + x) + r_1^2 / x`` for any x > 0 (sharp for flat ones). What the better of both exceeds ``g_1 + ... + g_k`` by
is all the energy that a perfect decomposition could keep beyond ours. Only mu is estimated: a larger direction outside would
have to be orthogonal to the random start, which has probability zero.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from reelora.adapters.pair import Pair, Update
from reelora.adapters.threads import one_thread
from reelora.errors import AdapterError

from .core import Reduced, tails_of
from .sizes import Size

__all__ = ["reduce_dense", "squared_norm"]

SMALL = 384
"""Up to this many rows or columns the full decomposition is cheap enough for float64."""
MAX_PASSES = 12
"""Then the full decomposition is the shorter way."""
GUESS = 64
"""Where the search for the rank of a share of the energy begins."""
EXCESS = 0.02
"""Energy that may be missed, as a share of the energy that has to be lost: an error within 1 % of the smallest possible one."""
UNSEEN = 1e-9
"""The same as a share of all energy: float32 cannot prove more (3e-5 of the update)."""
ROUNDING = 1e-10
"""Share of the energy under which the rest of a float32 matrix is rounding (1e-5 of the update)."""


class _Found(NamedTuple):
    """Directions of one pass: ``W right = left * values`` holds to rounding, whatever their quality."""

    left: Tensor
    values: Tensor
    right: Tensor
    tails: Tensor
    """The energy that each rank from 0 on loses, measured."""
    residuals: Tensor
    """``|G v - g v|`` of every direction."""


def reduce_dense(dense: Update, size: Size, draw: torch.Generator, *, dtype: torch.dtype) -> Reduced:
    """The pair of a dense float32 update, with scale 1; what it lost is measured on the finished pair.

    A ``rank`` comes with an error within 1 % of the smallest possible one (or within 3e-5 of the update), ``keep`` with the
    smallest rank that keeps enough, where rests under 1e-5 of the update are rounding. Takes two matrices beside ``dense``.
    Raises AdapterError for NaN or infinite values.
    """
    energy = squared_norm(dense)
    if not math.isfinite(energy):
        raise AdapterError("An update holds NaN or infinite values, or is too large for float32.")
    pair = _pair(*_searched(dense, size, draw), dtype) if energy else _dead_pair(dense, dtype)
    lost = squared_norm(torch.addmm(dense, pair.b.to(dense.dtype), pair.a.to(dense.dtype), alpha=-1))
    return Reduced(pair, lost, energy)


def squared_norm(matrix: Tensor) -> float:
    """The sum of the squares, summed in float64."""
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64).square())


def _pair(found: _Found, rank: int, dtype: torch.dtype) -> Pair:
    share = found.values[:rank].sqrt()
    a, b = (found.right[:, :rank] * share).mT, found.left[:, :rank] * share
    return Pair(a.to(dtype).contiguous(), b.to(dtype).contiguous(), 1.0)


def _dead_pair(dense: Update, dtype: torch.dtype) -> Pair:
    out, inp = dense.shape
    return Pair(dense.new_zeros(1, inp, dtype=dtype), dense.new_zeros(out, 1, dtype=dtype), 1.0)


def _searched(dense: Update, size: Size, draw: torch.Generator) -> tuple[_Found, int]:
    """Directions, and how many of them are proved to be the right ones to take."""
    right = _noise(dense, _width(size.rank or GUESS), draw)
    for _ in range(MAX_PASSES):
        if min(dense.shape) <= max(SMALL, 3 * right.shape[1]):
            break
        found, right = _pass(dense, right)
        rank = size.rank_for(found.tails, rounding=ROUNDING)
        if rank is None or _width(rank) > len(found.values):
            right = torch.cat([right, _noise(dense, right.shape[1], draw)], dim=1)
        elif _is_proved(found, rank, size):
            return found, rank
    found = _full(dense)
    rank = size.rank_for(found.tails, rounding=ROUNDING)
    assert rank is not None, "the full decomposition keeps everything"
    return found, rank


def _width(rank: int) -> int:
    """Directions to look for: the spare ones speed up the passes and bound what lies outside."""
    return rank + max(16, rank // 2)


def _noise(dense: Update, width: int, draw: torch.Generator) -> Tensor:
    """Random directions, already turned towards the large ones."""
    return dense.mT @ torch.randn(dense.shape[0], width, generator=draw, dtype=dense.dtype).to(dense.device)


def _pass(dense: Update, start: Tensor) -> tuple[_Found, Tensor]:
    """The best directions in the span of ``start``, and the start of the next pass."""
    with one_thread():
        right = torch.linalg.qr(start).Q
    image = dense @ right
    with one_thread():
        left, values, turn = torch.linalg.svd(image, full_matrices=False)
    right = right @ turn.mT
    back = dense.mT @ left
    rest = squared_norm(torch.addmm(dense, left * values, right.mT, alpha=-1))
    residuals = values.double() * torch.linalg.vector_norm(back - right * values, dim=0, dtype=torch.float64)
    return _Found(left, values, right, tails_of(values.double()) + rest, residuals), back


def _full(dense: Update) -> _Found:
    whole = dense.double() if min(dense.shape) <= SMALL else dense
    left, values, turn = torch.linalg.svd(whole, full_matrices=False)
    return _Found(left, values, turn.mT, tails_of(values.double()), torch.zeros_like(values, dtype=torch.float64))


def _is_proved(found: _Found, rank: int, size: Size) -> bool:
    """Whether no other directions could make this rank much better, or (for ``keep``) one rank less enough."""
    if size.keep is None:
        return _excess(found, rank) <= max(EXCESS * float(found.tails[rank]), UNSEEN * float(found.tails[0]))
    allowed = size.allowed(found.tails, rounding=ROUNDING)
    return rank == 1 or float(found.tails[rank - 1]) - _excess(found, rank - 1) > allowed


def _excess(found: _Found, rank: int) -> float:
    """What a perfect decomposition of this rank could keep beyond ours, at most: see the proof above."""
    energies = found.values.double().square()
    outside = (energies + found.residuals)[rank:].max()
    couplings = found.residuals[:rank].square()
    return min(
        _steep_bound(energies[:rank], outside, couplings),
        _flat_bound(energies[:rank], outside, couplings),
        float(found.tails[-1]),
    )


def _steep_bound(energies: Tensor, outside: Tensor, couplings: Tensor) -> float:
    """``sum_i (g_i + mu + sqrt((g_i - mu)^2 + 4 r_i^2)) / 2 - g_i``, without cancellation."""
    rests = couplings.flip(0).cumsum(0).flip(0)
    gaps = energies - outside
    roots = (gaps.square() + 4 * rests).sqrt()
    return float(torch.where(gaps > 0, 2 * rests / (roots + gaps), (roots - gaps) / 2).sum())


def _flat_bound(energies: Tensor, outside: Tensor, couplings: Tensor) -> float:
    """``sum_i max(g_i, mu + x) - g_i + r_1^2 / x`` for the best of some x."""
    steps = outside * torch.logspace(-6, 1, 64, dtype=torch.float64, device=energies.device)
    raised = (outside + steps[:, None] - energies).clamp_(min=0).sum(dim=1)
    return float((raised + couplings.sum() / steps).min())
