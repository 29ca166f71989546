"""Modules that stand in for another and add a low-rank branch to it; here the one that is trained.

A stand-in is of the original's class and shares its very parameters, so the names in ``state_dict`` stay as they
were, and it calls the original module object, so hooks and quantised kernels keep working. The original is no submodule.

The branch computes in the dtype of the base's output, not in that of its factors: the input, which is large, is then never
copied or kept a second time for the backward pass (PEFT casts it to float32 and back, 3.3 times its size in saved activations),
while casting A and B costs ``r (in + out)`` numbers per forward, some thousandth of the layer's own work for a clip of 17,776
tokens. No cached copy of them can go stale behind an optimizer, an EMA swap or a checkpoint load.
"""

import math
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reelora.adapters import FactorA, FactorB, LoraSpec, Pair

__all__ = ["StandIn", "TrainableLinear", "add_product", "draw_a"]

Inputs = Float[Tensor, "*n i"]
Outputs = Float[Tensor, "*n o"]
Hidden = Float[Tensor, "*n r"]


class StandIn(nn.Module):
    """Takes the place of ``base``: its settings and its very parameters, and nothing else yet."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, base: nn.Module) -> None:
        nn.Module.__init__(self)  # not nn.Linear's: it would draw weights only to throw them away
        vars(self).update({name: getattr(base, name) for name in getattr(base, "__constants__", ()) if hasattr(base, name)})
        self._hidden_base = (base,)  # in a tuple, or it would register as a submodule and rename the base's weights
        self.adopt()

    def adopt(self) -> None:
        """Share the parameters and the mode that the original has now."""
        held = self.base._parameters
        self._parameters.update(weight=held["weight"], bias=held["bias"])
        vars(self)["training"] = self.base.training  # a switch has hundreds of these, and nn.Module's way looks in five tables

    @property
    def base(self) -> Any:
        """The original module."""
        return self._hidden_base[0]

    def train(self, mode: bool = True) -> Self:
        self.base.train(mode)  # another branch may lie below
        return super().train(mode)

    def release(self) -> nn.Module:
        """The original module, with the parameters as they are now."""
        self._hand_down()
        return self.base

    def through_base(self, x: Tensor) -> Tensor:
        """What the original module makes of ``x``."""
        self._hand_down()
        return self.base(x)

    def _hand_down(self) -> None:
        """Give the base our parameters where a device move, an assigning load or FSDP has replaced them on us."""
        if self.base.weight is not self.weight or self.base.bias is not self.bias:
            self.base.weight, self.base.bias = self.weight, self.bias


class TrainableLinear(StandIn, nn.Linear):
    """``y = W x + scale * B A dropout(x)`` with trainable float32 ``a (r, in)`` and ``b (out, r)``, B zero at the start.

    Gradients reach A and B in float32, whatever the dtype of the base, with autocast or without.
    """

    def __init__(self, base: nn.Linear, a: FactorA, *, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base)
        self.lora_a = nn.Parameter(a.to(base.weight.device, torch.float32))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, a.shape[0], device=base.weight.device, dtype=torch.float32))
        self.scale = scale
        self.dropout = dropout

    def forward(self, input: Inputs) -> Outputs:  # noqa: A002  (the name that nn.Linear gives it)
        y = self.through_base(input)
        x = nn.functional.dropout(input, self.dropout, self.training).to(y.dtype)
        hidden = nn.functional.linear(x, self.lora_a.to(y.dtype))
        return add_product(y, hidden, self.lora_b.to(y.dtype), scale=self.scale)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.lora_a.shape[0]}, scale={self.scale:g}"

    @torch.no_grad()
    def pair(self) -> Pair:
        """Copies of both factors, float32 on the CPU."""
        return Pair(_copy(self.lora_a), _copy(self.lora_b), self.scale)


def draw_a(rank: int, in_features: int, spec: LoraSpec, generator: torch.Generator) -> FactorA:
    """A fresh A ``(rank, in)``, float32 on the CPU, so that one seed means the same weights on every device.

    Kaiming-uniform with ``a = sqrt(5)`` (uniform within ``1 / sqrt(in)``) or normal with deviation ``1 / rank``, both as PEFT.
    """
    a = torch.empty(rank, in_features, dtype=torch.float32, device="cpu")
    if spec.init == "gaussian":
        return nn.init.normal_(a, std=1 / rank, generator=generator)
    return nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)


def add_product(y: Outputs, hidden: Hidden, b: FactorB, *, scale: float = 1.0) -> Outputs:
    """``y + scale * hidden B^T`` in one product that accumulates onto ``y`` and rounds once."""
    rows = y.reshape(-1, y.shape[-1])
    return torch.addmm(rows, hidden.reshape(-1, hidden.shape[-1]), b.T, alpha=scale).reshape(y.shape)


def _copy(factor: nn.Parameter) -> Tensor:
    return factor.detach().to("cpu", torch.float32, copy=True)
