"""Laws of reading what torch.save writes, and of writing what torch.load reads."""

import tracemalloc
from collections import OrderedDict
from collections.abc import Mapping
from zipfile import ZipFile

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from disk import files_of_at_most
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from reelora.errors import FileFormatError
from reelora.tensorio import CheckpointStore, DeferredTensor, open_checkpoint, open_tensors, write_checkpoint, write_tensors

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64, torch.int64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
]
SHAPES = [(), (0,), (3, 0, 2), (1,), (5,), (2, 3), (2, 1, 3, 2)]


def random_tensor(dtype, shape, seed):
    """Random bytes seen as the dtype, so NaNs and signed zeros occur too."""
    count = torch.empty(shape, dtype=dtype).nbytes
    raw = torch.randint(2 if dtype is torch.bool else 256, (count,), dtype=torch.uint8, generator=torch.manual_seed(seed))
    return raw.view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)


def bits(tensor):
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).tolist()


def same_bits(left, right):
    return left.dtype == right.dtype and left.shape == right.shape and bits(left) == bits(right)


def same_store(left, right):
    return set(left) == set(right) and all(same_bits(left[name], right[name]) for name in left)


def flat(tree, name=""):
    """The tensors of nested containers by dotted name, the slow and plain way."""
    if isinstance(tree, Tensor):
        return {name: tree}
    children = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    return {path: leaf for key, child in children for path, leaf in flat(child, f"{name}.{key}" if name else f"{key}").items()}


tensors = st.builds(random_tensor, st.sampled_from(DTYPES), st.sampled_from(SHAPES), st.integers(0, 2**32 - 1))
keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="."), min_size=1, max_size=8)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | keys
trees = st.recursive(
    tensors | plain,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(keys, part, max_size=3) | st.tuples(part, part),
    max_leaves=12,
)
examples = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@examples
@given(tree=st.dictionaries(keys, trees, max_size=4), protocol=st.integers(2, 5))
def test_whatever_torch_saves_is_read_bit_for_bit(tmp_path, tree, protocol):
    path = tmp_path / "any.pt"
    torch.save(tree, path, pickle_protocol=protocol)
    store = open_checkpoint(path)
    assert same_store(flat(tree), store)
    assert store.shapes == {name: tuple(tensor.shape) for name, tensor in flat(tree).items()}
    assert store.dtypes == {name: tensor.dtype for name, tensor in flat(tree).items()}
    assert store.size_bytes == sum(tensor.nbytes for tensor in flat(tree).values())


@examples
@given(tree=st.dictionaries(keys, trees, max_size=4))
def test_what_is_written_is_what_torch_and_we_read(tmp_path, tree):
    path = tmp_path / "any.pt"
    write_checkpoint(path, tree)
    theirs = torch.load(path, weights_only=True)
    assert same_store(flat(tree), flat(theirs))
    assert same_store(flat(tree), open_checkpoint(path))
    write_checkpoint(tmp_path / "again.pt", theirs)
    assert (tmp_path / "again.pt").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_read_and_written(tmp_path, dtype):
    stored = {f"t{index}": random_tensor(dtype, shape, index) for index, shape in enumerate(SHAPES)}
    torch.save(stored, tmp_path / "theirs.pt")
    write_checkpoint(tmp_path / "ours.pt", stored)
    assert same_store(stored, open_checkpoint(tmp_path / "theirs.pt"))
    assert same_store(stored, torch.load(tmp_path / "ours.pt", weights_only=True))
    assert same_store(stored, torch.load(tmp_path / "ours.pt", weights_only=True, mmap=True))


def test_views_keep_their_strides_and_share_memory_as_they_did(tmp_path):
    table = torch.arange(24.0).reshape(4, 6)
    stored = {
        "shared": table,
        "embed_tokens": table,
        "turned": table.T,
        "row": table[2],
        "corner": table[1:3, ::2],
        "repeated": table[0, :1].expand(5),
    }
    torch.save(stored, tmp_path / "views.pt")
    store = open_checkpoint(tmp_path / "views.pt")
    assert same_store(stored, store)
    assert all(store[name].stride() == tensor.stride() for name, tensor in stored.items())
    assert len({store[name].untyped_storage().data_ptr() for name in store}) == 1
    store["shared"][2, 0] = 7.0
    assert (store["embed_tokens"][2, 0], store["turned"][0, 2], store["row"][0]) == (7.0, 7.0, 7.0)
    torch.save(dict(store), tmp_path / "again.pt")
    assert sum("/data/" in name for name in ZipFile(tmp_path / "again.pt").namelist()) == 1


def test_one_storage_seen_as_two_dtypes_is_read_as_both(tmp_path):
    raw = torch.arange(7, dtype=torch.uint8)
    stored = {"wide": raw[:6].view(torch.uint16), "wider": raw[:4].view(torch.uint32)}
    torch.save(stored, tmp_path / "untyped.pt")
    assert same_store(stored, open_checkpoint(tmp_path / "untyped.pt"))


def test_lazy_conjugates_and_negatives_are_read_by_value(tmp_path):
    pair = torch.tensor([1 + 2j, 3 - 4j])
    stored = {"conj": pair.conj(), "minus": pair.clone().conj().imag}
    assert stored["conj"].is_conj()
    assert stored["minus"].is_neg()
    torch.save(stored, tmp_path / "lazy.pt")
    write_checkpoint(tmp_path / "ours.pt", stored)
    for name in ("lazy.pt", "ours.pt"):
        store = open_checkpoint(tmp_path / name)
        assert all(torch.equal(store[name], tensor) for name, tensor in stored.items())


def test_parameters_are_read_as_tensors_without_gradient(tmp_path):
    model = torch.nn.Linear(3, 2)
    marked = torch.nn.Parameter(torch.ones(2))
    vars(marked)["model_parallel"] = True
    torch.save({"state": model.state_dict(keep_vars=True), "marked": marked}, tmp_path / "model.pt")
    store = open_checkpoint(tmp_path / "model.pt")
    assert same_store({"state.weight": model.weight, "state.bias": model.bias, "marked": marked}, store)
    assert not any(type(tensor) is not Tensor or tensor.requires_grad for tensor in store.values())


def deepspeed_like():
    """What a DeepSpeed fine-tune holds beside its weights: shapes, settings, and the state of three random generators."""
    model = torch.nn.ModuleDict({"shared": torch.nn.Embedding(4, 2), "out": torch.nn.Linear(2, 4)})
    model["out"].weight = model["shared"].weight
    return {
        "module": model.bfloat16().state_dict(),
        "optimizer": None,
        "buffer_names": [],
        "param_shapes": [OrderedDict(weight=torch.Size([4, 2]))],
        "ds_config": {"train_batch_size": 2, "fp16": {"enabled": False}},
        "ds_version": "0.19.8",
        "iteration": 2,
        "loss": np.float32(0.5),
        "where": torch.device("cuda", 0),
        "kind": torch.bfloat16,
        "random_rng_state": (3, tuple(range(625)), None),
        "np_rng_state": {"legacy": np.random.RandomState(0).get_state(), **np.random.default_rng(0).bit_generator.state},
        "objects": np.array([{"a": 1}, None], dtype=object),
        "torch_rng_state": torch.get_rng_state(),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_deepspeed_checkpoint_with_numpy_inside_is_read_and_its_notes_too(tmp_path, protocol):
    saved = deepspeed_like()
    torch.save(saved, tmp_path / "mp_rank_00_model_states.pt", pickle_protocol=protocol)
    store = open_checkpoint(tmp_path / "mp_rank_00_model_states.pt", root="module")
    assert same_store(saved["module"], store)
    assert store["shared.weight"].data_ptr() == store["out.weight"].data_ptr()
    expected = {"optimizer": None, "buffer_names": [], "param_shapes.0.weight": (4, 2), "iteration": 2, "ds_version": "0.19.8"}
    expected |= {"ds_config.train_batch_size": 2, "ds_config.fp16.enabled": False, "kind": torch.bfloat16}
    assert {name: store.notes[name] for name in expected} == expected
    assert [type(store.notes[name]).__name__ for name in ("loss", "where", "np_rng_state.legacy.1")] == ["Unread"] * 3
    assert "torch_rng_state" in open_checkpoint(store.path)


def test_a_bare_list_of_tensors_is_read_by_number(tmp_path):
    stored = [torch.ones(2, 3), torch.zeros(3, 2), torch.full((2,), 5.0)]
    torch.save(stored, tmp_path / "lora.pt")
    assert list(open_checkpoint(tmp_path / "lora.pt")) == ["0", "1", "2"]
    assert same_store(flat(stored), open_checkpoint(tmp_path / "lora.pt"))
    torch.save(stored[0], tmp_path / "bare.pt")
    assert same_store({"": stored[0]}, open_checkpoint(tmp_path / "bare.pt"))


def test_a_part_is_named_without_its_root_and_a_missing_one_is_named_with_what_there_is(tmp_path):
    write_checkpoint(tmp_path / "a.pt", {"module": {"net": {"w": torch.ones(1)}}, "module_count": 1})
    whole = open_checkpoint(tmp_path / "a.pt")
    assert list(whole.under("module")) == ["net.w"]
    assert list(open_checkpoint(tmp_path / "a.pt", root="module.net")) == ["w"]
    assert whole.under("module").notes == {"module_count": 1}
    with pytest.raises(FileFormatError, match=r"a\.pt: no tensor lies under 'modul': did you mean 'module'\?"):
        whole.under("modul")
    write_checkpoint(tmp_path / "b.pt", {})
    with pytest.raises(FileFormatError, match="it holds no tensor at all"):
        open_checkpoint(tmp_path / "b.pt", root="module")


def test_a_store_is_a_mapping_that_knows_what_it_lacks(tmp_path):
    write_checkpoint(tmp_path / "a.pt", {"w": torch.ones(1)})
    store = open_checkpoint(tmp_path / "a.pt")
    assert isinstance(store, CheckpointStore)
    assert "w" in store
    assert "v" not in store
    assert store.get("v") is None
    assert "1 tensors, 4 bytes" in repr(store)


def test_reading_is_a_view_that_outlives_its_file_and_never_writes_into_it(tmp_path):
    path = tmp_path / "base.pt"
    write_checkpoint(path, {"w": torch.zeros(1000)})
    before = path.read_bytes()
    tensor = open_checkpoint(path)["w"]
    assert tensor.data_ptr() % 64 == 0
    tensor.fill_(1.0)
    assert path.read_bytes() == before
    path.unlink()
    assert tensor.sum() == 1000


def test_the_same_tree_gives_the_same_bytes_wherever_its_strings_come_from(tmp_path):
    for name in ("1", "2"):
        key = "".join(["mod", "ule"])
        write_checkpoint(tmp_path / name, {key: {"w": torch.ones(3)}, "kind": "".join(["mod", "ule"])})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_small_view_of_a_large_storage_stays_small_and_aliases_are_written_once(tmp_path):
    large = torch.arange(100_000.0)
    write_checkpoint(tmp_path / "small.pt", {"head": large[:10], "odd": large[1:20:2]})
    assert (tmp_path / "small.pt").stat().st_size < 3000
    deferred = DeferredTensor((100_000,), torch.float32, lambda: large)
    write_checkpoint(tmp_path / "twice.pt", {"a": large, "b": large.view(10, -1), "c": deferred, "d": deferred})
    assert (tmp_path / "twice.pt").stat().st_size < 810_000
    read = torch.load(tmp_path / "twice.pt", weights_only=True)
    assert read["a"].data_ptr() == read["b"].data_ptr()
    assert read["c"].data_ptr() == read["d"].data_ptr()


def test_deferred_tensors_are_made_one_after_the_other(tmp_path):
    """Ten of 8 MB: at most the one that is written and the next are alive, of which Python's tracer sees the numpy ones."""

    def deferred(value):
        return DeferredTensor((2**21,), torch.float32, lambda: torch.from_numpy(np.full(2**21, value, dtype=np.float32)))

    tracemalloc.start()
    write_checkpoint(tmp_path / "many.pt", {"module": {f"w{value}": deferred(value) for value in range(10)}})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20
    assert all((open_checkpoint(tmp_path / "many.pt", root="module")[f"w{value}"] == value).all() for value in range(10))


def test_mapped_files_can_be_written_straight_on(tmp_path):
    stored = {"a.weight": torch.ones(2, 2), "b": torch.zeros(3, dtype=torch.bfloat16)}
    write_tensors(tmp_path / "a.safetensors", stored)
    write_checkpoint(tmp_path / "a.pt", {"module": open_tensors(tmp_path / "a.safetensors")})
    assert same_store(stored, torch.load(tmp_path / "a.pt", weights_only=True)["module"])
    write_tensors(tmp_path / "b.safetensors", open_checkpoint(tmp_path / "a.pt", root="module"))
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def endless():
    tree: dict = {}
    tree["self"] = tree
    return tree


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        ({"a": {1, 2}, "b": object(), "c": b"x"}, r"3 values.*'a' is a set.*'b' is a object.*'c' is a bytes"),
        ({"w": torch.empty(2, device="meta"), "s": torch.eye(2).to_sparse()}, r"2 values.*'w' is a tensor.*'s' is a tensor"),
        ({"x": np.float64(1.0)}, "'x' is a float64"),
        ({"x": {2.5: 1}}, r"'x' has the key 2\.5, no text"),
        ({"\ud800": 1}, "no text"),
        ({"x": "\ud800"}, "'x' is a str"),
        ({"a.b": 1, "a": {"b": 2}}, "two values are called 'a.b'"),
        (endless(), "lies deeper than 64"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name_before_anything_is_written(tmp_path, tree, complaint):
    with pytest.raises(FileFormatError, match=complaint):
        write_checkpoint(tmp_path / "a.pt", tree)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "adapter.pt"
    write_checkpoint(path, {"w": torch.ones(3)})
    with files_of_at_most(4096), pytest.raises(OSError, match=r"adapter\.pt"):
        write_checkpoint(path, {"w": torch.zeros(10_000)})
    assert torch.equal(open_checkpoint(path)["w"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_records_and_files_of_more_than_four_gigabytes(tmp_path):
    """Where zip needs its 64-bit fields: for the size of the first record and for the place of the second."""
    path = tmp_path / "large.pt"
    large = DeferredTensor((2**32 + 5,), torch.uint8, lambda: torch.full((2**32 + 5,), 3, dtype=torch.uint8))
    write_checkpoint(path, {"large": large, "after": torch.arange(4.0)})
    store, theirs = open_checkpoint(path), torch.load(path, weights_only=True, mmap=True)
    assert store["large"].shape == theirs["large"].shape == (2**32 + 5,)
    assert store["large"][-1] == theirs["large"][-1] == 3
    assert torch.equal(store["after"], torch.arange(4.0))
    assert torch.equal(theirs["after"], torch.arange(4.0))
    path.unlink()
