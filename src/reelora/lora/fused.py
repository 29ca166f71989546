"""Adapters fused into the weights of a model, and the pristine weights back, bit for bit."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .acting import Acting, uses_by_site
from .kernel import FUSABLE, PairUses, fuse_into, fused_rows, sample_rows
from .sites import Site

__all__ = ["FusedWeights", "Home", "obstacle", "rounding_loss"]

Home = Literal["kept", "host", "file"]
"""Where pristine weights wait while others are in their place: where they were (the fused ones get memory of their own), in the
host's memory, or in the checkpoint's file, from which they are read again."""


@dataclass(frozen=True, eq=False)
class _Fused:
    """One site whose weight is fused."""

    uses: PairUses
    fetch: Callable[[], Tensor]
    """Gives the pristine weight."""
    weight: Tensor
    """What was put in its place."""


class FusedWeights:
    """Every weight is formed from the pristine one, so no order of calls leaves a trace.

    Buffers of fused weights are kept and used again: their first touch costs more than the arithmetic.
    """

    def __init__(self, sites: Mapping[str, Site], *, home: Home, read: Callable[[str], Tensor] | None) -> None:
        self._sites, self._home, self._read = sites, home, read
        self._fused: dict[str, _Fused] = {}
        self._buffers: dict[str, Tensor] = {}

    @property
    def sites(self) -> frozenset[str]:
        """The sites whose weight is fused now."""
        return frozenset(self._fused)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the fused weights and of buffers that wait for the next fuse."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def pristine(self, name: str) -> Tensor:
        """The weight that a site had before anything was fused."""
        held = self._fused.get(name)
        return held.fetch() if held else self._sites[name].weight.data

    def apply(self, acting: Acting) -> None:
        """Fuse what acts into the pristine weights, and restore every other weight."""
        wanted = uses_by_site(acting)
        for name in [name for name in self._fused if name not in wanted]:
            self._restore(name)
        for name, uses in wanted.items():
            if name not in self._fused or list(self._fused[name].uses) != uses:
                self._fuse(name, uses)

    def release_buffers(self) -> None:
        """Free what is kept for the next fuse."""
        self._buffers = {name: buffer for name, buffer in self._buffers.items() if name in self._fused}

    def lost(self, names: Iterable[str]) -> dict[str, float]:
        """`rounding_loss` of some fused sites."""
        held = {name: self._fused[name] for name in names}
        return {name: rounding_loss(fused.fetch().to(fused.weight.device), fused.uses) for name, fused in held.items()}

    def _fuse(self, name: str, uses: PairUses) -> None:
        site = self._sites[name]
        held = self._fused.get(name)
        pristine = (held.fetch() if held else site.weight.data).to(site.weight.device)
        fetch = held.fetch if held else self._keeper(name, pristine)
        if held:  # its buffer is written over, and holds neither the old nor the new sum if that fails
            self._fused[name] = replace(held, uses=())
        out = fuse_into(pristine, uses, out=self._buffer(name, pristine))
        self._fused[name] = _Fused(uses, fetch, out)
        site.weight.data = out

    def _restore(self, name: str) -> None:
        weight = self._sites[name].weight
        weight.data = self._fused[name].fetch().to(weight.device)
        del self._fused[name]

    def _keeper(self, name: str, pristine: Tensor) -> Callable[[], Tensor]:
        if self._home == "file" and self._read is not None:
            read, dtype = self._read, pristine.dtype
            return lambda: read(name).to(dtype)
        kept = pristine if self._home == "kept" else pristine.to("cpu", copy=True)
        return lambda: kept

    def _buffer(self, name: str, pristine: Tensor) -> Tensor:
        """Memory for the fused weight: that of last time, if it is where the weight is now."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.device != pristine.device or buffer.dtype != pristine.dtype:
            buffer = self._buffers[name] = torch.empty_like(pristine, memory_format=torch.contiguous_format)
        return buffer


@torch.no_grad()
def rounding_loss(pristine: Tensor, uses: PairUses) -> float:
    """The share of an update that rounding the fused weight to its dtype takes away, over rows spread evenly; 1 is all."""
    rows = sample_rows(pristine)
    exact = fused_rows(pristine, uses, rows)
    update = torch.linalg.matrix_norm(exact - pristine.flatten(1)[rows])
    return float(torch.linalg.matrix_norm(exact.to(pristine.dtype) - exact) / update) if update else 0.0


def obstacle(site: Site) -> str:
    """Why the weight of a site cannot be fused exactly; empty if it can."""
    weight = site.weight.data
    if weight.is_meta:
        return "its weight is offloaded (sequential offload)"
    if type(weight) is not Tensor or weight.dtype not in FUSABLE:
        return f"its weight is a {type(site.weight).__name__} of {weight.dtype}, which would round the sum away"
    return ""
