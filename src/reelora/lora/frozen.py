"""Frozen Linears whose weight does not lie there as it is multiplied: it is made, or brought, for every use.

Autograd by itself would keep the weight of a use until the backward pass. Here nothing is kept of it: the gradient of the input
needs the weight again and makes or brings it again, and a frozen weight has no gradient of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reelora.errors import MismatchError

__all__ = ["Fetched", "FrozenLinear", "Placeholder", "placeholder"]

Read = Callable[[], Tensor]
"""Gives a weight ``(out, in)`` as it is multiplied. Nobody keeps it longer than it takes to queue what multiplies with it."""


class Placeholder(nn.Parameter):
    """Has the shape, dtype and device of a weight and the memory of one number, which is not one: who computes with it sees it.

    As its class is not that of a plain weight, whoever wants the values of weights is told that these are packed.
    """


def placeholder(like: Tensor, device: torch.device) -> Placeholder:
    """One for a weight like this, on another device."""
    one = torch.full((1, 1), torch.nan, dtype=like.dtype, device=device)
    return Placeholder(one.expand(like.shape), requires_grad=False)


class FrozenLinear(nn.Linear):
    """``y = W x + bias`` with a W that ``read`` gives, on ``device``. In a model it stands where ``linear`` stood."""

    def __init__(self, linear: nn.Linear, read: Read, *, device: torch.device) -> None:
        nn.Module.__init__(self)  # not nn.Linear's: it would draw weights only to throw them away
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = placeholder(linear.weight, device)
        bias: Any = linear.bias
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.data.to(device), requires_grad=False))
        self.train(linear.training)
        self.read = read

    def forward(self, input: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:  # noqa: A002  (the name that nn.Linear gives it)
        y: Any = _Product.apply(input, self)
        return y

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Stay. Raises MismatchError for moves and casts, which would leave the weight itself where and as it is."""
        now = self.weight
        then = fn(torch.empty((), dtype=now.dtype, device=now.device))
        if (then.device, then.dtype) != (now.device, now.dtype):
            raise MismatchError(
                f"The weights of this model are packed for {now.device} in {now.dtype} and cannot go to {then.device} in "
                f"{then.dtype}: load it there instead."
            )
        return self


@dataclass(frozen=True, kw_only=True, eq=False)
class Fetched:
    """What is not trained of one projection whose weight is made for every use; see `reelora.lora.projections.Frozen`."""

    base: FrozenLinear
    scale: float

    @property
    def weight(self) -> Tensor:
        return self.base.read()

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.read(), layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        weight = ctx.layer.read()
        rows = grad.reshape(-1, grad.shape[-1]).to(weight.dtype)  # under autocast it is of another
        return (rows @ weight).view(*grad.shape[:-1], -1), None
