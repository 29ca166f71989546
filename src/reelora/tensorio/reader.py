"""Named tensors of one safetensors file or of several shards, mapped rather than read."""

import mmap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from reelora.errors import FileFormatError, first_few

from .header import Entry, parse_json, read_header, shown

__all__ = ["INDEX_SUFFIX", "SUFFIX", "TensorStore", "open_tensors"]

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"


def open_tensors(path: Path) -> "TensorStore":
    """Map the tensors of a ``.safetensors`` file, of a ``.safetensors.index.json``, or of a folder with one of these.

    Every header is proved against its file, and an index against its shards, before this returns; no tensor is read.
    Raises FileFormatError that says what is wrong where, and OSError where a file is missing or unreadable.
    """
    path = _the_one_in(Path(path)) if Path(path).is_dir() else Path(path)
    if not path.name.endswith(INDEX_SUFFIX):
        return TensorStore(path, [_Shard(path)])
    weight_map = _read_weight_map(path)
    shards = [_Shard(path.with_name(name)) for name in sorted(set(weight_map.values()))]
    _check_index(path, weight_map, shards)
    return TensorStore(path, shards)


class TensorStore(Mapping[str, Tensor]):
    """Tensors by name, each a view of the mapped file: nothing is copied until it is touched.

    The pages are private to this process: writing into a tensor changes neither the file nor what others see, only
    what this store hands out from then on. Tensors keep the mapping alive, the store may go.
    """

    def __init__(self, path: Path, shards: Sequence["_Shard"]) -> None:
        self.path = path
        self._shards = {name: shard for shard in shards for name in shard.entries}
        self.metadata: dict[str, str] = {key: value for shard in shards for key, value in shard.metadata.items()}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, from the headers alone."""
        return {name: shard.entries[name].shape for name, shard in self._shards.items()}

    @cached_property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The stored dtype of every tensor, from the headers alone."""
        return {name: shard.entries[name].dtype for name, shard in self._shards.items()}

    @cached_property
    def files(self) -> dict[str, Path]:
        """The file that holds every tensor."""
        return {name: shard.path for name, shard in self._shards.items()}

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(prod(shape) * self.dtypes[name].itemsize for name, shape in self.shapes.items())

    def __getitem__(self, name: str) -> Tensor:
        return self._shards[name].tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._shards

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)

    def __repr__(self) -> str:
        return f"TensorStore({str(self.path)!r}, {len(self)} tensors, {self.size_bytes:,} bytes)"


class _Shard:
    """One mapped file with its proved header."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            header = read_header(file, path)
            # ACCESS_COPY is a private mapping: torch gets writable memory, the file never changes.
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.path = path
        self.metadata = header.metadata
        self.entries = header.entries

    def tensor(self, name: str) -> Tensor:
        entry = self.entries[name]
        if entry.start == entry.stop:
            return torch.empty(entry.shape, dtype=entry.dtype)
        if entry.start % entry.dtype.itemsize:
            return self._copy(entry)
        return torch.frombuffer(self._bytes, dtype=entry.dtype, offset=entry.start, count=prod(entry.shape)).view(entry.shape)

    def _copy(self, entry: Entry) -> Tensor:
        """A tensor that lies at an address its dtype must not have: no view of the file can be had."""
        raw = torch.frombuffer(self._bytes, dtype=torch.uint8, offset=entry.start, count=entry.stop - entry.start)
        return raw.clone().view(entry.dtype).view(entry.shape)


def _the_one_in(folder: Path) -> Path:
    """The index of a folder, or else its only safetensors file."""
    names = sorted(entry.name for entry in folder.iterdir())
    found = [name for name in names if name.endswith(INDEX_SUFFIX)] or [name for name in names if name.endswith(SUFFIX)]
    if not found:
        raise FileNotFoundError(
            2, f"No *{SUFFIX} and no *{INDEX_SUFFIX} (it holds {first_few(names) or 'nothing'})", str(folder)
        )
    if len(found) > 1:
        raise FileFormatError(f"{folder}: holds {len(found)} candidates, {first_few(found)}; name the one that you mean.")
    return folder / found[0]


def _read_weight_map(path: Path) -> dict[str, str]:
    """``weight_map`` of an index, whose files must exist in the same folder and be named without a way out of it."""
    weight_map = parse_json(path.read_bytes(), path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FileFormatError(f"{path}: has no weight_map, the object that says which file holds each tensor.")
    files = sorted(set(map(str, weight_map.values())))
    astray = [shown(name) for name in files if not _is_plain(name)]
    if astray or not all(isinstance(name, str) for name in weight_map.values()):
        raise FileFormatError(
            f"{path}: {len(astray)} file names are no plain name of a {SUFFIX} file in this folder, "
            f"first {first_few(astray)}. Do not use this file unless you trust who made it."
        )
    lost = [name for name in files if not path.with_name(name).is_file()]
    if lost:
        raise FileFormatError(
            f"{path}: {len(lost)} of {len(files)} shards are missing, {first_few(lost)}. Download them again."
        )
    return weight_map


def _is_plain(name: str) -> bool:
    return name.endswith(SUFFIX) and name.isprintable() and not {"/", "\\", ":"} & set(name)


def _check_index(path: Path, weight_map: Mapping[str, str], shards: Sequence[_Shard]) -> None:
    """Every tensor lies in exactly one shard: the one that the index names."""
    held = Counter(name for shard in shards for name in shard.entries)
    entries = {shard.path.name: shard.entries for shard in shards}
    wrongs = {
        "are in the index but not in the shard that it names": [n for n, file in weight_map.items() if n not in entries[file]],
        "are in a shard but not in the index": [name for name in held if name not in weight_map],
        "are in two shards": [name for name, count in held.items() if count > 1],
    }
    problems = [
        f"{len(names)} tensors {what}, first {first_few([*map(shown, names)])}" for what, names in wrongs.items() if names
    ]
    if problems:
        raise FileFormatError(f"{path}: {'; '.join(problems)}. Index and shards do not belong together: download all again.")
