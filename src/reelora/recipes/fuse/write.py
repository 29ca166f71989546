"""Carrying a plan out: the files of the base again, with other values where adapters act."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from reelora.errors import AdapterError
from reelora.lora import fuse_into, lost_share
from reelora.tensorio import atomic_folder, atomic_path, copy_file, rewrite_tensors

from .plan import FusePlan

__all__ = ["OnDone", "Scratch", "fresh_output", "fused_tensor", "write_files"]

OnDone = Callable[[], object]


class Scratch:
    """Memory for one fused weight after another: the first touch of memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def like(self, tensor: Tensor) -> Tensor:
        """Room of a tensor's shape and dtype; what it holds is lost when the next is asked for."""
        if tensor.nbytes > len(self._bytes):
            self._bytes = torch.empty(tensor.nbytes, dtype=torch.uint8)
        return self._bytes[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)


def fresh_output(plan: FusePlan) -> AbstractContextManager[Path]:
    """Where to write: a hidden neighbour, which becomes the output when the block ends well. Errors name the output."""
    return (atomic_path if plan.base.is_file else atomic_folder)(plan.output)


def write_files(plan: FusePlan, fresh: Path, on_done: OnDone) -> dict[str, float]:
    """Write every file of the plan; the share of each update that rounding has taken, by ``role.tensor``.

    ``on_done`` is called after each tensor that is fused and each file that is copied.
    """
    lost: dict[str, float] = {}
    for role, store in plan.base.stores.items():
        for source in dict.fromkeys(store.files.values()):
            lost |= _rewrite(plan, role, source, fresh / plan.base.place(source), on_done)
    for place, source in plan.files.copied.items():
        _put(source, fresh / place, link=plan.is_linked(source))
        on_done()
    return lost


def fused_tensor(plan: FusePlan, role: str, name: str, scratch: Scratch) -> Tensor:
    """One weight with everything that acts on it; AdapterError where the sum is no finite number in its dtype."""
    weight = plan.base.stores[role][name]
    fused = fuse_into(weight, plan.tensors[role][name], scratch.like(weight), noise=plan.noise(f"{role}.{name}"))
    if not all(torch.isfinite(end) for end in torch.aminmax(fused)):
        dtype = str(weight.dtype).removeprefix("torch.")
        raise AdapterError(
            f"{role}.{name} would hold NaN or infinite values: the base has them, or these strengths are too much for {dtype}."
        )
    return fused


def _rewrite(plan: FusePlan, role: str, source: Path, target: Path, on_done: OnDone) -> dict[str, float]:
    """Write one file of weights."""
    store = plan.base.stores[role]
    names = [name for name in plan.tensors[role] if store.files[name] == source]
    lost: dict[str, float] = {}

    def make(names: Sequence[str]) -> Iterator[Tensor]:
        for name, (fused, share) in zip(names, _fused_ahead(plan, role, names), strict=True):
            lost[f"{role}.{name}"] = share
            yield fused
            on_done()

    if names:
        target.parent.mkdir(parents=True, exist_ok=True)
        rewrite_tensors(source, target, names, make, metadata=plan.metadata)
    else:
        _put(source, target, link=plan.is_linked(source))
    return lost


def _fused_ahead(plan: FusePlan, role: str, names: Sequence[str]) -> Iterator[tuple[Tensor, float]]:
    """Fused weights with the share that rounding has taken, each computed while the one before it is written."""
    rooms = (Scratch(), Scratch())

    def compute(place: int) -> tuple[Tensor, float]:
        name = names[place]
        fused = fused_tensor(plan, role, name, rooms[place % 2])
        return fused, lost_share(plan.base.stores[role][name], fused, plan.tensors[role][name])

    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = pool.submit(compute, 0)
        for place in range(1, len(names)):
            ready, ahead = ahead.result(), pool.submit(compute, place)
            yield ready
        yield ahead.result()


def _put(source: Path, target: Path, *, link: bool) -> None:
    """A copy of a file, or another name of it where that is wished and the filesystem can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        try:
            os.link(source.resolve(), target)
        except OSError:  # another filesystem, or one without links
            link = False
    if not link:
        copy_file(source, target)
