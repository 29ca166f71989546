"""The places of a model where an adapter can act."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from .stacked import STACKED

__all__ = ["SHARED_INPUT", "Site", "sites_of"]

SHARED_INPUT = ("to_q", "to_k", "to_v")
"""Modules of one self-attention that are given the same input."""


@dataclass(frozen=True, eq=False)
class Site:
    """One module that an adapter can act on, and where it hangs."""

    name: str
    """Role and path."""
    parent: nn.Module
    leaf: str
    module: nn.Module
    """The original."""

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
        hook = getattr(self.module, "_hf_hook", None)  # accelerate's sequential offload keeps the weight on the meta device
        device = getattr(hook, "execution_device", None)
        return self.weight.device if device is None else torch.device(device)

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of its weight; None if that is none to compute in (8 bits and fewer)."""
        dtype = self.weight.dtype
        return dtype if dtype.is_floating_point and dtype.itemsize > 1 else None

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
    for path, parent in model.named_modules():
        for leaf, module in parent._modules.items():
            if isinstance(module, kinds):
                yield Site(f"{role}.{path}.{leaf}" if path else f"{role}.{leaf}", parent, leaf, module)
