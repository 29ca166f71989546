"""The places of a model where an adapter can act."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from .kernel import FUSABLE
from .offload import bad_end_of_new_weight, compute_device, compute_dtype, is_readable
from .stacked import STACKED

__all__ = ["SHARED_INPUT", "Site", "sites_of"]

SHARED_INPUT = ("to_q", "to_k", "to_v")
"""Modules of one self-attention that are given the same input."""
_PLAIN = (nn.Parameter, Tensor)
"""What quantisers make instead are classes of their own, also where a Parameter was made of one."""


@dataclass(frozen=True, eq=False)
class Site:
    """One module that an adapter can act on, and where it hangs."""

    name: str
    """Role and path."""
    parent: nn.Module
    leaf: str
    module: nn.Module
    """The original."""
    around: tuple[nn.Module, ...]
    """What it lies in: its parent first, the model last."""

    @property
    def weight(self) -> nn.Parameter:
        """Its weight, ``(out, in)`` or ``(out, in, kernel)``."""
        weight = self.module._parameters["weight"]
        assert weight is not None, "a Linear or convolution has one"
        return weight

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), ``in`` times its kernel for a convolution, as a pair's; also where the weight is packed by a quantiser."""
        if isinstance(self.module, nn.Linear):
            return self.module.out_features, self.module.in_features
        return self.weight.shape[0], prod(self.weight.shape[1:])

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """That of its weight; also where a quantiser has packed it."""
        return self.shape if isinstance(self.module, nn.Linear) else tuple(self.weight.shape)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Of a convolution; empty for a Linear."""
        return () if isinstance(self.module, nn.Linear) else tuple(self.weight.shape[2:])

    @property
    def group(self) -> tuple[int, str]:
        """Equal for modules that get the same input: q, k and v of a self-attention share one product with A."""
        shared = self.leaf in SHARED_INPUT and getattr(self.parent, "is_cross_attention", True) is False
        return id(self.parent), "" if shared else self.leaf

    @property
    def device(self) -> torch.device:
        """Where it computes, also while its weight waits elsewhere."""
        return compute_device(self.chain) or self.weight.device

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype that it computes in; None if a weight of 8 bits or fewer does not tell."""
        dtype = self.weight.dtype
        return dtype if dtype.is_floating_point and dtype.itemsize > 1 else compute_dtype(self.module)

    @property
    def is_readable(self) -> bool:
        """Whether its weight's values lie in it, as many as its shape says: no quantiser has packed, nothing offloaded them."""
        return is_readable(self.chain) and self.is_plain

    @property
    def obstacle(self) -> str:
        """Why its weight cannot be fused exactly; empty if it can."""
        if why := bad_end_of_new_weight(self.chain):
            return f"its weight would not stay fused: {why}"
        if self.is_plain:
            return ""
        held = type(self.weight).__name__ if type(self.weight.data) is Tensor else type(self.weight.data).__name__
        return f"its weight is a {held} of {self.weight.dtype}, which would round the sum away"

    @property
    def is_plain(self) -> bool:
        """Whether its weight is the numbers themselves, as no quantiser has packed them."""
        weight = self.weight
        return type(weight) in _PLAIN and weight.dtype in FUSABLE

    @property
    def chain(self) -> tuple[nn.Module, ...]:
        return self.module, *self.around

    @property
    def current(self) -> nn.Module | None:
        """What hangs there now."""
        return self.parent._modules[self.leaf]

    def put(self, module: nn.Module) -> None:
        """Hang a module there."""
        self.parent._modules[self.leaf] = module

    def view(self, matrix: Tensor) -> Tensor:
        """A matrix ``(rows, in)`` as weights of a module like this."""
        return matrix.unflatten(1, (-1, *self.kernel)) if self.kernel else matrix


def sites_of(models: Mapping[str, nn.Module]) -> dict[str, Site]:
    """Every Linear and convolution of the models (by role), by role and path."""
    return {site.name: site for role, model in models.items() for site in _sites(role, model)}


def _sites(role: str, model: nn.Module) -> Iterator[Site]:
    kinds = tuple(STACKED)
    around: dict[str, tuple[nn.Module, ...]] = {}
    for path, parent in model.named_modules():
        around[path] = (parent, *around[path.rpartition(".")[0]]) if path else (parent,)
        for leaf, module in parent._modules.items():
            if isinstance(module, kinds):
                yield Site(f"{role}.{path}.{leaf}" if path else f"{role}.{leaf}", parent, leaf, module, around[path])
