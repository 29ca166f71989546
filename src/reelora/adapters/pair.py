"""The factors of one module's update."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from reelora.errors import AdapterError

__all__ = ["FactorA", "FactorB", "Magnitude", "Pair", "Update", "pair_problem"]

FactorA = Float[Tensor, "r i"]
FactorB = Float[Tensor, "o r"]
Update = Float[Tensor, "o i"]


@dataclass(frozen=True, eq=False)
class Magnitude:
    """What makes a pair a DoRA: the norms that rows or columns of the adapted weight ``W + scale * B @ A`` are set to.

    PEFT knows rows only (``out``); LyCORIS columns (``in``, its default) or rows. The update depends on ``W``, so there is no
    `Adapter.delta`. Source: DoRA, arXiv:2402.09353; PEFT tuners/lora/dora.py; LyCORIS modules/locon.py.
    """

    values: Float[Tensor, " n"]
    axis: Literal["out", "in"]
    made_by: Literal["PEFT", "LyCORIS"]

    def __repr__(self) -> str:
        return f"DoRA of {self.made_by} over {self.axis}"


@dataclass(frozen=True, eq=False, repr=False)
class Pair:
    """The factors of one module's update ``scale * B @ A``: A ``(rank, in)``, B ``(out, rank)``.

    The update of a convolution is that of its weight as a matrix ``(out, in * kernel)``. Raises AdapterError when the shapes do
    not fit together or the scale is no finite number.
    """

    a: FactorA
    b: FactorB
    scale: float | None
    """None while nobody knows it."""
    kernel: tuple[int, ...] = ()
    """Kernel of a convolution; empty for a Linear."""
    magnitude: Magnitude | None = None
    """None for all but a DoRA."""

    def __post_init__(self) -> None:
        if problem := pair_problem(tuple(self.a.shape), tuple(self.b.shape)):
            raise AdapterError(problem)
        if self.scale is not None and not math.isfinite(self.scale):
            raise AdapterError(f"The scale of a pair is {self.scale}: it has to be a finite number, or None if unknown.")
        if self.shape[1] % math.prod(self.kernel):
            raise AdapterError(f"A has {self.shape[1]} columns, which is no multiple of the kernel {self.kernel}.")
        if self.magnitude and len(self.magnitude.values) != self.shape[self.magnitude.axis == "in"]:
            raise AdapterError(f"A {self.magnitude} has {len(self.magnitude.values)} norms for an update of {self.shape}.")

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the module; ``in`` times its kernel for a convolution."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def num_parameters(self) -> int:
        return self.a.numel() + self.b.numel()

    @property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite (reads all of them)."""
        tensors = [self.a, self.b, *([self.magnitude.values] if self.magnitude else [])]
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)

    def __repr__(self) -> str:
        kind = "".join([f", kernel {self.kernel}" if self.kernel else "", f", {self.magnitude}" if self.magnitude else ""])
        return f"Pair({self.shape[0]} x {self.shape[1]}, rank {self.rank}, scale {self.scale}, {self.a.dtype}{kind})"


def pair_problem(a: tuple[int, ...], b: tuple[int, ...]) -> str:
    """What is wrong with the shapes of A and B; empty if nothing."""
    if len(a) != 2 or len(b) != 2:
        return f"A is {a} and B {b}: both have to be matrices, A (rank, in) and B (out, rank)"
    if a[0] != b[1] or not a[0]:
        return f"A is {a} and B {b}: the rank, first of A and second of B, has to be the same and at least 1"
    return ""
