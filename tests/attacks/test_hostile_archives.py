"""Zip archives made to mislead the reader of checkpoints, and files that are no such archive: each is refused and named."""

import pickle
import re
import struct
import zipfile
from io import BytesIO
from zlib import crc32

import pytest
import torch
from pickles import part, tensor, whole, zipped
from rights import as_a_stranger

from reelora.errors import FileFormatError
from reelora.tensorio import open_checkpoint, open_tensors, write_tensors

GOOD = whole(b"}" + part("w") + tensor() + b"s")
RECORDS = (("version", b"3\n"), ("data/0", bytes(16)))

FIELDS = {
    "flags": (8, "<H"),
    "method": (10, "<H"),
    "crc": (16, "<L"),
    "packed": (20, "<L"),
    "size": (24, "<L"),
    "offset": (42, "<L"),
}
"""Where a field lies in an entry of the zip directory. Source: APPNOTE.TXT of PKWARE, section 4.3.12."""


def changed(name, **values):
    """A good checkpoint whose zip directory says something else about one record."""
    content = bytearray(zipped(GOOD))
    end = content.rindex(b"PK\x05\x06")
    entry = content.rindex(b"PK\x01\x02", 0, content.index(name.encode(), struct.unpack_from("<L", content, end + 16)[0]))
    for field, value in values.items():
        place, form = FIELDS[field]
        struct.pack_into(form, content, entry + place, value)
    return bytes(content)


def end_changed(place, form, value):
    content = bytearray(zipped(GOOD))
    struct.pack_into(form, content, content.rindex(b"PK\x05\x06") + place, value)
    return bytes(content)


def compressed():
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", GOOD)
        archive.writestr("archive/data/0", bytes(2**20))
    return file.getvalue()


def nested():
    """A record that lies inside another one, with a header of its own that agrees with the directory."""
    name = b"archive/data/1"
    inner = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 16, 16, len(name), 0) + name + bytes(16)
    content = bytearray(zipped(GOOD, (*RECORDS, ("data/2", inner), ("data/1", bytes(16)))))
    real = content.index(b"PK\x03\x04", content.index(inner) + 1)
    entry = content.rindex(b"PK\x01\x02")
    assert struct.unpack_from("<L", content, entry + 42)[0] == real
    struct.pack_into("<L", content, entry + 42, content.index(inner))
    return bytes(content)


ATTACKS = {
    "empty file": (b"", "begins with b''"),
    "one byte": (b"P", "no zip archive"),
    "only a signature": (b"PK\x03\x04", "cut off or damaged"),
    "legacy pickle": (pickle.dumps({"w": 1}, 2), "a bare pickle, as torch.save wrote it before torch 1.6"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "web page": (b"<!DOCTYPE html>", "a web page"),
    "a program before the archive": (b"#!/bin/sh\n" + zipped(GOOD), "no zip archive"),
    "another archive before it": (zipped(whole(b"}")) + zipped(GOOD), "of something else before its first record"),
    "an empty archive": (b"PK\x05\x06" + bytes(18), "no zip archive"),
    "no pickle": (zipped(GOOD).replace(b"data.pkl", b"date.pkl"), "no record data.pkl"),
    "a name that leads out": (zipped(GOOD, (*RECORDS, ("../../evil", b""))), r"'archive/../../evil' is no plain"),
    "a folder that leads out": (zipped(GOOD, folder=".."), r"'../data.pkl' is no plain"),
    "a name from the root": (zipped(GOOD, folder=""), "'/data.pkl' is no plain"),
    "a name with a backslash": (zipped(GOOD, (*RECORDS, ("data\\0", b""))), "is no plain"),
    "a name with a bell": (zipped(GOOD, (*RECORDS, ("data/\a", b""))), "is no plain"),
    "a name with an end": (changed("archive/data/0").replace(b"archive/version", b"archive/ver\0ion"), "is no plain"),
    "a folder as a record": (zipped(GOOD, (*RECORDS, ("data/", b""))), "is no plain"),
    "two records of one name": (zipped(GOOD, (*RECORDS, ("data/1", b""))).replace(b"data/1", b"data/0"), "occurs 2 times"),
    "two folders": (zipped(GOOD, RECORDS).replace(b"archive/version", b"archivf/version"), "2 folders"),
    "compressed": (compressed(), "is compressed or encrypted"),
    "encrypted": (changed("archive/data/0", flags=1), "is compressed or encrypted"),
    "a size and a packed size": (changed("archive/data/0", size=2**30), "is compressed or encrypted"),
    "an unknown method": (changed("archive/data/0", method=99), "is compressed or encrypted"),
    "a record beyond the file": (changed("archive/data/0", size=2**30, packed=2**30), "ends at byte 1,073,"),
    "a record that begins beyond the file": (changed("archive/data/0", offset=2**31), "begins at byte 2,147,"),
    "a record at another one's header": (changed("archive/data/0", offset=0), "has another header at byte 0"),
    "a record over its neighbour": (changed("archive/version", size=60, packed=60), "overlap by"),
    "a record inside another": (nested(), "'archive/data/2' and 'archive/data/1' overlap"),
    "a pickle of another checksum": (changed("archive/data.pkl", crc=1), "does not have the checksum"),
    "big endian": (zipped(GOOD, (*RECORDS, ("byteorder", b"big"))), "only little endian"),
    "an odd byte order": (zipped(GOOD, (*RECORDS, ("byteorder", b"x" * 1000))), "only little endian"),
    "a directory of four gigabytes": (end_changed(12, "<L", 2**32 - 2), "cut off or damaged"),
    "a directory beyond the file": (end_changed(16, "<L", 2**31), "begins at byte -"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_archive_is_refused(tmp_path, attack):
    content, complaint = ATTACKS[attack]
    (tmp_path / "hostile.pt").write_bytes(content)
    with pytest.raises(FileFormatError, match=complaint) as refusal:
        open_checkpoint(tmp_path / "hostile.pt")
    assert "hostile.pt" in str(refusal.value)
    assert len(str(refusal.value)) < 1500
    assert "\a" not in str(refusal.value)


def test_the_archive_that_the_attacks_change_is_sound(tmp_path):
    for number, content in enumerate([zipped(GOOD), changed("archive/data/0"), changed("archive/data.pkl", crc=crc32(GOOD))]):
        (tmp_path / f"{number}.pt").write_bytes(content)
        assert torch.equal(open_checkpoint(tmp_path / f"{number}.pt")["w"], torch.zeros(4))


def test_a_directory_that_is_large_is_not_read(tmp_path):
    """200,000 records: a real checkpoint has some thousand."""
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 60_000, 60_000, 9 * 2**20, 4, 0)
    (tmp_path / "large.pt").write_bytes(b"PK\x03\x04" + bytes(9 * 2**20) + end)
    with pytest.raises(FileFormatError, match="9,437,184 bytes; the most that is read is 8,388,608"):
        open_checkpoint(tmp_path / "large.pt")


def test_files_of_before_torch_1_6_are_refused_with_the_way_out(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(FileFormatError, match=r"old\.pt: .* save it again with torch.save"):
        open_checkpoint(tmp_path / "old.pt")


def test_a_checkpoint_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "cut.pt"
    torch.save({"module": {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.bfloat16)}, "iteration": 3}, path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(FileFormatError, match=r"cut\.pt: "):
            open_checkpoint(path)


@pytest.mark.parametrize("open_file", [open_checkpoint, open_tensors])
def test_what_cannot_be_opened_is_an_oserror_that_names_it(tmp_path, open_file):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match=r"model\.safetensors"):
        open_file(tmp_path if open_file is open_tensors else tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        open_file(tmp_path / "nowhere.pt")


@pytest.mark.parametrize("open_file", [open_checkpoint, open_tensors])
def test_what_may_not_be_read_is_an_oserror_that_names_it(tmp_path, open_file):
    path = tmp_path / "secret.safetensors"
    write_tensors(path, {"w": torch.ones(1)})
    path.chmod(0)
    with as_a_stranger(), pytest.raises(PermissionError, match=re.escape(str(path))):
        open_file(path)
