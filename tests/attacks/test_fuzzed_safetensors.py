"""Safetensors headers with random damage: refused, or read as the safetensors library reads them.

We may be stricter than the library, never laxer: what it refuses, we refuse.
"""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from reelora.errors import FileFormatError
from reelora.tensorio import open_tensors
from reelora.tensorio.header import DTYPES

NAMES = [
    "w",
    "v",
    "",
    ".",
    "..",
    "../../etc/passwd",
    "/absolute",
    "a\\..\\b",
    "a\0b",
    "\x1b[2J",
    "ü",
    "\u202e",
    "__metadata__",
    "w" * 300,
]
NUMBERS = [0, 1, 2, 3, 4, 8, 16, -1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 2**64 + 4, 1.0, 4e0, -0.0, True, None, "4", [4]]
FIELDS = ["dtype", "shape", "data_offsets", "Dtype", "extra"]
SNIPPETS = [*'{}[]",: ', "\\", "0", "-0", "4.0", "4e0", "+4", "00", "1e400", "NaN", "null", "true", "//"]
SNIPPETS += ["\\u0000", "\\ud800", "\x00", "\x7f", "\ufeff"]

numbers = st.sampled_from(NUMBERS)
tensors = st.lists(st.tuples(st.sampled_from([*DTYPES]), st.lists(st.integers(0, 3), max_size=3)), max_size=4)
values = (
    numbers
    | st.sampled_from([*DTYPES, "F33", "f32", "F6_E2M3", "F4"])
    | st.lists(numbers, max_size=3)
    | st.dictionaries(st.sampled_from(FIELDS), numbers)
)
changes = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(FIELDS), values), max_size=2)
metadata = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(NAMES) | numbers, max_size=2)
splices = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), st.sampled_from(SNIPPETS)), max_size=3)


def fuzz(examples, **strategies):
    """Run a check with that many examples."""
    return lambda check: settings(max_examples=examples, deadline=None)(given(**strategies)(check))()


at_length = pytest.mark.parametrize("examples", [300, pytest.param(10_000, marks=pytest.mark.slow)])


def table_of(layout, names):
    """A sound header for tensors of these dtypes and shapes, one behind the other, and how many bytes they have."""
    table, start = {}, 0
    for name, (tag, shape) in zip(names, layout, strict=False):
        stop = start + torch.Size(shape).numel() * DTYPES[tag].itemsize
        table[name] = {"dtype": tag, "shape": shape, "data_offsets": [start, stop]}
        start = stop
    return table, start


def file_of(text, data_bytes):
    return len(text).to_bytes(8, "little") + text + bytes(data_bytes)


def spliced(text, edits):
    for place, length, snippet in edits:
        text = text[: place % (len(text) + 1)] + snippet + text[place % (len(text) + 1) + length :]
    return text


def check_against_the_library(path, content):
    path.write_bytes(content)
    try:
        store = open_tensors(path)
    except FileFormatError as refusal:
        complaint = str(refusal)
    else:
        return check_same(path, store)
    assert path.name in complaint
    assert complaint.isprintable()
    assert len(complaint) < 1500
    return None


def check_same(path, store):
    with safe_open(path, "pt") as theirs:
        assert set(store) == set(theirs.keys())
        assert store.metadata == (theirs.metadata() or {})
        for name, tensor in store.items():
            other = theirs.get_tensor(name)
            assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape)
            assert torch.equal(tensor.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


@at_length
def test_headers_with_other_values_are_refused_or_read_as_the_library_reads_them(tmp_path, examples):
    names = st.lists(st.sampled_from([name for name in NAMES if name != "__metadata__"]), unique=True, min_size=4, max_size=4)

    @fuzz(
        examples,
        layout=tensors,
        names=names,
        changes=changes,
        notes=st.none() | metadata,
        more=st.sampled_from([0, 0, 0, 1, -1, 8]),
    )
    def check(layout, names, changes, notes, more):
        table, size_bytes = table_of(layout, names)
        for name, field, value in changes:
            table.setdefault(name, {})[field] = value
        notes_row = {} if notes is None else {"__metadata__": notes}
        text = json.dumps(notes_row | table, ensure_ascii=False).encode()
        check_against_the_library(tmp_path / "fuzzed.safetensors", file_of(text, max(0, size_bytes + more)))


@at_length
def test_headers_with_other_letters_are_refused_or_read_as_the_library_reads_them(tmp_path, examples):
    """Here the JSON itself is damaged: numbers in odd spellings, names twice, escapes, brackets that do not close."""

    @fuzz(examples, layout=tensors, edits=splices, padding=st.sampled_from(["", " ", "\t", "\n", "\0", "x"]))
    def check(layout, edits, padding):
        table, size_bytes = table_of(layout, ["a", "b", "c", "d"])
        text = spliced(json.dumps({"__metadata__": {"k": "v"}} | table, separators=(",", ":")), edits) + padding
        check_against_the_library(tmp_path / "fuzzed.safetensors", file_of(text.encode("utf-8", "surrogatepass"), size_bytes))


@pytest.mark.parametrize(
    "spelling", ["0.0", "-0", "0e0", "00", "+0", "0x0", "false", "null", '"0"', "[]", "0 ", " 0", "\\u0030"]
)
def test_numbers_in_odd_spellings_are_refused_or_read_as_the_library_reads_them(tmp_path, spelling):
    table, size_bytes = table_of([("F32", [0, 3]), ("I8", [0])], ["a", "b"])
    text = json.dumps(table)
    for place in (place for place, letter in enumerate(text) if letter == "0"):
        odd = text[:place] + spelling + text[place + 1 :]
        check_against_the_library(tmp_path / "odd.safetensors", file_of(odd.encode(), size_bytes))


@at_length
def test_files_with_other_bytes_are_refused_or_read_as_the_library_reads_them(tmp_path, examples):
    table, size_bytes = table_of([("F32", [2, 2]), ("I8", [3]), ("BF16", [2])], ["a", "b", "c"])
    sound = file_of(json.dumps(table).encode(), size_bytes)
    edits = st.lists(st.tuples(st.integers(0, len(sound) - 1), st.integers(0, 255)), max_size=4)

    @fuzz(examples, edits=edits, cut=st.none() | st.integers(0, len(sound)), more=st.binary(max_size=4))
    def check(edits, cut, more):
        content = bytearray(sound)
        for place, value in edits:
            content[place] = value
        check_against_the_library(tmp_path / "fuzzed.safetensors", bytes(content[:cut] + more))


def test_a_file_cut_anywhere_is_refused(tmp_path):
    table, size_bytes = table_of([("F32", [2, 2]), ("I8", [3])], ["a", "b"])
    path, sound = tmp_path / "cut.safetensors", file_of(json.dumps(table).encode(), size_bytes)
    for length in range(len(sound)):
        path.write_bytes(sound[:length])
        with pytest.raises(FileFormatError, match=r"cut\.safetensors: "):
            open_tensors(path)


def test_a_header_that_truly_has_a_gigabyte_is_not_read(tmp_path):
    """The file is that large (of holes, so that it takes no disk); the limit does not depend on what is there."""
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write((2**30).to_bytes(8, "little") + b"{")
        file.truncate(2**30 + 100)
    with pytest.raises(FileFormatError, match="header has 1,073,741,824 bytes"):
        open_tensors(path)


def test_the_headers_that_are_damaged_are_sound(tmp_path):
    layout = [("F32", [2, 2]), ("I8", [3]), ("BOOL", []), ("F64", [0, 3])]
    table, size_bytes = table_of(layout, ["../../etc/passwd", "..", "", "/absolute"])
    path = tmp_path / "sound.safetensors"
    path.write_bytes(file_of(json.dumps(table).encode(), size_bytes))
    assert open_tensors(path).shapes == {name: tuple(row["shape"]) for name, row in table.items()}
    check_same(path, open_tensors(path))
