"""Frozen projections of one input with trained branches beside them: one node of the graph for all of them.

Autograd by itself keeps ``A x`` of every branch, adds a branch onto the base's output through a copy, and needs one product
with A for each. Here query, key and value share one product with their A, lying one below the other; B accumulates into the
base's output where that lies; the input is kept once and what has the rank's width is computed again in the backward pass,
which is ``r / out`` of the layer's own work. Nobody computes the gradient of an input that needs none, such as that of the
first block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .frozen import Fetched

__all__ = ["Frozen", "Low", "project"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Frozen:
    """What is not trained of one projection: its weight ``(out, in)``, its bias and the scale of its branch."""

    weight: Tensor
    bias: Tensor | None
    scale: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Low:
    """A and B of some branches as they are multiplied: in the dtype of the base."""

    a: Tensor
    """``(sum of ranks, in)``: one below the other."""
    bs: Sequence[Tensor]
    """``(out, rank)`` each."""

    @property
    def ranks(self) -> list[int]:
        return [b.shape[1] for b in self.bs]


Bases = Sequence[Frozen | Fetched]
"""The weight of the second kind is made anew each time that it is asked for, and never kept."""
Masters = Sequence[tuple[nn.Parameter, nn.Parameter]]
"""The trained A ``(rank, in)`` and B ``(out, rank)`` of each projection."""


def project(x: Tensor, frozen: Bases, low: Low, masters: Masters) -> list[Tensor]:
    """``W x + bias + scale * B A x`` of every projection, for ``x (*n, in)`` in the dtype of the weights.

    Gradients go to the ``masters``, in the dtype that these have.
    """
    outputs: Any = _Projections.apply(x, frozen, low, *[factor for pair in masters for factor in pair])
    return list(outputs)


class _Projections(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: Bases, low: Low, *masters: Tensor) -> tuple[Tensor, ...]:
        ctx.frozen, ctx.ranks, ctx.dtypes = frozen, low.ranks, [master.dtype for master in masters]
        ctx.save_for_backward(x, low.a, *low.bs)
        rows = x.reshape(-1, x.shape[-1])
        outputs = []
        for one, hidden, b in zip(frozen, (rows @ low.a.T).split(low.ranks, dim=1), low.bs, strict=True):
            y = nn.functional.linear(rows, one.weight, one.bias)
            y.addmm_(hidden, b.T, alpha=one.scale)
            outputs.append(y.view(*x.shape[:-1], -1))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, a, *bs = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1])
        ys = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        hiddens = (rows @ a.T).split(ctx.ranks, dim=1)
        of_bs = [(y.T @ hidden) * one.scale for y, hidden, one in zip(ys, hiddens, ctx.frozen, strict=True)]
        narrow = torch.cat([(y @ b) * one.scale for y, b, one in zip(ys, bs, ctx.frozen, strict=True)], dim=1)
        of_as = (narrow.T @ rows).split(ctx.ranks)
        of_x = _of_input(ys, ctx.frozen, narrow, a).view(x.shape) if ctx.needs_input_grad[0] else None
        of_masters = [grad for pair in zip(of_as, of_bs, strict=True) for grad in pair]
        return of_x, None, None, *(grad.to(dtype) for grad, dtype in zip(of_masters, ctx.dtypes, strict=True))


def _of_input(ys: Sequence[Tensor], frozen: Bases, narrow: Tensor, a: Tensor) -> Tensor:
    """The gradient of the input, summed in one buffer."""
    total = narrow @ a
    for y, one in zip(ys, frozen, strict=True):
        total.addmm_(y, one.weight)
    return total
