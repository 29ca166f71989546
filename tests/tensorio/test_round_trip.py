"""Laws of reading and writing safetensors."""

import json

import hypothesis.strategies as st
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings

from reelora.errors import FileFormatError
from reelora.tensorio import TensorStore, fingerprint, open_tensors, sampled_fingerprint, shape_fingerprint, write_tensors

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.uint16,
    torch.int16,
    torch.uint32,
    torch.int32,
    torch.uint64,
    torch.int64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
]
SHAPES = [(), (0,), (3, 0, 2), (1,), (5,), (2, 3), (2, 1, 3, 2)]


def random_tensor(dtype, shape, seed):
    """Random bytes seen as the dtype, so NaNs and signed zeros occur too."""
    count = torch.empty(shape, dtype=dtype).nbytes
    high = 2 if dtype is torch.bool else 256
    raw = torch.randint(high, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return raw.view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)


def same_bits(left, right):
    same_kind = left.dtype == right.dtype and left.shape == right.shape
    return same_kind and torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))


def same_store(left, right):
    return set(left) == set(right) and all(same_bits(left[name], right[name]) for name in left)


tensors = st.builds(random_tensor, st.sampled_from(DTYPES), st.sampled_from(SHAPES), st.integers(0, 2**32 - 1))
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
metadata = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stored=st.dictionaries(names, tensors, max_size=6), notes=metadata)
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, stored, notes):
    path = tmp_path / "any.safetensors"
    write_tensors(path, stored, metadata=notes)
    read = open_tensors(path)
    assert same_store(stored, read)
    assert read.metadata == notes
    assert read.shapes == {name: tuple(tensor.shape) for name, tensor in stored.items()}
    assert read.dtypes == {name: tensor.dtype for name, tensor in stored.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_safetensors_library_and_we_read_each_others_files(tmp_path, dtype):
    stored = {f"t{index}": random_tensor(dtype, shape, index) for index, shape in enumerate(SHAPES)}
    write_tensors(tmp_path / "ours.safetensors", stored, metadata={"format": "pt", "ü": "ß"})
    assert same_store(stored, safetensors.torch.load_file(tmp_path / "ours.safetensors"))
    with safetensors.safe_open(tmp_path / "ours.safetensors", "pt") as theirs:
        assert theirs.metadata() == {"format": "pt", "ü": "ß"}
    if dtype is not torch.float8_e8m0fnu:  # which the library reads but does not write
        safetensors.torch.save_file(stored, tmp_path / "theirs.safetensors", metadata={"a": "b"})
        read = open_tensors(tmp_path / "theirs.safetensors")
        assert same_store(stored, read)
        assert read.metadata == {"a": "b"}


def test_the_same_content_gives_the_same_bytes_in_whatever_order_it_comes(tmp_path):
    stored = {"b": torch.ones(3), "a": torch.ones(2, dtype=torch.float64), "c": torch.ones(1, dtype=torch.int8)}
    write_tensors(tmp_path / "1.safetensors", stored, metadata={"x": "1", "y": "2"})
    write_tensors(tmp_path / "2.safetensors", dict(reversed(stored.items())), metadata={"y": "2", "x": "1"})
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def test_strided_conjugate_and_gradient_carrying_tensors_are_written_by_value(tmp_path):
    square = torch.arange(6.0).reshape(2, 3)
    complex_pair = torch.tensor([1 + 2j, 3 - 4j])
    views = {
        "turned": square.T,
        "conj": complex_pair.conj(),
        "minus": complex_pair.conj().imag,
        "grad": square.requires_grad_(),
    }
    write_tensors(tmp_path / "views.safetensors", views)
    read = open_tensors(tmp_path / "views.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in views.items())


def test_reading_is_a_view_and_writing_into_it_never_reaches_the_file(tmp_path):
    path = tmp_path / "base.safetensors"
    write_tensors(path, {"w": torch.zeros(4), "v": torch.zeros(4)})
    before = path.read_bytes()
    store = open_tensors(path)
    assert store["w"].data_ptr() == store["w"].data_ptr()
    assert store["w"].untyped_storage().data_ptr() + 16 in {store["v"].data_ptr(), store["v"].data_ptr() + 32}
    store["w"].fill_(1.0)
    assert path.read_bytes() == before
    assert torch.equal(open_tensors(path)["w"], torch.zeros(4))


def test_tensors_outlive_their_store_and_their_file(tmp_path):
    path = tmp_path / "gone.safetensors"
    write_tensors(path, {"w": torch.arange(4.0)})
    tensor = open_tensors(path)["w"]
    path.unlink()
    assert torch.equal(tensor, torch.arange(4.0))


@pytest.mark.parametrize("padding", range(1, 8))
def test_tensors_at_odd_addresses_are_read_right(tmp_path, padding):
    """The format asks no alignment: a header of any length is legal."""
    path = tmp_path / "odd.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
    header += b" " * ((padding - len(header)) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + torch.arange(3.0).numpy().tobytes())
    tensor = open_tensors(path)["w"]
    assert torch.equal(tensor, torch.arange(3.0))
    assert tensor.data_ptr() % 4 == 0


def write_shards(folder, shards, index=None):
    """Shards and the index that belongs to them, as transformers and diffusers lay them out."""
    for file, stored in shards.items():
        safetensors.torch.save_file(stored, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, stored in shards.items() for name in stored}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map if index is None else index}))
    return path


SHARDS = {
    "model-00001-of-00002.safetensors": {"a": torch.ones(2), "b": torch.zeros(3)},
    "model-00002-of-00002.safetensors": {"c": torch.arange(4)},
}


def test_shards_read_as_one_by_their_index_or_by_their_folder(tmp_path):
    index = write_shards(tmp_path, SHARDS)
    whole = {name: tensor for stored in SHARDS.values() for name, tensor in stored.items()}
    for path in (index, tmp_path):
        store = open_tensors(path)
        assert same_store(whole, store)
        assert store.path == index
        assert store.metadata == {"format": "pt"}
        assert store.size_bytes == sum(tensor.nbytes for tensor in whole.values())


def test_a_folder_with_one_file_reads_as_that_file(tmp_path):
    write_tensors(tmp_path / "only.safetensors", {"w": torch.ones(1)})
    assert open_tensors(tmp_path).path == tmp_path / "only.safetensors"


def test_a_folder_with_several_files_and_no_index_is_refused_by_name(tmp_path):
    for name in ("x", "y"):
        write_tensors(tmp_path / f"{name}.safetensors", {})
    with pytest.raises(FileFormatError, match=r"2 candidates, x.safetensors, y.safetensors"):
        open_tensors(tmp_path)


def test_what_is_missing_is_an_oserror_that_says_what_is_there(tmp_path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"it holds model\.bin"):
        open_tensors(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        open_tensors(tmp_path / "none.safetensors")


def test_a_store_is_a_mapping_that_knows_what_it_lacks(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"w": torch.ones(1)})
    store = open_tensors(tmp_path)
    assert isinstance(store, TensorStore)
    assert "w" in store
    assert "v" not in store
    assert store.get("v") is None
    assert "1 tensors, 4 bytes" in repr(store)


@pytest.mark.parametrize(
    ("stored", "notes", "complaint"),
    [
        ({"__metadata__": torch.ones(1)}, {}, "reserved"),
        ({"w": torch.empty(2, device="meta"), "s": torch.eye(2).to_sparse()}, {}, r"2 tensors have no values.*w, s"),
        ({"w": torch.ones(1, dtype=torch.complex128)}, {}, r"dtype that safetensors lacks, first w"),
        ({}, {"steps": 3}, r"metadata values are no strings, first 'steps'"),
        ({"\ud800": torch.ones(1)}, {}, "no text"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_before_anything_is_written(tmp_path, stored, notes, complaint):
    with pytest.raises(FileFormatError, match=complaint):
        write_tensors(tmp_path / "a.safetensors", stored, metadata=notes)
    assert not list(tmp_path.iterdir())


@settings(max_examples=30, deadline=None)
@given(stored=st.dictionaries(names, tensors, max_size=4))
def test_a_fingerprint_depends_on_content_only(stored):
    moved = {name: torch.cat([t.reshape(-1)] * 2)[: t.numel()].view(t.shape) if t.numel() else t for name, t in stored.items()}
    assert fingerprint(stored) == fingerprint(dict(reversed(moved.items())))


@pytest.mark.parametrize("fingerprint", [fingerprint, sampled_fingerprint])
def test_a_fingerprint_tells_names_dtypes_shapes_and_bits_apart(fingerprint):
    base = {"w": torch.zeros(4)}
    others = [
        {"v": torch.zeros(4)},
        {"w": torch.zeros(2, 2)},
        {"w": torch.zeros(4, dtype=torch.int32)},
        {"w": torch.tensor([0.0, 0.0, 0.0, -0.0])},
        {"w": torch.zeros(4), "v": torch.zeros(0)},
        {},
    ]
    assert len({fingerprint(tensors) for tensors in [base, *others]}) == len(others) + 1


def test_a_shape_fingerprint_tells_names_and_shapes_apart_and_not_their_order():
    assert shape_fingerprint({"a": (1,), "b": (2, 3)}) == shape_fingerprint({"b": (2, 3), "a": (1,)})
    assert len({shape_fingerprint(shapes) for shapes in ({"a": (1,)}, {"a": (1, 1)}, {"b": (1,)}, {})}) == 4


def test_a_sampled_fingerprint_sees_any_change_of_all_values_and_of_the_ends_and_the_middle():
    large = {"w": torch.zeros(100_000, dtype=torch.bfloat16)}
    seen = [sampled_fingerprint(large), sampled_fingerprint({"w": large["w"] + 1})]
    for place in (0, 50_000, 99_999):
        edited = large["w"].clone()
        edited[place] = 1
        seen.append(sampled_fingerprint({"w": edited}))
    assert len(set(seen)) == len(seen)
    assert sampled_fingerprint({"w": large["w"].clone()}) == seen[0]
