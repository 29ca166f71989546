"""Named tensors of a checkpoint that torch.save wrote, mapped rather than read; no code of its pickle runs."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reelora.errors import FileFormatError, nearest

from .archive import PICKLE_RECORD, Archive, open_archive
from .flatten import flatten
from .header import MAX_TENSOR_BYTES, shown
from .stand_ins import Storage, StoredTensor
from .unpickle import unpickle

__all__ = ["CheckpointStore", "open_checkpoint"]

MAX_REPEATED_BYTES = 64 * 2**20
"""The largest tensor that may show one element many times (``expand``): a few bytes could claim any amount of memory."""


def open_checkpoint(path: Path, *, root: str = "") -> "CheckpointStore":
    """Map the tensors of a ``.pt`` file of torch 1.6 or newer, under their dotted names in its dicts and lists.

    ``root`` chooses one part, as ``under`` does. The zip directory, the pickle and the place of every tensor are proved before
    this returns; no tensor is read. Raises FileFormatError that says what is wrong where, by name for whatever in the pickle is
    no tensor, dict, list or plain value; and OSError where the file is missing or unreadable.
    """
    archive = open_archive(Path(path))
    leaves = flatten(unpickle(archive.read(PICKLE_RECORD), archive.path), archive.path)
    tensors = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, StoredTensor)}
    storages = {stored.storage.key: stored.storage for stored in tensors.values()}
    problems = [
        f"{shown(name)} {problem}"
        for name, stored in tensors.items()
        for problem in _problems(stored, archive, storages[stored.storage.key])
    ]
    if problems:
        raise FileFormatError(
            f"{archive.path}: {len(problems)} of {len(tensors)} tensors do not lie in their records: "
            f"{'; '.join(problems[:3])}. Copy or download the file again."
        )
    store = CheckpointStore(archive, tensors, {name: leaf for name, leaf in leaves.items() if name not in tensors})
    return store.under(root) if root else store


class CheckpointStore(Mapping[str, Tensor]):
    """Tensors by dotted name, each a view of the mapped file: nothing is copied until it is touched.

    ``notes`` holds all other values of the file by dotted name, whatever part was chosen; an object that is not made again
    (the state of numpy's random numbers) is there as ``Unread``. Tensors that share a storage in the file share memory. The
    pages are private to this process: writing into a tensor never reaches the file. No tensor requires a gradient.
    """

    def __init__(self, archive: Archive, tensors: Mapping[str, StoredTensor], notes: Mapping[str, Any]) -> None:
        self.path = archive.path
        self.notes = notes
        self._archive = archive
        self._tensors = tensors
        self._storages: dict[str, Tensor] = {}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, from the pickle alone."""
        return {name: stored.shape for name, stored in self._tensors.items()}

    @cached_property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The stored dtype of every tensor, from the pickle alone."""
        return {name: stored.dtype for name, stored in self._tensors.items()}

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of all tensors together; shared ones count each time."""
        return sum(prod(stored.shape) * stored.dtype.itemsize for stored in self._tensors.values())

    def under(self, root: str) -> "CheckpointStore":
        """The tensors below one dotted name, such as ``module``, named without it.

        Raises FileFormatError that lists what the file holds where nothing lies there.
        """
        prefix = f"{root}."
        chosen = {name.removeprefix(prefix): stored for name, stored in self._tensors.items() if name.startswith(prefix)}
        if not chosen:
            tops = dict.fromkeys(name.partition(".")[0] for name in self._tensors)
            raise FileFormatError(
                f"{self.path}: no tensor lies under {root!r}: {nearest(root, tops) if tops else 'it holds no tensor at all'}"
            )
        return CheckpointStore(self._archive, chosen, self.notes)

    def __getitem__(self, name: str) -> Tensor:
        stored = self._tensors[name]
        if not prod(stored.shape):
            return torch.empty(stored.shape, dtype=stored.dtype)
        raw = self._storage(stored.storage.key)
        whole = raw[: raw.numel() // stored.dtype.itemsize * stored.dtype.itemsize].view(stored.dtype)
        view = whole.as_strided(stored.shape, stored.stride, stored.offset)
        view = view.conj() if stored.is_conjugate else view
        return view.neg() if stored.is_negative else view

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"CheckpointStore({str(self.path)!r}, {len(self)} tensors, {self.size_bytes:,} bytes)"

    def _storage(self, key: str) -> Tensor:
        """The bytes of one storage; the same object every time, so that tensors which shared memory share it again."""
        if key not in self._storages:
            self._storages[key] = self._archive.map(_record(key))
        return self._storages[key]


def _record(key: str) -> str:
    return f"data/{key}"


def _problems(stored: StoredTensor, archive: Archive, storage: Storage) -> Iterator[str]:
    """Why a tensor cannot be mapped: whatever the pickle says is proved against the record's true size."""
    held, itemsize = archive.size_of(_record(stored.storage.key)), stored.dtype.itemsize
    if held is None:
        yield f"has no record {shown(_record(stored.storage.key))}"
    elif held != stored.storage.size_bytes:
        yield f"needs a record of {stored.storage.size_bytes:,} bytes; it has {held:,}"
    elif stored.storage != storage:
        yield f"takes the record {storage.key} for {stored.storage.dtype}, another tensor for {storage.dtype}"
    elif len(stored.shape) != len(stored.stride):
        yield f"has {len(stored.shape)} dimensions but {len(stored.stride)} strides"
    elif prod(max(size, 1) for size in stored.shape) * itemsize > MAX_TENSOR_BYTES:
        yield f"has shape {list(stored.shape)}, more than a tensor can have"
    elif prod(stored.shape) and (needed := (_last(stored) + 1) * itemsize) > held:
        yield f"reaches to byte {needed:,} of a record of {held:,}"
    elif prod(stored.shape) * itemsize > max(held, MAX_REPEATED_BYTES):
        yield f"unfolds a record of {held:,} bytes into {prod(stored.shape) * itemsize:,}"


def _last(stored: StoredTensor) -> int:
    """The element of the storage that lies farthest back."""
    return stored.offset + sum((size - 1) * stride for size, stride in zip(stored.shape, stored.stride, strict=True))
