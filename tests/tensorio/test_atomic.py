"""A file appears whole or not at all."""

import os
from pathlib import Path

import pytest
import torch
from disk import files_of_at_most

from reelora.tensorio import atomic_folder, atomic_path, open_tensors, write_tensors


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "adapter.safetensors"
    write_tensors(path, {"w": torch.ones(3)})
    with files_of_at_most(4096), pytest.raises(OSError, match=r"adapter\.safetensors"):
        write_tensors(path, {"w": torch.zeros(10_000)})
    assert torch.equal(open_tensors(path)["w"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, ValueError])
def test_whatever_ends_the_block_removes_the_temporary_file(tmp_path, failure):
    path = tmp_path / "clip.mp4"

    def interrupted():
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise failure

    with pytest.raises(failure):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_the_temporary_path_is_fresh_beside_the_file_and_keeps_its_suffix(tmp_path):
    path = tmp_path / "clip.mp4"
    with atomic_path(path) as first, atomic_path(path) as second:
        assert first != second
        assert {first.parent, second.parent} == {tmp_path}
        assert {first.suffix, second.suffix} == {".mp4"}
        first.write_bytes(b"1")
        second.write_bytes(b"2")
        assert not path.exists()
    assert path.read_bytes() == b"1"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_rights_that_the_user_set(tmp_path):
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "a.safetensors", {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640


def test_a_missing_folder_and_a_folder_in_the_way_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"make it first.*nowhere"):
        write_tensors(tmp_path / "nowhere" / "a.safetensors", {})
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(OSError, match=r"taken\.safetensors"):
        write_tensors(tmp_path / "taken.safetensors", {})
    assert [path.name for path in tmp_path.iterdir()] == ["taken.safetensors"]


def test_an_oserror_of_another_file_is_passed_on_as_it_is(tmp_path):
    def reads_elsewhere():
        with atomic_path(tmp_path / "a.txt"):
            (tmp_path / "other").read_bytes()

    with pytest.raises(FileNotFoundError, match="other"):
        reads_elsewhere()


def test_errors_name_what_a_new_folder_and_its_files_will_be_called(tmp_path, monkeypatch):
    def fills(folder):
        with atomic_folder(folder) as fresh:
            write_tensors(fresh / "a.safetensors", {"w": torch.zeros(10_000)})

    with files_of_at_most(4096), pytest.raises(OSError, match=r"new/a\.safetensors"):
        fills(tmp_path / "new")

    def denies(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", denies)
    with pytest.raises(PermissionError) as error:
        fills(tmp_path / "new")
    assert error.value.filename == str(tmp_path / "new")
    assert not list(tmp_path.iterdir())
