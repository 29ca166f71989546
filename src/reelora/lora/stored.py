"""The frozen base of a model in less memory of the device: packed, waiting in the host's memory, or both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from math import sqrt
from typing import Any, Self

import torch
from torch import Tensor, nn

from reelora.errors import ConfigError, MismatchError, first_few

from .branch import StandIn, is_hooked
from .frozen import FrozenLinear, Placeholder, Read
from .model import swap
from .ring import BUFFERS, Copier, Ring
from .storage import FORMS, Form, Parts, Storage, check_storage

__all__ = ["StoredBase", "base_bytes", "store_base", "stored_base_bytes"]

_MARK = "_reelora_stored"
_ALIGNMENT = 64
"""Bytes: of the beginning of every tensor in a block, as torch itself aligns tensors on a CPU."""
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class StoredBase:
    """How the large frozen weights of a model are kept."""

    storage: Storage
    device: torch.device
    num_layers: int
    num_blocks: int
    precision_bytes: int
    """Of the weights of these layers in the precision that they compute in."""
    packed_bytes: int
    """Of all of these as they are kept."""
    change: float
    """How far the weights of the first block are from what they were, relative to their size (root of mean squares)."""
    ring: Ring | None
    """Of those that wait in the host's memory."""

    @property
    def device_bytes(self) -> int:
        """That these weights take on the device, all the time."""
        return self.ring.nbytes if self.ring else self.packed_bytes

    def rows(self) -> list[tuple[str, str]]:
        """Label and text of every line to print."""
        sizes = f"{_size(self.device_bytes)} on {self.device} instead of {_size(self.precision_bytes)}"
        texts = [f"{self.num_layers} layers of {self.num_blocks} blocks take {sizes}"]
        if not FORMS[self.storage].is_exact:
            texts.append(f"{self.storage} changes weights by {self.change:.1%}; slower: every use makes them again")
        if self.ring:
            texts.append(f"{_size(self.packed_bytes)} wait in the host's memory; a block is copied while another computes")
        if self.ring and self.device.type == "cpu":
            texts.append("this device is the host itself: base.stream costs copies here and saves nothing")
        return [("stored", text) for text in texts]


def store_base(
    model: nn.Module, storage: Storage, *, stream: bool, device: torch.device, copier: Copier | None = None
) -> StoredBase:
    """Keep the weights of the Linears in a model's blocks as ``storage`` says, and put all else on ``device``.

    With ``stream`` they wait in the host's memory, pinned where there is CUDA, and are copied ahead of their use into room for
    two blocks; nothing is copied back. Blocks are what the model holds in lists of modules; what lies outside of them, hooked
    layers and those of other classes stay as they are. No more than one block is in memory twice while it is converted.

    The model computes on ``device`` from then on; its fingerprints are to be taken before. There is no way back but to load it
    again. Raises ConfigError for a form whose package is missing or that cannot hold the weights, MismatchError for a model
    that has branches, has no such layers, or is stored already; then nothing has changed.
    """
    check_storage(storage)
    blocks, form = _blocks_of(model), FORMS[storage]
    if not form.is_exact:
        _check_finite(model, blocks, storage)
    shelf = _Host(device, copier) if stream else _Device(device)
    packed_bytes = precision_bytes = 0
    changes: list[float] = []
    for paths in blocks:
        linears: dict[str, Any] = {path: model.get_submodule(path) for path in paths}
        packed = [_Packed.of(linear.weight.data, form, device) for linear in linears.values()]
        changes = changes or [one.change(linear.weight.data) for one, linear in zip(packed, linears.values(), strict=True)]
        packed_bytes += sum(one.nbytes for one in packed)
        precision_bytes += sum(linear.weight.nbytes for linear in linears.values())
        reads = zip(linears.items(), shelf.take(packed), strict=True)
        swap(model, {path: FrozenLinear(linear, read, device=device) for (path, linear), read in reads})
    ring = shelf.close()
    model.to(device)
    stored = StoredBase(
        storage=storage,
        device=device,
        num_layers=sum(map(len, blocks)),
        num_blocks=len(blocks),
        precision_bytes=precision_bytes,
        packed_bytes=packed_bytes,
        change=sqrt(sum(change**2 for change in changes) / len(changes)),
        ring=ring,
    )
    vars(model)[_MARK] = stored
    return stored


def base_bytes(model: nn.Module) -> int:
    """Memory that all frozen tensors of a model take where it computes, whichever way its base is stored."""
    tensors = [*model.parameters(), *model.buffers()]
    plain = sum(t.nbytes for t in tensors if not t.requires_grad and not isinstance(t, Placeholder))
    stored = [vars(module)[_MARK] for module in model.modules() if _MARK in vars(module)]
    return plain + sum(one.device_bytes for one in stored)


def stored_base_bytes(model: nn.Module, storage: Storage, *, stream: bool) -> int:
    """What `base_bytes` will say once the base of ``model`` is stored so; its weights need no values, and may have branches.

    With what the largest of them takes where it is made again, of which a plan without a rehearsal of it would not know.
    """
    form, modules = FORMS[storage], dict(model.named_modules())
    originals = {path: module.base if isinstance(module, StandIn) else module for path, module in modules.items()}
    linears = [path for path, module in originals.items() if _is_plain_linear(module)]
    weights: dict[str, list[Any]] = {
        block: [modules[path]._parameters["weight"] for path in paths]
        for block, paths in groupby(linears, partial(_block_of, modules))
        if block
    }
    packed = [[form.nbytes(weight.shape, weight.itemsize) for weight in block] for block in weights.values()]
    sizes = sorted((sum(size + -size % _ALIGNMENT for size in block) for block in packed), reverse=True)
    kept = sum(sizes[:BUFFERS]) if stream else sum(map(sum, packed))
    every = [weight.nbytes for block in weights.values() for weight in block]
    return base_bytes(model) - sum(every) + kept + (0 if form.is_exact else max(every, default=0))


Unpack = Callable[[Parts], Tensor]
"""Makes a weight again. It holds nothing of the weight itself."""


@dataclass(frozen=True, kw_only=True)
class _Packed:
    """A weight as it is kept."""

    parts: Parts
    unpack: Unpack

    @classmethod
    def of(cls, weight: Tensor, form: Form, device: torch.device) -> Self:
        parts = form.pack(weight if form.is_exact else weight.to(device))
        return cls(parts=parts, unpack=partial(_unpacked, form, weight.shape, weight.dtype))

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def change(self, weight: Tensor) -> float:
        """How far it is from the weight that it was made of, relative to that."""
        then = weight.to(self.parts[0].device).float()
        return float((self.unpack(self.parts).float() - then).norm() / then.norm().clamp_min(1e-30))


def _unpacked(form: Form, shape: torch.Size, dtype: torch.dtype, parts: Parts) -> Tensor:
    return form.unpack(parts, shape, dtype)


class _Device:
    """Keeps packed weights on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def take(self, block: Sequence[_Packed]) -> list[Read]:
        """Ways to read the weights of a block again."""
        return [partial(one.unpack, [part.to(self._device) for part in one.parts]) for one in block]

    def close(self) -> None:
        """There is nothing to bring."""


class _Host:
    """Keeps packed weights in the host's memory, those of a block in one piece, and brings them to the device."""

    def __init__(self, device: torch.device, copier: Copier | None) -> None:
        self._device, self._copier = device, copier
        self._blocks: list[Tensor] = []
        self._ring: Ring

    def take(self, block: Sequence[_Packed]) -> list[Read]:
        """Ways to read the weights of a block again, once this is closed."""
        places = _places([part for one in block for part in one.parts])
        flat = torch.empty(places[-1].stop, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        index, left = len(self._blocks), iter(places)
        self._blocks.append(flat)
        reads: list[Read] = []
        for one in block:
            views = [_View(next(left), part.shape, part.dtype) for part in one.parts]
            for view, part in zip(views, one.parts, strict=True):
                view.of(flat).copy_(part)
            reads.append(partial(self._read, index, views, one.unpack))
        return reads

    def close(self) -> Ring:
        """Everything has been taken."""
        self._ring = Ring(self._blocks, self._device, copier=self._copier)
        return self._ring

    def _read(self, index: int, views: Sequence["_View"], unpack: Unpack) -> Tensor:
        buffer = self._ring.fetch(index)
        return unpack([view.of(buffer) for view in views])


@dataclass(frozen=True)
class _View:
    """Where a tensor lies in a block."""

    place: slice
    shape: torch.Size
    dtype: torch.dtype

    def of(self, buffer: Tensor) -> Tensor:
        return buffer[self.place].view(self.dtype).view(self.shape)


def _places(parts: Sequence[Tensor]) -> list[slice]:
    places, end = [], 0
    for part in parts:
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = start + part.nbytes
        places.append(slice(start, end))
    return places


def _blocks_of(model: nn.Module) -> list[list[str]]:
    """Paths of the plain Linears of each block, in the model's own order."""
    if _MARK in vars(model):
        raise MismatchError(f"The base of this {type(model).__name__} is stored already: load it again.")
    modules = dict(model.named_modules())
    if held := [path for path, module in modules.items() if isinstance(module, StandIn)]:
        raise MismatchError(f"This model has {len(held)} branches already ({first_few(held)}): store the base, then attach.")
    found = [path for path, module in modules.items() if _is_plain_linear(module)]
    blocks = [list(paths) for block, paths in groupby(found, partial(_block_of, modules)) if block]
    if not blocks:
        raise MismatchError(f"This {type(model).__name__} has no plain Linears in repeated blocks: base.storage is for those.")
    return blocks


def _is_plain_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear and not is_hooked(module)


def _block_of(modules: Mapping[str, nn.Module], path: str) -> str:
    """The path of the outermost entry of a list of modules that a module lies in; empty where it lies in none."""
    names = path.split(".")
    stems = [".".join(names[:length]) for length in range(1, len(names))]
    return next((f"{stem}.{names[n]}" for n, stem in enumerate(stems, 1) if isinstance(modules[stem], nn.ModuleList)), "")


def _check_finite(model: nn.Module, blocks: Sequence[Sequence[str]], storage: Storage) -> None:
    weights = {path: model.get_submodule(path)._parameters["weight"] for paths in blocks for path in paths}
    if wrong := [path for path, weight in weights.items() if weight is None or not weight.isfinite().all()]:
        raise ConfigError(
            f"{len(wrong)} weights of the base hold values that are no finite numbers ({first_few(wrong)}): base.storage "
            f"{storage} cannot keep those. Is the model's file intact, and its precision the one that it was released in?"
        )


def _size(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB // 10 else f"{size / 2**20:.1f} MiB"
