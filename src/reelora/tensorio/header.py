"""The header of a safetensors file, read and proved whole before any tensor is believed.

A file is ``N`` (8 bytes, little endian), ``N`` bytes of JSON, then the bytes of all tensors without gaps. The JSON maps
each name to ``{"dtype", "shape", "data_offsets"}`` and ``__metadata__`` to a map of strings. Source: safetensors README,
section "Format".
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from reelora.errors import FileFormatError, first_few

__all__ = [
    "DTYPES",
    "LENGTH_BYTES",
    "MAX_DIMENSIONS",
    "MAX_HEADER_BYTES",
    "MAX_TENSOR_BYTES",
    "METADATA_KEY",
    "Entry",
    "Header",
    "is_text",
    "parse_json",
    "read_header",
    "shown",
]

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""The bound of the safetensors library, so that neither reads what the other refuses."""

MAX_TENSOR_BYTES = 2**63 - 1
MAX_DIMENSIONS = 64
METADATA_KEY = "__metadata__"

DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}

SIGNATURES: Mapping[bytes, str] = {
    b"version ": "a Git LFS pointer: fetch the real file with `git lfs pull`",
    b"PK\x03\x04": "a zip archive, as torch.save writes it",
    b"\x80\x02": "a pickle, as old versions of torch.save wrote it",
    b"GGUF": "a GGUF file",
    b"<": "a web page: the download failed",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies: its bytes are ``start:stop``, counted from the beginning of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """A proved header: its entries tile the rest of the file exactly."""

    metadata: dict[str, str]
    entries: dict[str, Entry]


def read_header(file: BinaryIO, path: Path) -> Header:
    """Read the header of an open safetensors file and check it against the size of the file.

    Raises FileFormatError that names ``path`` and everything that is wrong with it.
    """
    size_bytes = file.seek(0, 2)
    file.seek(0)
    text, data_start = _read_text(file, path, size_bytes)
    table = parse_json(text, path)
    problems = [*_metadata_problems(table.get(METADATA_KEY, {}))]
    rows = {name: row for name, row in table.items() if name != METADATA_KEY}
    problems += [problem for name, row in rows.items() for problem in _row_problems(name, row)]
    if not problems:
        problems += _tiling_problems(rows, size_bytes - data_start)
    if problems:
        raise FileFormatError(_report(path, problems))
    return Header(table.get(METADATA_KEY, {}), {name: _entry(row, data_start) for name, row in rows.items()})


def parse_json(text: bytes | str, path: Path | str) -> dict[str, Any]:
    """Parse a JSON object in which no name occurs twice; raises FileFormatError that names ``path``, or whatever holds it."""
    try:
        table = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_int=_whole_number)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: no valid JSON: {_clip(str(error))}. Copy or download the file again.") from error
    if not isinstance(table, dict):
        raise FileFormatError(f"{path}: the JSON is a {type(table).__name__}; it must be an object that maps names.")
    return table


def shown(name: object) -> str:
    """An untrusted name or value as a message may hold it: quoted, without control characters, not too long."""
    try:
        return _clip(repr(name))
    except RecursionError:
        return f"a {type(name).__name__} of many levels"


def is_text(value: object) -> bool:
    """Whether a value is a string that UTF-8 can hold: JSON can spell half characters that it cannot."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value))


def _read_text(file: BinaryIO, path: Path, size_bytes: int) -> tuple[bytes, int]:
    head = file.read(LENGTH_BYTES)
    length = int.from_bytes(head, "little")
    if len(head) < LENGTH_BYTES:
        raise FileFormatError(f"{path}: {size_bytes} bytes are no safetensors file, which begins with an 8-byte length.")
    if length > min(MAX_HEADER_BYTES, size_bytes - LENGTH_BYTES):
        raise FileFormatError(
            f"{path}: says that its header has {length:,} bytes, but the file has {size_bytes:,} and a header at most "
            f"{MAX_HEADER_BYTES:,}. {_likely(head)}"
        )
    text = file.read(length)
    if not text.startswith(b"{"):
        raise FileFormatError(f"{path}: the header begins with {shown(text[:8])}; it must begin with '{{'. {_likely(head)}")
    return text, LENGTH_BYTES + length


def _likely(head: bytes) -> str:
    for signature, meaning in SIGNATURES.items():
        if head.startswith(signature):
            return f"It looks like {meaning}."
    return "It is cut off or no safetensors file: copy or download it again."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = [shown(name) for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise ValueError(f"{len(twice)} names occur twice, first {first_few(twice)}")
    return table


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _whole_number(text: str) -> int:
    """A whole number; minus zero, which is 0 to Python, is none to the safetensors library."""
    if text == "-0":
        raise ValueError("-0 is no count")
    return int(text)


def _metadata_problems(metadata: object) -> Iterator[str]:
    if not isinstance(metadata, dict):
        yield f"{METADATA_KEY} is a {type(metadata).__name__}, not a map of strings"
        return
    for key, value in metadata.items():
        if not is_text(key) or not is_text(value):
            yield f"{METADATA_KEY}[{shown(key)}] is {shown(value)}, not a string"


def _row_problems(name: str, row: object) -> Iterator[str]:
    """What is wrong with one row taken alone."""
    if not is_text(name):
        yield f"{shown(name)} is a name that is no valid Unicode"
    elif not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        yield f"{shown(name)} is {shown(row)}, not {{dtype, shape, data_offsets}}"
    elif not isinstance(row["dtype"], str) or row["dtype"] not in DTYPES:
        yield f"{shown(name)} has dtype {shown(row['dtype'])}; known are {', '.join(DTYPES)}"
    elif not _are_counts(row["shape"]) or len(row["shape"]) > MAX_DIMENSIONS:
        yield f"{shown(name)} has shape {shown(row['shape'])}, not a list of at most {MAX_DIMENSIONS} counts"
    elif not _are_counts(row["data_offsets"]) or len(row["data_offsets"]) != 2:
        yield f"{shown(name)} has offsets {shown(row['data_offsets'])}, not [start, stop]"
    else:
        yield from _size_problems(name, row)


def _size_problems(name: str, row: Mapping[str, Any]) -> Iterator[str]:
    start, stop = row["data_offsets"]
    dtype, shape = row["dtype"], row["shape"]
    if prod(max(size, 1) for size in shape) * DTYPES[dtype].itemsize > MAX_TENSOR_BYTES:
        yield f"{shown(name)} has shape {shown(shape)}, more than a tensor can have"
    elif (needed := prod(shape) * DTYPES[dtype].itemsize) != stop - start:
        yield f"{shown(name)} of {dtype} {shown(shape)} needs {needed:,} bytes but its offsets span {stop - start:,}"


def _are_counts(values: object) -> bool:
    # ``type is int``: true and false are ints to isinstance, and JSON has both.
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= MAX_TENSOR_BYTES for value in values)


def _tiling_problems(rows: Mapping[str, Mapping[str, Any]], data_bytes: int) -> Iterable[str]:
    """Where the tensors overlap, leave holes, or end elsewhere than the file."""
    spans = sorted((*row["data_offsets"], name) for name, row in rows.items())
    edges = [(0, 0, "the header"), *spans, (data_bytes, data_bytes, "the end of the file")]
    for (_, stop, before), (start, _, name) in pairwise(edges):
        if start != stop:
            kind = "an overlap" if start < stop else "a hole"
            where = f"between {shown(before)} and {shown(name)} at byte {stop:,} of the data"
            yield f"{kind} of {abs(start - stop):,} bytes {where}"


def _entry(row: Mapping[str, Any], data_start: int) -> Entry:
    start, stop = row["data_offsets"]
    return Entry(DTYPES[row["dtype"]], tuple(row["shape"]), data_start + start, data_start + stop)


def _report(path: Path, problems: list[str]) -> str:
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{path}: {count} in the safetensors header: {'; '.join(problems[:3])}. Copy or download the file again."


def _clip(text: str, *, width: int = 120) -> str:
    return text if len(text) <= width else f"{text[:width]} ... ({len(text):,} characters)"
