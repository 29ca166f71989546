"""The arithmetic of fusing: ``W0 + sum_i gain_i B_i A_i`` from the pristine weight, summed in float32 and rounded once.

Two roads lead there. Where the processor multiplies bfloat16 itself, one product of the stacked factors onto the weight does it
all: such units sum in float32, scale by one gain and round at the end, several times faster than float32. Everything else is
summed in float32, a block of rows at a time, so that a block stays in the cache between its passes. A gain is never folded into
a bfloat16 factor unless it is a power of two, since that would round the factor.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reelora.adapters import FactorA, FactorB, Magnitude, Pair

__all__ = ["FUSABLE", "PairUses", "dense_update", "fuse_into", "fused_rows", "lost_share", "sample_rows"]

PairUses = Sequence[tuple[Pair, float]]
"""The pairs that act on one module, each with its strength."""
Weight = Float[Tensor, "o ..."]
Matrix = Float[Tensor, "o i"]
Rows = slice | Int[Tensor, " n"]

FUSABLE = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
"""Dtypes that a weight may have."""

_BLOCK = 1 << 18
"""Elements of a block of rows: a megabyte in float32."""
_TERMS = 64
"""Of a long sum that are added in one go: sums of sums lose half of what one running sum does."""
_LONGEST_SUM = 512
"""Terms that a product of bfloat16 may sum: the units add them one after the other, and the error grows with their number. Of
four adapters of rank 128 it misrounds 15 weights of a million, sums of sums in float32 13; of eight, 27 and 21."""
_SAMPLED_ROWS = 64
_GRIDS: Mapping[torch.dtype, tuple[int, int]] = {torch.bfloat16: (8, -100), torch.float16: (11, -24)}
"""Bits of the significand, and the exponent of the finest step: the smallest float16, and below any weight for bfloat16."""
_EXACT_SETTINGS = ("none", "ieee")
_KNOBS: Mapping[str, Callable[[float], tuple[float, float]]] = {
    "PEFT": lambda strength: (strength, 1.0),
    "LyCORIS": lambda strength: (1.0, strength),
}
"""Where a DoRA's strength acts: on the update inside the norm, or on the whole change. Source: peft tuners/lora/variants.py;
ComfyUI comfy/weight_adapter/base.py, ``weight_decompose``."""


@torch.no_grad()
def fuse_into(weight: Weight, uses: PairUses, out: Weight | None = None, *, noise: torch.Generator | None = None) -> Weight:
    """The weight with all updates added: float32 sums, one rounding; written into ``out`` if given, which may be ``weight``.

    A plain pair adds ``scale strength B A``. A DoRA adds ``W' - W`` with

    - PEFT: ``W' = m / |W + t s B A| (W + t s B A)``, norms over rows,
    - LyCORIS: ``W' = W + t (m / |W + s B A| (W + s B A) - W)``, norms over rows or columns,

    each from the pristine weight, so that the order of adapters does not matter. Strength 0 adds nothing. Factors may have any
    floating dtype. With ``noise`` float16 and bfloat16 are rounded up or down with the odds that make the mean exact, instead
    of to the nearest (stochastic rounding, arXiv:1502.02551); wider weights need none and are as without. ``out`` has to be
    contiguous, of the shape and dtype of ``weight``; the weight of a convolution is ``(o, i, kernel ...)``.
    """
    assert weight.dtype in FUSABLE, "the caller refuses other dtypes by name"
    out = torch.empty_like(weight, memory_format=torch.contiguous_format) if out is None else out
    assert (out.shape, out.dtype, out.is_contiguous()) == (weight.shape, weight.dtype, True), "out is where the result lies"
    acting = _acting(uses)
    if not acting:
        return out.copy_(weight)
    matrix, target = weight.flatten(1), out.view(len(out), -1)
    if noise is None and (factors := _bfloat16_factors(matrix, acting)):
        b, a, gain = factors
        torch.addmm(matrix, b, a, alpha=gain, out=target)
        return out
    for rows, change in _changes(matrix, acting, _blocks(matrix), _summing_dtype(weight)):
        total = change.add_(matrix[rows])
        target[rows] = total if noise is None else _rounded_by_chance(total, weight.dtype, noise)
    return out


@torch.no_grad()
def dense_update(weight: Weight, pair: Pair, strength: float) -> Weight:
    """What `fuse_into` adds for one pair, before any rounding: float32, shaped as the weight."""
    (_, change), *_ = _changes(weight.flatten(1), [_Use.of(pair, strength)], [slice(None)], _summing_dtype(weight))
    return change.float().view(weight.shape)


@torch.no_grad()
def fused_rows(weight: Weight, uses: PairUses, rows: Rows) -> Float[Tensor, "n i"]:
    """Some rows of the fused weight in float64 before any rounding: the yardstick for what `fuse_into` gives."""
    dtype = torch.float32 if weight.device.type == "mps" else torch.float64  # which that device lacks
    matrix = weight.flatten(1)
    (_, change), *_ = _changes(matrix, _acting(uses), [rows], dtype)
    return change.add_(matrix[rows])


@torch.no_grad()
def lost_share(weight: Weight, fused: Weight, uses: PairUses) -> float:
    """The share of the update that rounding has taken, ``|fused - (W + D)| / |D|`` (Frobenius); 0 where there is no update.

    Over 64 rows spread evenly, which tells it to a percent of itself; over all rows where there are no more.
    """
    rows = sample_rows(weight)
    exact = fused_rows(weight, uses, rows)
    update = torch.linalg.matrix_norm(exact - weight.flatten(1)[rows])
    error = torch.linalg.matrix_norm(fused.flatten(1)[rows.to(fused.device)].to(exact.device) - exact)
    return float(error / update) if update else 0.0


def sample_rows(weight: Weight) -> Int[Tensor, " n"]:
    """At most 64 rows of a weight, spread evenly."""
    return torch.linspace(0, len(weight) - 1, min(len(weight), _SAMPLED_ROWS), device=weight.device).round().long()


class _Use(NamedTuple):
    """One pair that acts; its factors are read once, since those of some forms are made anew whenever they are read."""

    a: FactorA
    b: FactorB
    scale: float
    strength: float
    magnitude: Magnitude | None

    @classmethod
    def of(cls, pair: Pair, strength: float) -> Self:
        assert pair.scale is not None, "check_usable comes first"
        return cls(pair.a, pair.b, pair.scale, strength, pair.magnitude)

    @property
    def gain(self) -> float:
        return self.scale * self.strength


def _acting(uses: PairUses) -> list[_Use]:
    return [_Use.of(pair, strength) for pair, strength in uses if strength]


def _bfloat16_factors(matrix: Matrix, uses: Sequence[_Use]) -> tuple[FactorB, FactorA, float] | None:
    """B, A and one gain whose product in bfloat16 is exact up to the sum in float32; None where there is no such product.

    Gains of several pairs may differ by powers of two, which scale B without rounding it.
    """
    dtypes = {matrix.dtype, *(factor.dtype for use in uses for factor in (use.a, use.b))}
    if dtypes != {torch.bfloat16} or any(use.magnitude for use in uses):
        return None
    if matrix.device.type != "cpu" or not _multiplies_bfloat16() or sum(len(use.a) for use in uses) > _LONGEST_SUM:
        return None
    first = uses[0]
    ratios = [use.gain / first.gain if first.gain else 0.0 for use in uses]
    if not all(_is_small_power_of_two(ratio) for ratio in ratios):
        return None
    if len(uses) == 1:
        return first.b, first.a, first.gain
    b = torch.cat([use.b if ratio == 1 else use.b * ratio for use, ratio in zip(uses, ratios, strict=True)], dim=1)
    return b, torch.cat([use.a for use in uses]), first.gain


@lru_cache
def _multiplies_bfloat16() -> bool:
    """Whether this processor has units for bfloat16; on others such a product is right too, but far slower than in float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _is_small_power_of_two(ratio: float) -> bool:
    fraction, exponent = math.frexp(abs(ratio))
    return fraction == 0.5 and abs(exponent) <= 16


def _changes(matrix: Matrix, uses: Sequence[_Use], blocks: Iterable[Rows], dtype: torch.dtype) -> Iterator[tuple[Rows, Matrix]]:
    """Some rows of what all pairs add together, block by block: they are small, so that their sum is rounded finely."""
    updates = [_update_of(matrix, use, dtype) for use in uses]
    for rows in blocks:
        change = torch.zeros(matrix[rows].shape, dtype=dtype, device=matrix.device)
        for add in updates:
            add(change, rows)
        yield rows, change


def _blocks(matrix: Matrix) -> Iterator[slice]:
    """All rows; in blocks that fit a cache, where the processor has one."""
    step = _BLOCK // max(1, matrix.shape[1]) if matrix.device.type == "cpu" else len(matrix)
    yield from (slice(start, start + max(1, step)) for start in range(0, len(matrix), max(1, step)))


def _summing_dtype(weight: Tensor) -> torch.dtype:
    """float32; float64 for weights of it, and where this process lets float32 be multiplied as less (TF32, bfloat16)."""
    backend = {"cpu": torch.backends.mkldnn, "cuda": torch.backends.cuda}.get(weight.device.type)
    is_exact = backend is None or backend.matmul.fp32_precision in _EXACT_SETTINGS
    return torch.float32 if is_exact and weight.dtype != torch.float64 else torch.float64


AddUpdate = Callable[[Matrix, Rows], object]
"""Adds the update of some rows to a sum over those rows, in place."""


def _update_of(matrix: Matrix, use: _Use, dtype: torch.dtype) -> AddUpdate:
    """How one pair acts on a sum of changes in ``dtype``."""
    a, b = use.a.to(matrix.device, dtype), use.b.to(matrix.device)

    def product(rows: Rows) -> Matrix:
        return _product(b[rows].to(dtype), a)

    if use.magnitude is None:
        # The gain comes last: folded into a factor it would round every product.
        return lambda change, rows: change.add_(product(rows), alpha=use.gain)
    inner, outer = _KNOBS[use.magnitude.made_by](use.strength)

    def adapted(rows: Rows) -> Matrix:
        return matrix[rows].to(dtype, copy=True).add_(product(rows), alpha=use.scale * inner)

    factor = _dora_factor(matrix, use.magnitude, adapted, dtype)

    def add(change: Matrix, rows: Rows) -> None:
        sums = adapted(rows)
        change.add_((sums * factor(rows, sums)).sub_(matrix[rows]), alpha=outer)

    return add


def _product(b: FactorB, a: FactorA) -> Matrix:
    product = b[:, :_TERMS] @ a[:_TERMS]
    for start in range(_TERMS, len(a), _TERMS):
        product.addmm_(b[:, start : start + _TERMS], a[start : start + _TERMS])
    return product


def _dora_factor(
    matrix: Matrix, magnitude: Magnitude, adapted: Callable[[Rows], Matrix], dtype: torch.dtype
) -> Callable[[Rows, Matrix], Tensor]:
    """By what some adapted rows are multiplied: the magnitudes over the norms that the rows or the columns have."""
    wanted = magnitude.values.to(matrix.device, dtype)
    smallest = torch.finfo(torch.float32).eps  # rows of zeros stay so
    if magnitude.axis == "out":
        return lambda rows, sums: (wanted[rows] / torch.linalg.vector_norm(sums, dim=1).clamp_min(smallest)).unsqueeze(1)
    squares = sum((adapted(rows).square_().sum(dim=0) for rows in _blocks(matrix)), torch.zeros_like(wanted))
    columns = wanted / squares.sqrt().clamp_min(smallest)
    return lambda rows, sums: columns


def _rounded_by_chance(total: Matrix, dtype: torch.dtype, noise: torch.Generator) -> Matrix:
    """Values that ``dtype`` has, the upper or the lower neighbour by chance; those that it has already stay."""
    if dtype not in _GRIDS:
        return total
    bits, finest = _GRIDS[dtype]
    exponent = torch.frexp(total).exponent.sub_(bits).clamp_(min=finest)
    chance = torch.rand(total.shape, generator=noise, device=noise.device).to(total.device)
    return torch.ldexp(torch.ldexp(total, -exponent).add_(chance).floor_(), exponent)
