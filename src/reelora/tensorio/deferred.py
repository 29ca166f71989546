"""Tensors that are made when they are asked for, so that no two of them need memory at a time."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

__all__ = ["DeferredStore", "DeferredTensor", "made"]


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


def made(source: Tensor | DeferredTensor) -> Tensor:
    """The values, made now if they were deferred."""
    if isinstance(source, Tensor):
        return source
    tensor = source.compute()
    assert (tuple(tensor.shape), tensor.dtype) == (source.shape, source.dtype), "a deferred tensor is not what it promised"
    return tensor
