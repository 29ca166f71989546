"""How many bytes of a network's weights are on the device at once, by where the rest waits."""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import nn

from .plan import Placement
from .sizes import RoleSize

__all__ = ["adapter_bytes", "encoder_bytes", "fp8_bytes", "on_device"]

_FP8_KINDS = (nn.Linear, nn.Conv2d, nn.Conv3d)
_FP8_SKIPPED = re.compile(r"pos_embed|patch_embed|norm|^proj_in$|^proj_out$")
"""What diffusers' layerwise casting leaves as it is. Source: diffusers 0.42.1, hooks/layerwise_casting.py."""
_PAIRS = ("to_q", "to_k", "to_v", "to_out.0")
"""Layers that an adapter is taken to act on: those of CogVideo's own training."""


def on_device(size: RoleSize, placement: Placement, *, dtype: torch.dtype, fp8: bool, ahead: bool) -> int:
    """Bytes of a network on the device while it runs; ``ahead`` if the next group is copied while one computes."""
    whole = fp8_bytes(size, dtype) if fp8 else size.bytes_in(dtype)
    return min(whole, _PARTS[placement](size, dtype, whole, ahead))


@lru_cache(maxsize=64)
def _fp8_saved(network: nn.Module) -> tuple[int, int]:
    """Numbers that are stored in one byte, and those of the largest layer, which is cast for its forward."""
    layers = [
        sum(parameter.numel() for parameter in module.parameters(recurse=False))
        for name, module in network.named_modules()
        if isinstance(module, _FP8_KINDS) and not _FP8_SKIPPED.search(name)
    ]
    return sum(layers), max(layers, default=0)


def fp8_bytes(size: RoleSize, dtype: torch.dtype) -> int:
    """Bytes of a network whose large layers are stored in 8 bits, with the one that is cast for its forward."""
    stored, largest = _fp8_saved(size.network)
    return size.bytes_in(dtype) - stored * (dtype.itemsize - 1) + largest * dtype.itemsize


def adapter_bytes(size: RoleSize, rank: int, *, dtype: torch.dtype, is_fused: bool) -> int:
    """What adapters of a summed rank take: stacks of A and B beside the layers, or a second set of the fused weights."""
    if not rank:
        return 0
    modules = size.network.named_modules()
    layers = [module for name, module in modules if name.endswith(_PAIRS) and isinstance(module, nn.Linear)]
    if is_fused:
        return sum(layer.in_features * layer.out_features for layer in layers) * dtype.itemsize
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers) * dtype.itemsize


def encoder_bytes(vae: RoleSize) -> int:
    """Bytes, as they are stored, of the half of a VAE that nothing touches where there is nothing to encode."""
    encoder = (parameter for name, parameter in vae.network.named_parameters() if name.startswith(("encoder.", "quant_conv.")))
    return sum(parameter.numel() for parameter in encoder) * vae.dtype.itemsize


def _largest_leaf(size: RoleSize, dtype: torch.dtype, whole: int, ahead: bool) -> int:
    leaves = (module for module in size.network.modules() if not next(iter(module.children()), None))
    largest = max(sum(parameter.numel() for parameter in leaf.parameters()) for leaf in leaves)
    return (1 + ahead) * largest * whole // max(1, size.num_parameters)


def _blocks(size: RoleSize, dtype: torch.dtype, whole: int, ahead: bool) -> int:
    """The largest block of a denoiser's stacks beside what is in no stack; of other networks the largest layer."""
    stacks = [child for child in size.network.children() if isinstance(child, nn.ModuleList | nn.Sequential)]
    if size.role not in ("transformer", "unet") or not stacks:
        return _largest_leaf(size, dtype, whole, ahead)
    blocks = [sum(parameter.numel() for parameter in block.parameters()) for stack in stacks for block in stack]
    rest = size.num_parameters - sum(blocks)
    return (rest + (1 + ahead) * max(blocks)) * whole // size.num_parameters


def _all(size: RoleSize, dtype: torch.dtype, whole: int, ahead: bool) -> int:
    return whole


_PARTS: Mapping[Placement, Callable[[RoleSize, torch.dtype, int, bool], int]] = {
    "resident": _all,
    "model": _all,
    "group": _blocks,
    "sequential": _largest_leaf,
}
