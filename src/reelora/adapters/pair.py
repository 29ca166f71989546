"""The factors of one module's update."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from reelora.errors import AdapterError

__all__ = ["FactorA", "FactorB", "Magnitude", "Pair", "Product", "Update", "pair_problem", "widened"]

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


@dataclass(frozen=True, eq=False, kw_only=True)
class Product:
    """A factor that no file stores as it is: it is worked out from what is stored each time it is asked for, and never kept.

    So an adapter of LoKr takes no more memory than its file, and whoever goes through it one module at a time no more than one
    product.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    """Of what is stored."""
    kind: str
    """How it is stored: LoHa, LoKr ..."""
    make: Callable[[], Tensor]


class Factor:
    """A or B as a field of a pair: what is put in may be a `Product` or of eight bits, what comes out can be computed with."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, pair: object, owner: type | None = None) -> Tensor:
        if pair is None:
            raise AttributeError(self._name)  # tells dataclass that the field has no default
        held = vars(pair)[self._name]
        return held.make() if isinstance(held, Product) else widened(held)

    def __set__(self, pair: object, factor: Tensor | Product) -> None:
        vars(pair)[self._name] = factor


@dataclass(frozen=True, eq=False, repr=False)
class Pair:
    """The factors of one module's update ``scale * B @ A``: A ``(rank, in)``, B ``(out, rank)``.

    The update of a convolution is that of its weight as a matrix ``(out, in * kernel)``. Raises AdapterError when the shapes do
    not fit together, A or B holds no real numbers, or the scale is no finite number.
    """

    a: Factor = Factor()
    b: Factor = Factor()
    scale: float | None = None
    """None while nobody knows it."""
    kernel: tuple[int, ...] = ()
    """Kernel of a convolution; empty for a Linear."""
    magnitude: Magnitude | None = None
    """None for all but a DoRA."""

    def __post_init__(self) -> None:
        a, b = self._held
        if problem := pair_problem(a.shape, b.shape):
            raise AdapterError(problem)
        if not (a.dtype.is_floating_point and b.dtype.is_floating_point):
            raise AdapterError(f"A is of {a.dtype} and B of {b.dtype}: both have to hold floating point numbers.")
        if self.scale is not None and not math.isfinite(self.scale):
            raise AdapterError(f"The scale of a pair is {self.scale}: it has to be a finite number, or None if unknown.")
        if self.kernel and self.shape[1] % math.prod(self.kernel):
            raise AdapterError(f"A has {self.shape[1]} columns, which is no multiple of the kernel {self.kernel}.")
        if self.magnitude and len(self.magnitude.values) != self.shape[self.magnitude.axis == "in"]:
            raise AdapterError(f"A {self.magnitude} has {len(self.magnitude.values)} norms for an update of {self.shape}.")

    @property
    def rank(self) -> int:
        return self._held[0].shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the module; ``in`` times its kernel for a convolution."""
        a, b = self._held
        return b.shape[0], a.shape[1]

    @property
    def num_parameters(self) -> int:
        return self.rank * sum(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of A and B in the dtype that is stored."""
        return sum(math.prod(factor.shape) * factor.dtype.itemsize for factor in self._held)

    @property
    def kind(self) -> str:
        """How it is stored: LoRA, LoHa, LoKr, or as one of the DoRAs."""
        a, _ = self._held
        return repr(self.magnitude) if self.magnitude else a.kind if isinstance(a, Product) else "LoRA"

    @property
    def dtype(self) -> torch.dtype:
        """Of what is stored; A and B are wider where they are products, or stored in eight bits."""
        return self._held[0].dtype

    @property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite (reads all of them)."""
        norms = [self.magnitude.values] if self.magnitude else []
        return _is_finite(self.a) and _is_finite(self.b) and all(map(_is_finite, norms))

    @property
    def _held(self) -> tuple[Tensor | Product, Tensor | Product]:
        return vars(self)["_a"], vars(self)["_b"]

    def __repr__(self) -> str:
        kind = "".join([f", kernel {self.kernel}" if self.kernel else "", f", {self.magnitude}" if self.magnitude else ""])
        return f"Pair({self.shape[0]} x {self.shape[1]}, rank {self.rank}, scale {self.scale}, {self.dtype}{kind})"


def pair_problem(a: Sequence[int], b: Sequence[int]) -> str:
    """What is wrong with the shapes of A and B; empty if nothing."""
    if len(a) == len(b) == 2 and a[0] == b[1] and 0 not in (*a, *b):
        return ""
    what = "both have to be matrices without an empty side, A (rank, in) and B (out, rank) of the same rank"
    return f"A is {tuple(a)} and B {tuple(b)}: {what}"


def widened(values: Tensor) -> Tensor:
    """The same values in a dtype that can be computed with: bfloat16 holds whatever eight bits can."""
    return values.to(torch.bfloat16) if values.dtype.itemsize == 1 else values


def _is_finite(values: Tensor) -> bool:
    """A finite sum has finite terms, and is found ten times faster; a sum of finite terms may still overflow."""
    return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())
