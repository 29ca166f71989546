"""Tensors that are made when they are asked for, so that no two of them need memory at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from mmap import mmap

import torch
from torch import Tensor

__all__ = ["DeferredStore", "DeferredTensor", "cat_apart", "empty_apart", "made"]


@dataclass(frozen=True, slots=True)
class DeferredTensor:
    """A tensor that is made when its turn comes, every time anew."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    compute: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class DeferredStore(Mapping[str, Tensor]):
    """Deferred tensors by name; none of them is kept."""

    def __init__(self, tensors: Mapping[str, DeferredTensor]) -> None:
        self.tensors = dict(tensors)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, without making any."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @cached_property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The dtype of every tensor, without making any."""
        return {name: tensor.dtype for name, tensor in self.tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        return made(self.tensors[name])

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        return f"DeferredStore({len(self)} tensors)"


def empty_apart(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty tensor in pages of its own, which the system has back as soon as nobody holds it.

    Of the heap small allocations take a bite wherever a large tensor was freed, so that the next one has to go elsewhere: a
    stream of equal tensors would keep all their memory together.
    """
    size_bytes = prod(shape) * dtype.itemsize
    if not size_bytes:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(mmap(-1, size_bytes), dtype=dtype).view(tuple(shape))


def cat_apart(pieces: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors behind each other along ``dim``, in memory as of `empty_apart`."""
    shape = list(pieces[0].shape)
    shape[dim] = sum(piece.shape[dim] for piece in pieces)
    return torch.cat(list(pieces), dim=dim, out=empty_apart(shape, pieces[0].dtype))


def made(source: Tensor | DeferredTensor) -> Tensor:
    """The values, made now if they were deferred."""
    if isinstance(source, Tensor):
        return source
    tensor = source.compute()
    assert (tuple(tensor.shape), tensor.dtype) == (source.shape, source.dtype), "a deferred tensor is not what it promised"
    return tensor
