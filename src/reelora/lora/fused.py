"""Adapters fused into the weights of a model, and the pristine weights back, bit for bit."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reelora.errors import MismatchError, first_few

from .acting import Acting, uses_by_site
from .home import FreeBytes, Home, Reader, choose_home, free_bytes
from .kernel import PairUses, fuse_into, fused_rows, sample_rows
from .offload import any_hooked
from .sites import Site

__all__ = ["FusedWeights", "rounding_loss"]


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

    def __init__(self, sites: Mapping[str, Site], *, home: Home, read: Reader | None, free: FreeBytes = free_bytes) -> None:
        self._sites, self._read, self._free = sites, read, free
        self.home: Home = home
        """Where pristine weights wait; ``auto`` until something is fused for the first time."""
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
        if wanted and self.home == "auto":
            self.home = choose_home(self._needed(wanted), has_file=self._read is not None, free=self._free)
        for name in [name for name in self._fused if name not in wanted]:
            self._restore(name)
        for name, uses in wanted.items():
            if not self._is_fused_so(name, uses):
                self._fuse(name, uses)

    def check_places(self) -> None:
        """Raise MismatchError if something now brings or packs weights that were fused before, so that no other would stay."""
        sites = [self._sites[name] for name in self._fused]
        if all(site.is_plain for site in sites) and not any_hooked(site.chain for site in sites):
            return
        if taken := sorted(site.name for site in sites if site.obstacle):
            raise MismatchError(
                f"Offloading or casting was switched on while {len(taken)} modules were fused ({first_few(taken)}: "
                f"{self._sites[taken[0]].obstacle}). Switch it off, change adapters, and switch it on again."
            )

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
        pristine = held.fetch().to(site.weight) if held else site.weight.data
        fetch = held.fetch if held else self._keeper(name, pristine)
        if held:  # its buffer is written over, and holds neither the old nor the new sum if that fails
            self._fused[name] = replace(held, uses=())
        out = fuse_into(pristine, uses, out=self._buffer(name, pristine))
        self._fused[name] = _Fused(uses, fetch, out)
        site.weight.data = out

    def _needed(self, names: Iterable[str]) -> Counter[torch.device]:
        """Bytes of the weights of some sites, by device."""
        needed: Counter[torch.device] = Counter()
        for weight in (self._sites[name].weight for name in names):
            needed[weight.device] += weight.nbytes
        return needed

    def _is_fused_so(self, name: str, uses: PairUses) -> bool:
        held = self._fused.get(name)
        return held is not None and list(held.uses) == uses and held.weight.dtype == self._sites[name].weight.dtype

    def _restore(self, name: str) -> None:
        weight = self._sites[name].weight
        weight.data = self._fused[name].fetch().to(weight)
        del self._fused[name]

    def _keeper(self, name: str, pristine: Tensor) -> Callable[[], Tensor]:
        if self.home == "file" and self._read is not None:
            return self._file_keeper(name, pristine, self._read)
        kept = pristine if self.home == "kept" else pristine.to("cpu", copy=True)
        return lambda: kept

    def _file_keeper(self, name: str, pristine: Tensor, read: Reader) -> Callable[[], Tensor]:
        if not torch.equal(read(name).to(pristine), pristine):
            raise MismatchError(
                f"{name} has other values in base= than in the model, so that it could not be restored: "
                "name the checkpoint that the model was loaded from, or choose another home."
            )
        return lambda: read(name).to(pristine.dtype)

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
