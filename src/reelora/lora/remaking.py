"""Tensors that the backward pass makes again instead of keeping them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["NOTHING_REMADE", "Remaking", "share_memory"]

Make = Callable[[], Tensor]


class Remaking:
    """What `later` was told of is not kept by what runs inside `hooks`: the backward pass calls the function that makes it.

    That has to give the same values in the same layout, from tensors that are kept anyway. ``inputs`` makes those of an
    attention again, video and text.
    """

    def __init__(self, inputs: Callable[[], tuple[Tensor, Tensor]] | None = None) -> None:
        self.inputs = inputs
        self._makers: dict[StorageWeakRef, Make] = {}

    def later(self, made: Tensor, make: Make) -> None:
        """Do not keep ``made``, which ``make`` makes again."""
        self._makers[_memory(made)] = make

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Leave out what is kept inside."""
        with saved_tensors_hooks(self._pack, _unpack) if self._makers else nullcontext():
            yield

    def _pack(self, kept: Tensor) -> Callable[[], Tensor] | Tensor:
        make = self._makers.get(_memory(kept))
        if make is None:
            return kept
        size, stride, offset = kept.size(), kept.stride(), kept.storage_offset()
        return lambda: make().as_strided(size, stride, offset)


class _NothingRemade(Remaking):
    """Keeps what autograd keeps."""

    def later(self, made: Tensor, make: Make) -> None:
        pass


NOTHING_REMADE: Remaking = _NothingRemade()


@torch.no_grad()
def _unpack(packed: Callable[[], Tensor] | Tensor) -> Tensor:
    return packed if isinstance(packed, Tensor) else packed()


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether one is a view of the other."""
    return _memory(one) == _memory(other)


def _memory(tensor: Tensor) -> StorageWeakRef:
    """Equal for views of one another; while it is held, nothing else can become equal to it."""
    return StorageWeakRef(tensor.untyped_storage())
