"""Copies of files in which some tensors are others; all other bytes go from file to file inside the kernel."""

import errno
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .header import DTYPES, LENGTH_BYTES, METADATA_KEY, Entry, Header, read_header
from .writer import raw_bytes

__all__ = ["copy_file", "rewrite_tensors", "same_bytes"]

Make = Callable[[Sequence[str]], Iterable[Tensor]]
"""Gives the new values of tensors in the order of the names; one at a time, so that each may lie where the last one lay."""
Copier = Callable[[BinaryIO, BinaryIO, int, int], int]
"""Appends ``count`` bytes from ``start`` of the first file to the second, or some of them; returns how many."""

_TAGS = {dtype: tag for tag, dtype in DTYPES.items()}
_PIECE_BYTES = 1 << 20
_AT_ONCE_BYTES = 1 << 28
"""At most, so that Ctrl-C is heard."""
_REFUSALS = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
"""What a kernel answers that cannot copy between these two files in this way."""
_BLOCK_BYTES = 4096


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes into a new one; they are on the disk when this returns. Where the filesystem can, it shares blocks.

    Raises OSError that names the file.
    """
    with source.open("rb") as origin, target.open("xb", buffering=0) as copy:
        _append(origin, copy, 0, origin.seek(0, os.SEEK_END))
        os.fsync(copy.fileno())


def rewrite_tensors(
    source: Path,
    target: Path,
    names: Collection[str],
    make: Make,
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Copy a safetensors file with other values in some of its tensors; they keep their dtype, shape and place.

    ``make`` is called once with their names in the order of the file. Every other tensor is copied by the kernel, without
    passing through this process. ``metadata`` is added to that of the header, which grows by whole blocks of the disk, so that
    the data stay as aligned as they were and offsets in the header stay the same. The file is on the disk when this returns.

    Raises FileFormatError for a source that is no safetensors file, OSError that names the file that cannot be read or written.
    """
    with source.open("rb") as origin, target.open("xb", buffering=0) as copy:
        header = read_header(origin, source)
        position = min((entry.start for entry in header.entries.values()), default=origin.seek(0, os.SEEK_END))
        _write(copy, _head(header, position, metadata or {}))
        # By the end too: a tensor without bytes begins where its neighbour does.
        ordered = sorted(names, key=lambda name: (header.entries[name].start, header.entries[name].stop))
        for name, tensor in zip(ordered, make(ordered), strict=True):
            entry = header.entries[name]
            _append(origin, copy, position, entry.start)
            _write(copy, raw_bytes(_checked(tensor, entry)))
            position = entry.stop
        _append(origin, copy, position, origin.seek(0, os.SEEK_END))
        os.fsync(copy.fileno())


def same_bytes(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are equal bit by bit, in dtype, shape and every value: NaN is itself and -0 is not 0."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second)))


def _head(header: Header, data_start: int, metadata: Mapping[str, str]) -> bytes:
    """Length and JSON of a header with more metadata; the data begin where they did, or whole blocks later."""
    table: dict[str, object] = {METADATA_KEY: {**header.metadata, **metadata}} if header.metadata or metadata else {}
    for name, entry in header.entries.items():
        offsets = [entry.start - data_start, entry.stop - data_start]
        table[name] = {"dtype": _TAGS[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * ((data_start - LENGTH_BYTES - len(text)) % _BLOCK_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _checked(tensor: Tensor, entry: Entry) -> Tensor:
    assert (tensor.dtype, tuple(tensor.shape)) == (entry.dtype, entry.shape), "a tensor of the file has one dtype and shape"
    return tensor


def _append(origin: BinaryIO, copy: BinaryIO, start: int, stop: int) -> None:
    """Append a run of bytes, by the first way that works between these two files."""
    copiers = list(_COPIERS)
    while start < stop:
        try:
            count = copiers[0](origin, copy, start, min(stop - start, _AT_ONCE_BYTES))
        except OSError as error:
            if error.errno not in _REFUSALS or len(copiers) == 1:
                raise OSError(error.errno, error.strerror, str(copy.name)) from error
            count = 0
        if not count:
            copiers.pop(0)
        if not copiers:
            raise OSError(errno.EIO, "The file ended while it was copied", str(origin.name))
        start += count


def _write(copy: BinaryIO, content: bytes | memoryview) -> None:
    """Append all of it; the kernel may take it in parts."""
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[copy.write(rest) :]
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(copy.name)) from error


def _by_kernel(origin: BinaryIO, copy: BinaryIO, start: int, count: int) -> int:
    return os.copy_file_range(origin.fileno(), copy.fileno(), count, offset_src=start)


def _by_sending(origin: BinaryIO, copy: BinaryIO, start: int, count: int) -> int:
    return os.sendfile(copy.fileno(), origin.fileno(), start, count)


def _by_hand(origin: BinaryIO, copy: BinaryIO, start: int, count: int) -> int:
    origin.seek(start)
    piece = origin.read(min(count, _PIECE_BYTES))
    _write(copy, piece)
    return len(piece)


_COPIERS: tuple[Copier, ...] = (*((_by_kernel, _by_sending) if hasattr(os, "copy_file_range") else ()), _by_hand)
