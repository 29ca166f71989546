"""What the pickle of a checkpoint may name, and what stands in for it: none of it is the real thing, nothing of it runs.

Each call costs the same however long its arguments are, since a pickle can hand one long argument to a million calls.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch

from .header import DTYPES, MAX_DIMENSIONS, MAX_TENSOR_BYTES

__all__ = ["ALLOWED", "STORAGE_CLASSES", "StandIn", "Storage", "StorageClass", "StoredTensor", "Unread", "storage_of"]

MAX_KEY = 64
"""Letters of a storage's key; torch counts storages, so real ones have a few digits."""


@dataclass(frozen=True, slots=True)
class StorageClass:
    """The class of a storage; ``dtype`` is None for bytes whose tensors say the dtype themselves."""

    dtype: torch.dtype | None


@dataclass(frozen=True, slots=True)
class Storage:
    """The record ``data/KEY`` of the archive, as the pickle refers to it."""

    key: str
    dtype: torch.dtype | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A strided view of a storage, counted in elements; nothing proves yet that the storage is that large."""

    storage: Storage
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    is_conjugate: bool = False
    is_negative: bool = False


@dataclass(frozen=True, slots=True)
class Unread:
    """An object that is not made again, such as the state of numpy's random numbers."""

    name: str


@dataclass(frozen=True, slots=True)
class StandIn:
    """What a pickle gets where it names a function or class: ``build`` takes the arguments of the call."""

    name: str
    build: Callable[[Sequence[object]], object]


def storage_of(reference: object) -> Storage:
    """The storage that a persistent id ``("storage", class, key, location, count)`` names; raises ValueError for others."""
    match reference:
        case ("storage", StorageClass(dtype=dtype), str(key), str(), int(count)) if _is_count(count) and len(key) <= MAX_KEY:
            return Storage(key, dtype, count * (dtype or torch.uint8).itemsize)
    raise ValueError("refers to something outside of the pickle that is no storage")


def _ordered_dict(arguments: Sequence[object]) -> dict[object, object]:
    if arguments:
        raise ValueError("makes an OrderedDict with arguments, as torch.save never does")
    return {}


def _tensor(arguments: Sequence[object]) -> StoredTensor:
    match arguments:
        case (Storage(dtype=torch.dtype() as dtype) as storage, offset, shape, stride, bool(), dict(), *metadata):
            return _view(storage, dtype, offset, shape, stride, metadata)
    raise ValueError("makes a tensor of wrong arguments")


def _tensor_of_dtype(arguments: Sequence[object]) -> StoredTensor:
    match arguments:
        case (Storage() as storage, offset, shape, stride, bool(), dict(), torch.dtype() as dtype, *metadata):
            return _view(storage, dtype, offset, shape, stride, metadata)
    raise ValueError("makes a tensor of wrong arguments")


def _view(
    storage: Storage, dtype: torch.dtype, offset: object, shape: object, stride: object, metadata: Sequence[object]
) -> StoredTensor:
    if not _are_counts(shape) or not _are_counts(stride) or not _is_count(offset):
        raise ValueError("makes a tensor whose shape, stride or offset are no counts")
    bits = metadata[0] if metadata else {}
    if not _are_bits(bits, dtype) or len(metadata) > 1:
        raise ValueError("makes a tensor with other marks than torch has for its dtype")
    return StoredTensor(storage, dtype, shape, stride, offset, bits.get("conj", False), bits.get("neg", False))


def _parameter(arguments: Sequence[object]) -> StoredTensor:
    match arguments:
        case (StoredTensor() as tensor, bool(), dict(), *state) if len(state) <= 1:
            return tensor
    raise ValueError("makes a parameter of something other than a tensor")


def _size(arguments: Sequence[object]) -> tuple[int, ...]:
    match arguments:
        case (shape,) if _are_counts(shape):
            return shape
    raise ValueError("makes a torch.Size of something other than counts")


def _unread(name: str) -> StandIn:
    return StandIn(name, lambda _: Unread(name))


def _is_count(value: object) -> TypeGuard[int]:
    # ``type is int``: true and false are ints to isinstance, and pickles have both.
    return type(value) is int and 0 <= value <= MAX_TENSOR_BYTES


def _are_counts(value: object) -> TypeGuard[tuple[int, ...]]:
    return type(value) is tuple and len(value) <= MAX_DIMENSIONS and all(map(_is_count, value))


def _are_bits(value: object, dtype: torch.dtype) -> TypeGuard[dict[str, bool]]:
    """Whether these are the marks of lazy conjugation and negation, where the dtype can have them."""
    legal = {"conj": dtype.is_complex, "neg": dtype.is_complex or dtype.is_floating_point}
    return (
        type(value) is dict
        and len(value) <= len(legal)
        and all(legal.get(key, False) and type(bit) is bool for key, bit in value.items())
    )


STORAGE_CLASSES: Mapping[str, torch.dtype] = {
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
"""Classes of ``torch`` by name. Newer dtypes have none: their tensors view an UntypedStorage."""

CONSTRUCTORS: Mapping[str, Callable[[Sequence[object]], object]] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter,
    "torch Size": _size,
}

UNREAD = [
    "torch device",
    "_codecs encode",
    "numpy ndarray",
    "numpy dtype",
    "numpy.core.multiarray _reconstruct",
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray _reconstruct",
    "numpy._core.multiarray scalar",
]

ALLOWED: Mapping[str, object] = {
    **{f"torch {name}": StorageClass(dtype) for name, dtype in STORAGE_CLASSES.items()},
    "torch.storage UntypedStorage": StorageClass(None),
    **{str(dtype).replace(".", " "): dtype for dtype in (*DTYPES.values(), torch.complex128)},
    **{name: StandIn(name, build) for name, build in CONSTRUCTORS.items()},
    **{name: _unread(name) for name in UNREAD},
}
"""``module name``, as a pickle spells it, to what it gets. Everything else is refused by its name."""
