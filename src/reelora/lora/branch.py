"""Modules that stand in for another and add a low-rank branch to it; here the one that is trained.

A stand-in is of the original's class and shares its very parameters, so the names in ``state_dict`` stay as they
were, and it calls the original module object, so hooks and quantised kernels keep working. The original is no submodule.

The branch computes in the dtype of the base's output, not in that of its factors: the input, which is large, is then never
copied or kept a second time for the backward pass (PEFT casts it to float32 and back, 3.3 times its size in saved activations).
Whether the base and its branch are one node of the graph, or the branch comes after it, `TrainableLinear.why_apart` says at
every call.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reelora.adapters import FactorA, FactorB, LoraSpec, Pair

from .frozen import Fetched, FrozenLinear
from .projections import Frozen, Low, project

__all__ = ["StandIn", "TrainableLinear", "add_product", "draw_a", "is_hooked"]

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
        self.hand_down()
        return self.base

    def through_base(self, x: Tensor) -> Tensor:
        """What the original module makes of ``x``."""
        self.hand_down()
        return self.base(x)

    def hand_down(self) -> None:
        """Give the base our parameters where a device move, an assigning load or FSDP has replaced them on us."""
        if self.base.weight is not self.weight or self.base.bias is not self.bias:
            self.base.weight, self.base.bias = self.weight, self.bias


class TrainableLinear(StandIn, nn.Linear):
    """``y = W x + scale * B A dropout(x)`` with trainable float32 ``a (r, in)`` and ``b (out, r)``, B zero at the start.

    Gradients reach A and B in float32, whatever the dtype of the base, with autocast or without.
    """

    shadow: Low | None = None
    """A and B as they are multiplied, while somebody vouches that they are those of the parameters (`Shadows`)."""
    shared_shadow: Low | None = None
    """On ``to_q`` the same of query, key and value, where these run together."""

    def __init__(self, base: nn.Linear, a: FactorA, *, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base)
        self.lora_a = nn.Parameter(a.to(base.weight.device, torch.float32))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, a.shape[0], device=base.weight.device, dtype=torch.float32))
        self.scale = scale
        self.dropout = dropout

    def forward(self, input: Inputs) -> Outputs:  # noqa: A002  (the name that nn.Linear gives it)
        if self.why_apart or not self.suits(input):
            return self._apart(input)
        (y,) = project(input, [self.frozen], self.low(), [self.masters])
        return y

    @property
    def why_apart(self) -> str:
        """Why the base is called by itself and the branch comes after it; empty where both are one node of the graph."""
        return next((why for why, is_so in _REASONS.items() if is_so(self)), "")

    def suits(self, x: Tensor) -> bool:
        """Whether ``x`` comes as the weights take it: in their dtype, and nobody casts on the way (autocast)."""
        is_cast = not x.is_meta and torch.is_autocast_enabled(x.device.type)  # torch refuses to tell of the meta device
        return x.dtype == self.weight.dtype and not is_cast

    @property
    def frozen(self) -> Frozen | Fetched:
        """The base's weights, and the scale of the branch."""
        if isinstance(self.base, FrozenLinear):
            return Fetched(base=self.base, scale=self.scale)
        return Frozen(weight=self.weight, bias=self.bias, scale=self.scale)

    @property
    def masters(self) -> tuple[nn.Parameter, nn.Parameter]:
        """What is trained: A and B."""
        return self.lora_a, self.lora_b

    def low(self) -> Low:
        """A and B in the dtype of the base."""
        if self.shadow is not None:
            return self.shadow
        dtype = self.weight.dtype
        return Low(a=self.lora_a.detach().to(dtype), bs=[self.lora_b.detach().to(dtype)])

    def _apart(self, x: Inputs) -> Outputs:
        y = self.through_base(x)
        x = nn.functional.dropout(x, self.dropout, self.training).to(y.dtype)
        hidden = nn.functional.linear(x, self.lora_a.to(y.dtype))
        return add_product(y, hidden, self.lora_b.to(y.dtype), scale=self.scale)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.lora_a.shape[0]}, scale={self.scale:g}"

    @torch.no_grad()
    def pair(self) -> Pair:
        """Copies of both factors, float32 on the CPU."""
        return Pair(_copy(self.lora_a), _copy(self.lora_b), self.scale)


def _is_trained(branch: TrainableLinear) -> bool:
    return branch.weight.requires_grad or (branch.bias is not None and branch.bias.requires_grad)


def _is_linear(base: nn.Module) -> bool:
    """Whether `project` computes what it does."""
    return type(base).forward is nn.Linear.forward or isinstance(base, FrozenLinear)


def _is_plain(weight: Tensor) -> bool:
    """Whether a weight is no tensor of a class of its own; its data would not tell while tensors without memory are made."""
    return issubclass(type(weight), nn.Parameter)


_REASONS: Mapping[str, Callable[[TrainableLinear], bool]] = {
    "its class computes in a way of its own": lambda branch: not _is_linear(branch.base),
    "a hook hangs on it": lambda branch: is_hooked(branch.base),
    "its weights are packed": lambda branch: not (_is_plain(branch.weight) and branch.weight.is_floating_point()),
    "its weights are trained too": _is_trained,
    "inputs of the branch are dropped": lambda branch: branch.dropout > 0 and branch.training,
}
"""Why a base has to be called as the module that it is, and what it is told by."""


def is_hooked(module: nn.Module) -> bool:
    """Whether anything acts before or after a module's own forward: a hook, or one that took its forward's place."""
    held = vars(module)
    return "forward" in held or any(held[name] for name in _HOOKS)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


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
