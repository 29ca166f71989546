"""The exact primitive: what a pair does, known through a matrix of its rank's size.

An update ``W = scale B A`` has no more singular values than its rank. With ``B = Q R`` and ``A^T = P T`` (QR), it is
``Q (scale R T^T) P^T``, so the singular values of W are those of the small core ``scale R T^T``. Q and P are never built:
``U S = B (scale T^T V')`` and ``S V^T = (scale U'^T R) A``, with U' and V' from the core. All of it in float64, where it costs
milliseconds; the dense update is never made.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from reelora.adapters.pair import Pair
from reelora.adapters.threads import one_thread
from reelora.errors import UnknownScaleError

__all__ = ["Core", "Reduced", "core", "grams", "inner", "known_scale", "singular_values", "tails_of"]


class Reduced(NamedTuple):
    """A pair of smaller rank, and what became of the energy (the sum of the squared singular values)."""

    pair: Pair
    lost: float
    energy: float
    """Of the update that was reduced."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Core:
    """The singular value decomposition ``U S V^T`` of the update of a pair: ``B @ left = U S`` and ``right @ A = S V^T``."""

    pair: Pair
    values: Float64[Tensor, " k"]
    """The singular values S of the update at strength 1, descending; ``k = min(rank, out, in)``."""
    left: Float64[Tensor, "r k"]
    right: Float64[Tensor, "k r"]

    @property
    def tails(self) -> Float64[Tensor, " n"]:
        """The energy that each rank from 0 to k would lose."""
        return tails_of(self.values)

    def reduced(self, rank: int, *, scale: float, dtypes: tuple[torch.dtype, torch.dtype]) -> Reduced:
        """The best pair of this rank (Eckart and Young), with ``scale`` and the dtypes of A and B.

        ``sqrt(S / scale)`` goes into each factor: equal sizes keep float16 far from its subnormals, and train on well.
        """
        values = self.values[:rank]
        share = torch.where(values > 0, (values * scale).rsqrt(), 0.0)
        a = (self.right[:rank] * share[:, None]) @ self.pair.a.double()
        b = self.pair.b.double() @ (self.left[:, :rank] * share)
        pair = replace(self.pair, a=a.to(dtypes[0]), b=b.to(dtypes[1]), scale=scale)
        return Reduced(pair, float(self.tails[min(rank, len(self.values))]), float(self.tails[0]))


@one_thread()
def core(pair: Pair) -> Core:
    """The `Core` of a pair; UnknownScaleError while nobody knows its scale. Its values have to be finite."""
    scale, tall, wide = known_scale(pair), _triangle(pair.b), _triangle(pair.a.mT)
    u, values, vt = torch.linalg.svd(scale * (tall @ wide.mT), full_matrices=False)
    return Core(pair=pair, values=values, left=scale * (wide.mT @ vt.mT), right=scale * (u.mT @ tall))


@one_thread()
def singular_values(pair: Pair) -> Float64[Tensor, " k"]:
    """The singular values of the update at strength 1, descending; UnknownScaleError while nobody knows its scale."""
    return torch.linalg.svdvals(known_scale(pair) * (_triangle(pair.b) @ _triangle(pair.a.mT).mT))


def tails_of(values: Float64[Tensor, " k"]) -> Float64[Tensor, " n"]:
    """What is left of the energy after the first 0, 1, ... k singular values: ``k + 1`` sums, the last of them 0."""
    squares = torch.cat([values.square(), values.new_zeros(1)])
    return squares.flip(0).cumsum(0).flip(0)


def grams(left: Pair, right: Pair) -> tuple[Float64[Tensor, "r s"], Float64[Tensor, "r s"]]:
    """``B1^T B2`` and ``A1 A2^T`` of two pairs of one module."""
    return left.b.double().mT @ right.b.double(), left.a.double() @ right.a.double().mT


def inner(left: Pair, right: Pair) -> float:
    """The Frobenius inner product of two updates: ``scale1 scale2 <B1^T B2, A1 A2^T>``."""
    tall, wide = grams(left, right)
    return known_scale(left) * known_scale(right) * float((tall * wide).sum())


def known_scale(pair: Pair) -> float:
    """The scale of a pair; UnknownScaleError while nobody knows it."""
    if pair.scale is None:
        raise UnknownScaleError(f"Nothing says how strong {pair} is: give its adapter an alpha= or a producer=.")
    return pair.scale


def _triangle(matrix: Tensor) -> Tensor:
    """R of its QR decomposition. Householder rather than Cholesky: still right when columns repeat, as in a sum."""
    return torch.linalg.qr(matrix.double(), mode="r").R
