"""Writing checkpoints as torch.save does, but one tensor at a time: the same tree always gives the same bytes."""

import pickle
import struct
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import accumulate
from math import prod
from operator import mul
from pathlib import Path
from typing import IO, Any, TypeAlias
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2, _rebuild_tensor_v3

from reelora.errors import FileFormatError, first_few

from .archive import BYTE_ORDER_RECORD, LITTLE_ENDIAN, LOCAL_HEADER, PICKLE_RECORD
from .atomic import atomic_path
from .deferred import DeferredTensor, made
from .flatten import MAX_DEPTH, flatten
from .header import DTYPES, is_text, shown
from .stand_ins import STORAGE_CLASSES, Storage, StoredTensor
from .writer import raw_bytes

__all__ = ["Tree", "write_checkpoint"]

ALIGNMENT = 64
"""Where torch lets each record begin, so that a mapped tensor is aligned for any instruction."""
FOLDER = "archive"
VERSION_RECORD, VERSION = "version", b"3\n"
ZIP64_BYTES = 20
"""What zipfile adds to a local header so that its record may have more than 4 GB."""

PADDING = struct.Struct("<2sH")
PICKLE_PROTOCOL = 2
MAX_KEY = 2**31

_PLAIN = (str, int, float, bool, type(None))
_CLASSES = {dtype: getattr(torch, name) for name, dtype in STORAGE_CLASSES.items()}
_DTYPES = {*_CLASSES, *DTYPES.values()}


Tree: TypeAlias = "Tensor | DeferredTensor | Mapping[Any, Tree] | Sequence[Tree] | str | int | float | bool | None"


def write_checkpoint(path: Path, tree: Tree) -> None:
    """Write nested dicts, lists and tuples of tensors and plain values as torch.save does, whole or not at all.

    ``torch.load(path, weights_only=True)`` reads it. Each tensor is written by value in row-major order, so that a small view
    of a large storage stays small; contiguous tensors at one address (and one DeferredTensor in several places) are written
    once and share a storage again. Tensors are streamed: what is mapped or deferred never lies in memory together. Raises
    FileFormatError for what the format cannot hold, before anything is written, and OSError where ``path`` cannot be.
    """
    plan = _Plan()
    laid_out = plan.lay_out("", tree, 0)
    if plan.problems:
        raise FileFormatError(f"{path}: {len(plan.problems)} values cannot be written: {first_few(plan.problems)}.")
    flatten(laid_out, path)
    with atomic_path(path) as temporary, temporary.open("wb") as file, ZipFile(file, "w", ZIP_STORED) as archive:
        for name, content in _records(laid_out, plan.sources):
            _write_record(archive, file, f"{FOLDER}/{name}", content)


class _Plan:
    """The tree as it will be pickled, and the tensors behind its storages."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.sources: dict[str, Tensor | DeferredTensor] = {}
        self._keys: dict[object, str] = {}

    def lay_out(self, name: str, value: object, depth: int) -> object:
        """A copy of ``value`` with StoredTensor for each tensor; what cannot be written is noted as a problem."""
        if depth > MAX_DEPTH:
            self.problems.append(f"{shown(name)} lies deeper than {MAX_DEPTH} dicts and lists")
        elif isinstance(value, Tensor | DeferredTensor):
            return self._tensor(name, value)
        elif isinstance(value, Mapping):
            self._check_keys(name, value)
            return {_fixed(key): self.lay_out(f"{name}.{key}" if depth else f"{key}", value[key], depth + 1) for key in value}
        elif isinstance(value, list | tuple):
            items = [
                self.lay_out(f"{name}.{index}" if depth else f"{index}", item, depth + 1) for index, item in enumerate(value)
            ]
            return items if isinstance(value, list) else tuple(items)
        elif type(value) not in _PLAIN or (type(value) is str and not is_text(value)):
            self.problems.append(f"{shown(name)} is a {type(value).__name__}, no tensor, dict, list or plain value")
        return _fixed(value)

    def _check_keys(self, name: str, mapping: Mapping[Any, object]) -> None:
        legal = (is_text(key) or (type(key) is int and abs(key) < MAX_KEY) for key in mapping)
        self.problems += [
            f"{shown(name)} has the key {shown(key)}, no text" for key, good in zip(mapping, legal, strict=True) if not good
        ]

    def _tensor(self, name: str, tensor: Tensor | DeferredTensor) -> StoredTensor | None:
        if tensor.dtype not in _DTYPES or not _has_values(tensor):
            self.problems.append(f"{shown(name)} is a tensor of {tensor.dtype} without plain values (meta, sparse, quantised)")
            return None
        shape = tuple(tensor.shape)
        key = self._keys.setdefault(_address(tensor), sys.intern(str(len(self._keys))))
        self.sources.setdefault(key, tensor)
        storage = Storage(key, tensor.dtype, prod(shape) * tensor.dtype.itemsize)
        return StoredTensor(storage, tensor.dtype, shape, _contiguous_stride(shape), 0)


class _Pickler(pickle.Pickler):
    """Spells StoredTensor and Storage in the words of torch."""

    def persistent_id(self, obj: object) -> tuple[object, ...] | None:
        if not isinstance(obj, Storage):
            return None
        if obj.dtype in _CLASSES:
            return "storage", _CLASSES[obj.dtype], obj.key, "cpu", obj.size_bytes // obj.dtype.itemsize
        return "storage", torch.UntypedStorage, obj.key, "cpu", obj.size_bytes

    def reducer_override(self, obj: object) -> Any:
        if not isinstance(obj, StoredTensor):
            return NotImplemented
        view = (obj.storage, obj.offset, obj.shape, obj.stride, False, OrderedDict())
        if obj.dtype in _CLASSES:
            return _rebuild_tensor_v2, view
        return _rebuild_tensor_v3, (*view, obj.dtype)


def _records(tree: object, sources: Mapping[str, Tensor | DeferredTensor]) -> Iterator[tuple[str, bytes | memoryview]]:
    """Name and bytes of each record in turn."""
    pickled = BytesIO()
    _Pickler(pickled, PICKLE_PROTOCOL).dump(tree)
    yield PICKLE_RECORD, pickled.getvalue()
    yield BYTE_ORDER_RECORD, LITTLE_ENDIAN
    yield VERSION_RECORD, VERSION
    for key, source in sources.items():
        yield f"data/{key}", raw_bytes(made(source))


def _write_record(archive: ZipFile, file: IO[bytes], name: str, content: bytes | memoryview) -> None:
    """Append a record whose bytes begin at a multiple of ``ALIGNMENT``."""
    entry = ZipInfo(name)
    entry.create_system = 0
    header_bytes = LOCAL_HEADER.size + len(name) + ZIP64_BYTES + PADDING.size
    padding = -(file.tell() + header_bytes) % ALIGNMENT
    entry.extra = PADDING.pack(b"FB", padding) + bytes(padding)
    with archive.open(entry, "w", force_zip64=True) as record:
        record.write(content)
    entry.extra = b""  # The directory at the end needs no padding.


def _has_values(tensor: Tensor | DeferredTensor) -> bool:
    if isinstance(tensor, DeferredTensor):
        return True
    return tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized


def _address(tensor: Tensor | DeferredTensor) -> object:
    """What two tensors have in common exactly when they have the same bytes for the same reason."""
    if (
        isinstance(tensor, DeferredTensor)
        or not tensor.numel()
        or not tensor.is_contiguous()
        or tensor.is_conj()
        or tensor.is_neg()
    ):
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.numel()


def _contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    steps = [max(size, 1) for size in shape[:0:-1]]
    return tuple(reversed([*accumulate(steps, mul, initial=1)])) if shape else ()


def _fixed(value: object) -> Any:
    # Equal texts become one object: a pickle refers back to objects, so its bytes would depend on which are the same.
    return sys.intern(value) if type(value) is str else value
