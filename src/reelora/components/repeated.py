"""Blocks of one kind that repeat in a network, so that code made for one of them serves them all."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

__all__ = ["repeated_blocks", "repeated_classes"]

_REPEATED: Mapping[str, Sequence[str]] = {"CogVideoXTransformer3DModel": ("CogVideoXBlock",)}
"""Where diffusers' class does not say."""


def repeated_classes(network: Any) -> list[str]:
    """The names of the classes of blocks that repeat in a network; none where nobody says."""
    return list(getattr(network, "_repeated_blocks", None) or _REPEATED.get(type(network).__name__, ()))


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """All blocks that repeat in a network, or in the networks that a module holds."""
    names = {name for network in model.modules() for name in repeated_classes(network)}
    return [module for module in model.modules() if type(module).__name__ in names]
