"""Checkpoints with random damage: refused, or read as torch itself reads them; never a crash, never another error."""

import pickle
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pickles import call, named, part, tensor, untyped, whole, zipped

from reelora.errors import FileFormatError
from reelora.tensorio import open_checkpoint

TORCH_REFUSES = (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError)
"""Whatever torch.load raises for a pickle that it does not like."""

LETTERS = [b"}", b"]", b")", b"(", b"N", b"\x88", b"\x89", b"K\x00", b"K\x01", b"K\x04", b"J\xff\xff\xff\xff"]
STEPS = [b"s", b"u", b"a", b"e", b"t", b"\x85", b"\x86", b"\x87", b"R", b"b", b"Q", b"\x94", b"2", b"0", b"\x81", b"\x93"]
MEMO = [b"q\x00", b"q\x01", b"h\x00", b"h\x01"]
NAMES = ["collections:OrderedDict", "torch:Size", "torch:float32", "torch:FloatStorage", "os:system", "numpy:dtype"]
NAMES += ["torch._utils:_rebuild_tensor_v2", "torch._utils:_rebuild_parameter"]
TENSORS = [tensor(), tensor((2, 2), (1, 2)), tensor((2,), (3,), 1), untyped((4,), "float32"), untyped((8,), "uint16")]
CALLS = [
    call(named("torch:Size"), part((1, 2))),
    call(named("torch._utils:_rebuild_parameter"), tensor(), part(True), b"}"),
    call(named("collections:OrderedDict")) + b"}b",
]
PAIRS = [part(key) + value for key in "ab" for value in (*TENSORS, *CALLS, b"}", b"]", b"N")]
AROUND = [(b"", b""), (b"(", b"t"), (b"}(", b"u"), (b"](", b"e")]
WORDS = LETTERS + STEPS + MEMO + [*map(named, NAMES), *TENSORS, *CALLS, *PAIRS]


def saved():
    """A small checkpoint with one of everything that torch.save may write."""
    shared = torch.arange(4.0)
    file = BytesIO()
    values = {"module": {"a": shared, "b": shared[1:], "c": torch.ones(2, dtype=torch.bfloat16)}, "n": [1, 2.5, "x", None]}
    torch.save(values | {"rng": np.arange(2), "size": torch.Size([2])}, file)
    return file.getvalue()


SAVED = saved()
edits = st.lists(st.tuples(st.integers(0, len(SAVED) - 1), st.integers(0, 255)), min_size=1, max_size=4)


def flat(tree, name=""):
    if isinstance(tree, torch.Tensor):
        return {name: tree}
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    return {path: leaf for key, child in children for path, leaf in flat(child, f"{name}.{key}" if name else f"{key}").items()}


def read_or_refused(path):
    """The tensors of a file, each touched from end to end; None if it was refused as it should be."""
    try:
        store = open_checkpoint(path)
    except FileFormatError as refusal:
        complaint = str(refusal)
    else:
        return {name: tensor.clone() for name, tensor in store.items()}
    assert path.name in complaint
    assert len(complaint) < 1500
    return None


def check_against_torch(path):
    ours = read_or_refused(path)
    if ours is None:
        return
    with suppress(*TORCH_REFUSES):
        theirs = flat(torch.load(path, weights_only=True))
        assert set(ours) == set(theirs)
        assert all(ours[name].dtype == tensor.dtype for name, tensor in theirs.items())
        assert all(torch.equal(ours[name].nan_to_num(), tensor.nan_to_num()) for name, tensor in theirs.items())


SOUND = whole(
    b"}("
    + (part("w") + tensor() + part("v") + tensor((2, 2), (1, 2)) + part("u") + untyped((4,), "float32"))
    + (part("o") + call(named("collections:OrderedDict")) + b"}" + part("_metadata") + b"}sb")
    + (part("n") + part([1, -2, 0.5, "x"]) + part("d") + call(named("numpy:dtype"), part("u4")) + part((3, "<")) + b"b")
    + b"u"
)


def damaged(content, edits):
    changed = bytearray(content)
    for place, value in edits:
        changed[place % len(content)] = value
    return bytes(changed)


def fuzz(examples, **strategies):
    """Run a check with that many examples."""
    return lambda check: settings(max_examples=examples, deadline=None)(given(**strategies)(check))()


at_length = pytest.mark.parametrize("examples", [200, pytest.param(10_000, marks=pytest.mark.slow)])

torch_warns = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


@at_length
def test_damaged_bytes_are_refused_or_read(tmp_path, examples):
    @fuzz(examples, edits=edits, cut=st.none() | st.integers(1, len(SAVED)))
    def check(edits, cut):
        path = tmp_path / "damaged.pt"
        path.write_bytes(damaged(SAVED, edits)[:cut])
        read_or_refused(path)


@torch_warns
@at_length
def test_a_damaged_pickle_in_a_sound_archive_is_refused_or_read_as_torch_reads_it(tmp_path, examples):
    @fuzz(examples, edits=edits)
    def check(edits):
        path = tmp_path / "damaged.pt"
        path.write_bytes(zipped(damaged(SOUND, edits)))
        check_against_torch(path)


@at_length
def test_random_opcodes_are_refused_or_read_as_torch_reads_them(tmp_path, examples):
    @fuzz(examples, words=st.lists(st.sampled_from(WORDS), max_size=10), around=st.sampled_from(AROUND))
    def check(words, around):
        path = tmp_path / "random.pt"
        path.write_bytes(zipped(whole(around[0] + b"".join(words) + around[1])))
        check_against_torch(path)


def test_the_checkpoints_that_are_damaged_are_sound(tmp_path):
    (tmp_path / "saved.pt").write_bytes(SAVED)
    (tmp_path / "sound.pt").write_bytes(zipped(SOUND))
    assert set(open_checkpoint(tmp_path / "saved.pt")) == {"module.a", "module.b", "module.c"}
    assert set(open_checkpoint(tmp_path / "sound.pt")) == {"w", "v", "u"}
