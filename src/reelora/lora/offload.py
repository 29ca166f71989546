"""Weights that wait elsewhere between forwards: where and in which dtype their module computes, and what becomes of a new one.

accelerate and diffusers hang hooks on modules, or on the blocks and models around them, that bring weights before a forward and
take them away afterwards. Nothing here imports either: a hook is known by where it hangs and by what it says of itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["any_hooked", "bad_end_of_new_weight", "compute_device", "compute_dtype", "is_readable", "offload_hooks"]

Chain = Sequence[nn.Module]
"""A module, then what it lies in, up to the model."""

_BAD_ENDS: Mapping[str, str] = {
    "offload_to_disk_path": "a file brings it anew for every use (group offloading to disk)",
    "stream": "a pinned copy brings it anew for every use (group offloading with streams)",
}
"""What a group of diffusers' group offloading has where a weight that is changed in between would be lost, and why."""


def compute_device(chain: Chain) -> torch.device | None:
    """Where the module computes by the nearest hook that says so; None if its weight stays where it is."""
    for hook in _hooks(chain):
        group = getattr(hook, "group", None)
        device = getattr(hook, "execution_device", None) if group is None else group.onload_device
        if device is not None:
            return torch.device(device)
    return None


def compute_dtype(module: nn.Module) -> torch.dtype | None:
    """What the weight is cast to for every forward (layerwise casting), or what a quantised module computes in."""
    hooks = [getattr(hook, "compute_dtype", None) for hook in _hooks([module])]
    return next((dtype for dtype in (*hooks, getattr(module, "compute_dtype", None)) if dtype is not None), None)


def bad_end_of_new_weight(chain: Chain) -> str:
    """Why a weight that is set now would be gone at the next forward; empty if it would stay."""
    if _weight(chain[0]).is_meta:
        return "it is offloaded by itself (sequential offload)"
    group = _group(chain)
    if group is None:
        return ""
    return next((why for name, why in _BAD_ENDS.items() if getattr(group, name, None) is not None), "")


def is_readable(chain: Chain) -> bool:
    """Whether the weight's own values lie in it now."""
    return not _weight(chain[0]).is_meta and getattr(_group(chain), "offload_to_disk_path", None) is None


def any_hooked(modules: Iterable[nn.Module]) -> bool:
    """Whether a hook hangs on any of these."""
    return any(offload_hooks(module) for module in modules if "_hf_hook" in vars(module) or "_diffusers_hook" in vars(module))


def offload_hooks(module: nn.Module) -> list[Any]:
    """Hooks of accelerate and diffusers on a module itself."""
    own = vars(module)  # getattr would go through nn.Module's tables first, ten times slower where there is no hook
    if "_hf_hook" not in own and "_diffusers_hook" not in own:
        return []
    one, many = own.get("_hf_hook"), own.get("_diffusers_hook")
    return [*([] if one is None else getattr(one, "hooks", [one])), *([] if many is None else many.hooks.values())]


def _hooks(chain: Chain) -> Sequence[Any]:
    found: list[Any] = []
    for module in chain:
        found += offload_hooks(module)
    return found


def _group(chain: Chain) -> Any:
    """The group that brings the module's weight; None if none does."""
    return next((hook.group for hook in _hooks(chain) if hasattr(hook, "group")), None)


def _weight(module: nn.Module) -> torch.Tensor:
    weight = module._parameters["weight"]
    assert weight is not None, "a Linear or convolution has one"
    return weight
