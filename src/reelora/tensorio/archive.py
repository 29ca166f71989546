"""The zip archive that torch.save writes since torch 1.6: its records are proved whole before any is believed.

All records lie stored (never compressed) under one folder: ``data.pkl``, ``version``, ``byteorder`` and one ``data/KEY`` per
storage. Source: ``caffe2/serialize/inline_container.cc`` of torch; APPNOTE.TXT of PKWARE, sections 4.3.7 and 4.4.
"""

import mmap
import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo
from zlib import crc32

import torch
from torch import Tensor

from reelora.errors import FileFormatError

from .header import shown

__all__ = ["MAX_PICKLE_BYTES", "PICKLE_RECORD", "Archive", "open_archive"]

PICKLE_RECORD = "data.pkl"
BYTE_ORDER_RECORD = "byteorder"
LITTLE_ENDIAN = b"little"

MAX_PICKLE_BYTES = 32 * 2**20
"""The pickle names tensors, it does not hold them: real ones have about 200 bytes per tensor."""
MAX_DIRECTORY_BYTES = 8 * 2**20
"""About 70,000 records, where a checkpoint has some thousand."""

ALIGNMENT = 16
"""The widest element (complex128); records at other addresses are copied, since no tensor may lie there."""

ZIP_SIGNATURE = b"PK\x03\x04"
LOCAL_HEADER = struct.Struct("<4s22xHH")
ENCRYPTED_FLAG, UTF8_FLAG = 0x1, 0x800

SIGNATURES: Mapping[bytes, str] = {
    b"\x80": "a bare pickle, as torch.save wrote it before torch 1.6. If you trust who made it, open it with torch.load and "
    "save it again with torch.save",
    b"version ": "a Git LFS pointer: fetch the real file with `git lfs pull`",
    b"<": "a web page: the download failed",
    b"GGUF": "a GGUF file",
}


@dataclass(frozen=True, slots=True)
class Span:
    """Where something lies: bytes ``start:stop`` of the file."""

    start: int
    stop: int


class Archive:
    """A mapped checkpoint file with its proved records: each lies inside the file and none overlaps another."""

    def __init__(self, path: Path, content: mmap.mmap, records: Mapping[str, Span]) -> None:
        self.path = path
        self._content = content
        self._records = records

    def size_of(self, name: str) -> int | None:
        """Bytes of a record, None where there is no such record."""
        record = self._records.get(name)
        return None if record is None else record.stop - record.start

    def read(self, name: str) -> bytes:
        """The bytes of a small record, copied."""
        record = self._records[name]
        return self._content[record.start : record.stop]

    def map(self, name: str) -> Tensor:
        """The bytes of a record as a uint8 tensor: a view of the file, or a copy where it lies at an odd address."""
        record = self._records[name]
        if record.start == record.stop:
            return torch.empty(0, dtype=torch.uint8)
        raw = torch.frombuffer(self._content, dtype=torch.uint8, offset=record.start, count=record.stop - record.start)
        return raw.clone() if record.start % ALIGNMENT else raw


def open_archive(path: Path) -> Archive:
    """Map a checkpoint that torch.save wrote and prove its zip directory against the file.

    Raises FileFormatError that names ``path`` and everything that is wrong with it, and OSError where it cannot be opened.
    """
    content = _map(path)
    try:
        with ZipFile(_DirectoryReader(content)) as zipped:
            entries = zipped.infolist()
    except (BadZipFile, ValueError, NotImplementedError, OverflowError, struct.error, EOFError) as error:
        # all that zipfile raises for a damaged directory; NotImplementedError where the version byte is damaged
        raise FileFormatError(f"{path}: is cut off or damaged ({error}). Copy or download it again.") from error
    problems = [*_name_problems(entries), *(problem for entry in entries for problem in _entry_problems(entry, content))]
    if not problems:
        problems = [*_overlap_problems(entries, content), *_record_problems(entries, content)]
    if problems:
        raise FileFormatError(_report(path, problems))
    return Archive(path, content, {_record_name(entry): _data_span(entry, content) for entry in entries})


class _DirectoryReader:
    """What zipfile reads through: never more at once than a directory may hold, whatever the file says of its size."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._position = 0

    def read(self, count: int = -1, /) -> bytes:
        count = len(self._content) - self._position if count < 0 else count
        if count > MAX_DIRECTORY_BYTES:
            raise BadZipFile(f"its zip directory has {count:,} bytes; the most that is read is {MAX_DIRECTORY_BYTES:,}")
        found = self._content[self._position : self._position + count]
        self._position += len(found)
        return found

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._content)}[whence]
        if self._position < 0:
            raise ValueError("its zip directory begins before the file")
        return self._position

    def tell(self) -> int:
        return self._position


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        head = file.read(len(ZIP_SIGNATURE))
        if head != ZIP_SIGNATURE:
            likely = next((meaning for signature, meaning in SIGNATURES.items() if head.startswith(signature[:4])), None)
            hint = f"It looks like {likely}." if likely else "It is cut off or no checkpoint: copy or download it again."
            raise FileFormatError(f"{path}: begins with {shown(head)}, so it is no zip archive of torch.save. {hint}")
        # ACCESS_COPY is a private mapping: torch gets writable memory, the file never changes.
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _record_name(entry: ZipInfo) -> str:
    """The name without the folder that all records share."""
    return entry.orig_filename.partition("/")[2]


def _data_span(entry: ZipInfo, content: mmap.mmap) -> Span:
    """Where the bytes of a record lie; the sizes of name and padding stand in its local header."""
    _, name_bytes, extra_bytes = LOCAL_HEADER.unpack_from(content, entry.header_offset)
    start = entry.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes
    return Span(start, start + entry.file_size)


def _name_problems(entries: Sequence[ZipInfo]) -> Iterator[str]:
    names = [entry.orig_filename for entry in entries]
    yield from (f"{shown(name)} is no plain FOLDER/NAME" for name in names if not _is_plain(name))
    yield from (f"{shown(name)} occurs {count} times" for name, count in Counter(names).items() if count > 1)
    folders = {name.partition("/")[0] for name in names}
    if len(folders) > 1:
        yield f"its records lie in {len(folders)} folders where torch.save makes one"
    elif f"{''.join(folders)}/{PICKLE_RECORD}" not in names:
        yield f"it has no record {PICKLE_RECORD}: torch.save did not write this archive"


def _is_plain(name: str) -> bool:
    parts = name.split("/")
    return len(parts) > 1 and name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(parts)


def _entry_problems(entry: ZipInfo, content: mmap.mmap) -> Iterator[str]:
    """What is wrong with one record taken alone."""
    name = shown(entry.orig_filename)
    if entry.compress_type != ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & ENCRYPTED_FLAG:
        yield f"{name} is compressed or encrypted, so it cannot be mapped: save it again with torch.save"
    elif not 0 <= entry.header_offset <= len(content) - LOCAL_HEADER.size:
        yield f"{name} begins at byte {entry.header_offset:,} of {len(content):,}"
    elif not _has_its_local_header(entry, content):
        yield f"{name} has another header at byte {entry.header_offset:,} than the zip directory says"
    elif _data_span(entry, content).stop > len(content):
        yield f"{name} ends at byte {_data_span(entry, content).stop:,} of {len(content):,}"


def _has_its_local_header(entry: ZipInfo, content: mmap.mmap) -> bool:
    signature, name_bytes, _ = LOCAL_HEADER.unpack_from(content, entry.header_offset)
    start = entry.header_offset + LOCAL_HEADER.size
    name = entry.orig_filename.encode("utf-8" if entry.flag_bits & UTF8_FLAG else "cp437")
    return signature == ZIP_SIGNATURE and content[start : start + name_bytes] == name


def _overlap_problems(entries: Sequence[ZipInfo], content: mmap.mmap) -> Iterator[str]:
    spans = sorted((entry.header_offset, _data_span(entry, content).stop, entry.orig_filename) for entry in entries)
    if spans[0][0]:
        yield f"it has {spans[0][0]:,} bytes of something else before its first record"
    for (_, stop, before), (start, _, name) in pairwise(spans):
        if start < stop:
            yield f"{shown(before)} and {shown(name)} overlap by {stop - start:,} bytes"


def _record_problems(entries: Sequence[ZipInfo], content: mmap.mmap) -> Iterator[str]:
    """What is wrong with the records that say how to read the others."""
    records = {_record_name(entry): entry for entry in entries}
    pickle, order = records[PICKLE_RECORD], records.get(BYTE_ORDER_RECORD)
    if pickle.file_size > MAX_PICKLE_BYTES:
        yield f"{PICKLE_RECORD} has {pickle.file_size:,} bytes; the most that is read is {MAX_PICKLE_BYTES:,}"
    elif pickle.CRC and crc32(_bytes_of(pickle, content)) != pickle.CRC:
        # 0 is what torch writes where ``set_crc32_options(False)`` was said.
        yield f"{PICKLE_RECORD} does not have the checksum that the zip directory says"
    if order and _bytes_of(order, content, at_most=16) != LITTLE_ENDIAN:
        yield f"{BYTE_ORDER_RECORD} is {shown(_bytes_of(order, content, at_most=16))}; only little endian files are read"


def _bytes_of(entry: ZipInfo, content: mmap.mmap, *, at_most: int = MAX_PICKLE_BYTES) -> bytes:
    span = _data_span(entry, content)
    return content[span.start : min(span.stop, span.start + at_most)]


def _report(path: Path, problems: list[str]) -> str:
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{path}: {count} in the zip archive: {'; '.join(problems[:3])}. Copy or download the file again."
