"""One role of a model, found and explained but not loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from reelora.layouts import Cut
from reelora.tensorio import Tensors

from .folder import Source

__all__ = ["Part"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Where a role comes from and what its file holds."""

    source: Source
    tensors: Tensors | None = None
    """Under our names; None where the source itself is to be loaded."""
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    """Where each tensor of a SAT checkpoint lies in it."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Names of tensors that are not used, and why."""
