"""Adapters fused into the weights of a model, and the pristine weights back, bit for bit."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from reelora.errors import MismatchError, first_few

from .acting import Acting, uses_by_site
from .home import FreeBytes, Home, Reader, choose_home, free_bytes
from .kernel import PairUses, fuse_into, fused_rows, sample_rows
from .offload import any_hooked
from .rounding import Noise
from .sites import Site
from .workers import for_each

__all__ = ["FusedWeights", "rounding_loss"]


@dataclass(frozen=True, eq=False)
class _Fused:
    """One site whose weight is fused."""

    uses: PairUses
    kept: Tensor | None
    """The pristine weight; None if it is read again from its file."""
    dtype: torch.dtype
    """Of the pristine weight."""
    weight: Tensor
    """What was put in its place."""


class FusedWeights:
    """Every weight is formed from the pristine one, so no order of calls leaves a trace.

    Buffers of fused weights are kept and used again: their first touch costs more than the arithmetic.
    """

    def __init__(
        self, sites: Mapping[str, Site], *, home: Home, read: Reader | None, noise: Noise, free: FreeBytes = free_bytes
    ) -> None:
        self._sites, self._read, self._noise, self._free = sites, read, noise, free
        self.home: Home = home
        """Where pristine weights wait; ``auto`` until something is fused for the first time."""
        self._fused: dict[str, _Fused] = {}
        self._buffers: dict[str, Tensor] = {}
        self._around: Sequence[nn.Module] | None = None
        """What `check_places` looks at, kept for the next time."""

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
        return self._fetch(name, held) if held else self._sites[name].weight.data

    def apply(self, acting: Acting) -> None:
        """Fuse what acts into the pristine weights, and restore every other weight."""
        wanted = uses_by_site(acting)
        if wanted and self.home == "auto":
            self.home = choose_home(self._needed(wanted), has_file=self._read is not None, free=self._free)
        for name in [name for name in self._fused if name not in wanted]:
            self._restore(name)
        self._fuse_all({name: uses for name, uses in wanted.items() if not self._is_fused_so(name, uses)})

    def check_places(self) -> None:
        """Raise MismatchError if something now brings or packs weights that were fused before, so that no other would stay."""
        sites = [self._sites[name] for name in self._fused]
        if all(site.is_plain for site in sites) and not any_hooked(self._around_fused()):
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
        pristine = {name: self._fetch(name, fused).to(fused.weight.device) for name, fused in held.items()}
        return {name: rounding_loss(pristine[name], fused.uses) for name, fused in held.items()}

    def _around_fused(self) -> Sequence[nn.Module]:
        """The modules whose weights are fused and all that they lie in, and maybe some more."""
        if self._around is None:  # in the order of the model, which is that of its memory
            self._around = tuple(dict.fromkeys(module for name in self._fused for module in self._sites[name].chain))
        return self._around

    def _fuse_all(self, wanted: Mapping[str, PairUses]) -> None:
        """Weights of a processor beside each other, those of an accelerator in turn."""
        if wanted.keys() - self._fused.keys():
            self._around = None
        weights = {name: self._sites[name].weight for name in wanted}
        is_here = all(weight.device.type == "cpu" for weight in weights.values())
        if is_here:  # not in the threads, since the allocator would keep what they free for threads alone
            for name, weight in weights.items():
                self._buffer(name, weight)
        size_bytes = sum(weight.nbytes for weight in weights.values()) if is_here else 0
        for_each(lambda name: self._fuse(name, wanted[name]), list(wanted), size_bytes=size_bytes)

    def _fuse(self, name: str, uses: PairUses) -> None:
        site = self._sites[name]
        held = self._fused.get(name)
        pristine = self._fetch(name, held).to(site.weight) if held else site.weight.data
        kept, dtype = (held.kept, held.dtype) if held else (self._keep(name, pristine), pristine.dtype)
        if held:  # its buffer is written over, and holds neither the old nor the new sum if that fails
            self._fused[name] = replace(held, uses=())
        out = fuse_into(pristine, uses, out=self._buffer(name, pristine), noise=self._noise(f"{name}.weight"))
        self._fused[name] = _Fused(uses, kept, dtype, out)
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
        weight.data = self._fetch(name, self._fused[name]).to(weight)
        del self._fused[name]

    def _fetch(self, name: str, held: _Fused) -> Tensor:
        """The pristine weight, where and as it is kept."""
        return held.kept if held.kept is not None else self._read_again(name).to(held.dtype)

    def _keep(self, name: str, pristine: Tensor) -> Tensor | None:
        """What has to be kept to restore a weight later."""
        if self.home == "file":
            self._check_file(name, pristine)
            return None
        return pristine if self.home == "kept" else pristine.to("cpu", copy=True)

    def _check_file(self, name: str, pristine: Tensor) -> None:
        if not torch.equal(self._read_again(name).to(pristine), pristine):
            raise MismatchError(
                f"{name} has other values in base= than in the model, so that it could not be restored: "
                "name the checkpoint that the model was loaded from, or choose another home."
            )

    def _read_again(self, name: str) -> Tensor:
        assert self._read is not None, "home is file only where there is one"
        return self._read(name)

    def _buffer(self, name: str, pristine: Tensor) -> Tensor:
        """Memory for the fused weight: that of last time, if it is where the weight is now."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.device != pristine.device or buffer.dtype != pristine.dtype:
            with torch.inference_mode(mode=False):  # what is made in it could not be written again outside of it
                buffer = self._buffers[name] = torch.empty_like(pristine, memory_format=torch.contiguous_format)
        return buffer


@torch.no_grad()
def rounding_loss(pristine: Tensor, uses: PairUses) -> float:
    """The share of an update that rounding the fused weight to its dtype takes away, over rows spread evenly; 1 is all."""
    rows = sample_rows(pristine)
    exact = fused_rows(pristine, uses, rows)
    update = torch.linalg.matrix_norm(exact - pristine.flatten(1)[rows])
    return float(torch.linalg.matrix_norm(exact.to(pristine.dtype) - exact) / update) if update else 0.0
