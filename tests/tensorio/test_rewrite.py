"""A rewritten file differs from its source in the tensors that were named, and in nothing else."""

import errno
import json
import os
from collections.abc import Sequence

import pytest
import torch
from disk import files_of_at_most
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from reelora.errors import FileFormatError
from reelora.tensorio import copy_file, open_tensors, rewrite_tensors, same_bytes

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.float8_e4m3fn)


def tensors_of(*shapes: Sequence[int], seed=0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        f"t{place}": (torch.randn(tuple(shape), generator=draw) * 9).abs().to(DTYPES[place % len(DTYPES)])
        for place, shape in enumerate(shapes)
    }


def ones(tensors):
    """Every asked tensor full of ones, in one and the same room where they are as large."""
    return lambda names: (torch.ones_like(tensors[name]) for name in names)


def data_of(path) -> bytes:
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


@settings(deadline=None, max_examples=40)
@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3), min_size=1, max_size=8),
    chosen=st.sets(st.integers(0, 7)),
    note=st.dictionaries(st.sampled_from(["format", "how", "é"]), st.text(max_size=9000), max_size=2),
)
def test_only_what_is_named_changes(tmp_path_factory, shapes, chosen, note):
    folder = tmp_path_factory.mktemp("rewrite")
    source, target = folder / "a.safetensors", folder / "b.safetensors"
    tensors = tensors_of(*shapes)
    save_file(tensors, source, metadata={"format": "pt"})
    names = {f"t{place}" for place in chosen} & set(tensors)
    rewrite_tensors(source, target, names, ones(tensors), metadata=note)
    found = load_file(target)
    assert list(open_tensors(target)) == list(open_tensors(source))
    for name, tensor in tensors.items():
        assert same_bytes(found[name], torch.ones_like(tensor) if name in names else tensor)
    with safe_open(target, "pt") as file:
        assert file.metadata() == {"format": "pt", **note}


def test_offsets_stay_and_data_move_by_whole_blocks(tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(tensors_of((5, 7), (300,), (2, 2)), source)
    rewrite_tensors(source, target, [], ones({}), metadata={"how": "x" * 5000})
    assert data_of(source) == data_of(target)
    starts = [8 + int.from_bytes(path.read_bytes()[:8], "little") for path in (source, target)]
    assert (starts[1] - starts[0]) % 4096 == 0
    headers = [json.loads(path.read_bytes()[8:start]) for path, start in zip((source, target), starts, strict=True)]
    assert headers[1].pop("__metadata__") == {"how": "x" * 5000}
    assert headers[0] == headers[1]


def test_values_are_asked_for_once_in_the_order_of_the_file(tmp_path):
    tensors = tensors_of(*[(3,)] * 6)
    save_file(tensors, tmp_path / "a.safetensors")
    asked = []

    def make(names):
        asked.append(list(names))
        return ones(tensors)(names)

    rewrite_tensors(tmp_path / "a.safetensors", tmp_path / "b.safetensors", ["t4", "t0", "t1"], make)
    header = json.loads((tmp_path / "a.safetensors").read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert asked == [sorted(["t4", "t0", "t1"], key=lambda name: header[name]["data_offsets"])]


REFUSALS = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@pytest.mark.parametrize("also_sendfile", [False, True])
@pytest.mark.parametrize("number", REFUSALS)
def test_where_the_kernel_does_not_copy_another_way_does(tmp_path, monkeypatch, number, also_sendfile):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    if also_sendfile:
        monkeypatch.setattr(os, "sendfile", refuse)
    (tmp_path / "a").write_bytes(os.urandom(3_000_000))
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_kernel_that_copies_nothing_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "copy_file_range", lambda *_, **__: 0)
    (tmp_path / "a").write_bytes(bytes(range(256)))
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == bytes(range(256))


def test_an_existing_file_is_never_written_into(tmp_path):
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    with pytest.raises(FileExistsError, match="b"):
        copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "old"


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    tensors = tensors_of((4000,), (4000,), (4000,))
    save_file(tensors, tmp_path / "a.safetensors")
    for number, names in enumerate(([], ["t0"], ["t2"])):
        with files_of_at_most(20_000), pytest.raises(OSError, match=r"\.out"):
            rewrite_tensors(tmp_path / "a.safetensors", tmp_path / f"{number}.out", names, ones(tensors))


def test_a_source_that_is_no_safetensors_file_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"PK\x03\x04 and more than eight bytes")
    with pytest.raises(FileFormatError, match="zip"):
        rewrite_tensors(tmp_path / "a.safetensors", tmp_path / "b.safetensors", [], ones({}))


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), True),
        (torch.tensor(0.0), torch.tensor(-0.0), False),
        (torch.zeros(2, 3), torch.zeros(3, 2), False),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32), False),
        (torch.zeros(0, 3), torch.zeros(0, 3), True),
    ],
)
def test_same_bytes_means_every_bit(first, second, is_same):
    assert same_bytes(first, second) is is_same
