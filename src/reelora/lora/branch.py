"""Modules that stand in for a Linear and add a low-rank branch to it.

A stand-in *is* an ``nn.Linear`` that shares the very parameters of the original, so the names in ``state_dict`` stay as they
were, and it calls the original module object, so hooks and quantised kernels keep working. The original is no submodule.

The branch computes in the dtype of the base's output, not in that of its factors: the input, which is large, is then never
copied or kept a second time for the backward pass (PEFT casts it to float32 and back, 3.3 times its size in saved activations),
while casting A and B costs ``r (in + out)`` numbers per forward, some thousandth of the layer's own work for a clip of 17,776
tokens. No cached copy of them can go stale behind an optimizer, an EMA swap or a checkpoint load.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reelora.adapters import FactorA, FactorB, LoraSpec, Pair

__all__ = ["StackedLinear", "TrainableLinear", "draw_a"]

Inputs = Float[Tensor, "*n i"]
Outputs = Float[Tensor, "*n o"]
Hidden = Float[Tensor, "*n r"]


class _StandIn(nn.Linear):
    """A Linear with the parameters of ``base`` and nothing else yet."""

    def __init__(self, base: nn.Linear) -> None:
        nn.Module.__init__(self)  # not nn.Linear's: it would draw weights only to throw them away
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self._hidden_base = (base,)  # in a tuple, or it would register as a submodule and rename the base's weights
        self.training = base.training

    @property
    def base(self) -> nn.Linear:
        """The original module."""
        return self._hidden_base[0]

    def train(self, mode: bool = True) -> "_StandIn":
        self.base.train(mode)  # another branch may lie below
        return super().train(mode)

    def release(self) -> nn.Linear:
        """The original module, with the parameters as they are now."""
        self._hand_down()
        return self.base

    def _through_base(self, x: Inputs) -> Outputs:
        self._hand_down()
        return self.base(x)

    def _hand_down(self) -> None:
        """Give the base our parameters where a device move, an assigning load or FSDP has replaced them on us."""
        if self.base.weight is not self.weight or self.base.bias is not self.bias:
            self.base.weight, self.base.bias = self.weight, self.bias


class TrainableLinear(_StandIn):
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
        y = self._through_base(input)
        x = nn.functional.dropout(input, self.dropout, self.training).to(y.dtype)
        hidden = nn.functional.linear(x, self.lora_a.to(y.dtype))
        return _add(y, hidden, self.lora_b.to(y.dtype), scale=self.scale)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.lora_a.shape[0]}, scale={self.scale:g}"

    @torch.no_grad()
    def pair(self) -> Pair:
        """Copies of both factors, float32 on the CPU."""
        return Pair(_copy(self.lora_a), _copy(self.lora_b), self.scale)


class StackedLinear(_StandIn):
    """``y = W x + B (gains * (A x))`` for inference: all active pairs stacked into one ``a (r, in)``, ``b (out, r)``.

    The gains (scale times strength, one number per row of A) act on the rank-wide intermediate in float32.
    """

    lora_a: Tensor
    lora_b: Tensor
    gains: Tensor

    def __init__(self, base: nn.Linear, pairs: Sequence[Pair], gains: Sequence[float]) -> None:
        super().__init__(base)
        weight = base.weight
        per_row = [gain for pair, gain in zip(pairs, gains, strict=True) for _ in range(pair.rank)]
        place = {"device": weight.device, "dtype": weight.dtype if weight.dtype.itemsize > 1 else None}
        self.register_buffer("lora_a", torch.cat([pair.a for pair in pairs], dim=0).to(**place), persistent=False)
        self.register_buffer("lora_b", torch.cat([pair.b for pair in pairs], dim=1).to(**place), persistent=False)
        self.register_buffer("gains", torch.tensor(per_row, device=weight.device, dtype=torch.float32), persistent=False)

    def forward(self, input: Inputs) -> Outputs:  # noqa: A002  (the name that nn.Linear gives it)
        y = self._through_base(input)
        hidden = nn.functional.linear(input.to(y.dtype), self.lora_a.to(y.dtype))
        return _add(y, (hidden * self.gains).to(y.dtype), self.lora_b.to(y.dtype))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.lora_a.shape[0]}"


def draw_a(rank: int, in_features: int, spec: LoraSpec, generator: torch.Generator) -> FactorA:
    """A fresh A ``(rank, in)``, float32 on the CPU, so that one seed means the same weights on every device.

    Kaiming-uniform with ``a = sqrt(5)`` (uniform within ``1 / sqrt(in)``) or normal with deviation ``1 / rank``, both as PEFT.
    """
    a = torch.empty(rank, in_features, dtype=torch.float32, device="cpu")
    if spec.init == "gaussian":
        return nn.init.normal_(a, std=1 / rank, generator=generator)
    return nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)


def _add(y: Outputs, hidden: Hidden, b: FactorB, *, scale: float = 1.0) -> Outputs:
    """``y + scale * hidden B^T`` in one product that accumulates onto ``y`` and rounds once."""
    rows = y.reshape(-1, y.shape[-1])
    return torch.addmm(rows, hidden.reshape(-1, hidden.shape[-1]), b.T, alpha=scale).reshape(y.shape)


def _copy(factor: nn.Parameter) -> Tensor:
    return factor.detach().to("cpu", torch.float32, copy=True)
