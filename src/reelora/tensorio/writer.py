"""Writing safetensors: the same tensors and metadata always give the same bytes."""

import json
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from reelora.errors import FileFormatError, first_few

from .atomic import atomic_path
from .deferred import DeferredTensor, made
from .header import DTYPES, LENGTH_BYTES, METADATA_KEY, is_text, shown

__all__ = ["raw_bytes", "write_tensors"]

_TAGS = {dtype: tag for tag, dtype in DTYPES.items()}


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor | DeferredTensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as one safetensors file that appears whole or not at all.

    Tensors are streamed one by one, widest dtype first, so that each lies aligned and can be mapped; a deferred one is made
    when its turn comes. Raises FileFormatError for what the format cannot hold, before anything is written, and OSError where
    ``path`` cannot be.
    """
    metadata = dict(metadata or {})
    _check(path, tensors, metadata)
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header = _header(names, tensors, metadata)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(header).to_bytes(LENGTH_BYTES, "little"))
        file.write(header)
        for name in names:
            file.write(raw_bytes(made(tensors[name])))


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order; copied only where it is strided or on another device."""
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _header(names: Iterable[str], tensors: Mapping[str, Tensor | DeferredTensor], metadata: Mapping[str, str]) -> bytes:
    """The JSON, padded with spaces so that the first tensor begins at a multiple of 8."""
    names = list(names)
    stops = list(accumulate(tensors[name].nbytes for name in names))
    table: dict[str, object] = {METADATA_KEY: dict(sorted(metadata.items()))} if metadata else {}
    for name, stop in zip(names, stops, strict=True):
        tensor = tensors[name]
        offsets = [stop - tensor.nbytes, stop]
        table[name] = {"dtype": _TAGS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


def _check(path: Path, tensors: Mapping[str, Tensor | DeferredTensor], metadata: Mapping[str, str]) -> None:
    wrongs = {
        "names are reserved or no text": [shown(n) for n in tensors if not is_text(n) or n == METADATA_KEY],
        "tensors have no values to write (meta, sparse)": [n for n, t in tensors.items() if not _is_dense(t)],
        "tensors have a dtype that safetensors lacks": [n for n, t in tensors.items() if t.dtype not in _TAGS],
        "metadata values are no strings": [shown(k) for k, v in metadata.items() if not is_text(k) or not is_text(v)],
    }
    problems = [f"{len(names)} {what}, first {first_few(names)}" for what, names in wrongs.items() if names]
    if problems:
        raise FileFormatError(f"{path}: cannot be written: {'; '.join(problems)}.")


def _is_dense(tensor: Tensor | DeferredTensor) -> bool:
    if isinstance(tensor, DeferredTensor):
        return True
    return tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized
