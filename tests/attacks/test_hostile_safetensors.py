"""Files made to break a reader: each is refused with its path and what is wrong, and never read."""

import json
import re
from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reelora.errors import FileFormatError
from reelora.tensorio import open_tensors, write_tensors

ROW = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw(header, data=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def row(**changes):
    return {"w": ROW | changes}


ATTACKS = {
    "empty file": (b"", "0 bytes are no safetensors"),
    "shorter than a length": (b"\0\0\0", "3 bytes are no safetensors"),
    "length beyond the file": (raw({}, length=2**40), "says that its header has 1,099,511,627,776 bytes"),
    "length of all ones": (b"\xff" * 16, "says that its header has"),
    "length just beyond the file": (raw(b"{}", b"", length=3), "header has 3 bytes"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "zip of torch.save": (b"PK\x03\x04" + b"\0" * 60, "zip archive"),
    "web page": (b"<!DOCTYPE html><html></html>", "web page"),
    "no header": (raw(b"", b""), "must begin with"),
    "leading space": (raw(b" {}", b""), "must begin with"),
    "no json": (raw(b"{nonsense}", b""), "no valid JSON"),
    "cut off json": (raw(b'{"w": ', b""), "no valid JSON"),
    "no utf-8": (raw(b'{"\xff": 1}', b""), "no valid JSON"),
    "trailing json": (raw(b"{}{}", b""), "no valid JSON"),
    "nan as a number": (raw(b'{"w": NaN}', b""), "NaN is no JSON number"),
    "number of a million digits": (raw(b'{"w": ' + b"9" * 1_000_000 + b"}", b""), "no valid JSON"),
    "nested lists": (raw(b'{"w": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", b""), "no valid JSON"),
    "nested objects": (raw(b'{"w":' * 200_000 + b"1" + b"}" * 200_000, b""), "no valid JSON"),
    "the same tensor twice": (raw(b'{"w": %b, "w": %b}' % ((json.dumps(ROW).encode(),) * 2)), "'w'"),
    "the same field twice": (
        raw(b'{"w": {"dtype":"F32","dtype":"I8","shape":[2],"data_offsets":[0,8]}}'),
        "twice, first 'dtype'",
    ),
    "metadata twice": (raw(b'{"__metadata__":{},"__metadata__":{}}', b""), "twice, first '__metadata__'"),
    "metadata is a list": (raw({"__metadata__": []}, b""), "not a map of strings"),
    "metadata is null": (raw({"__metadata__": None}, b""), "not a map of strings"),
    "metadata of numbers": (raw({"__metadata__": {"steps": 3}}, b""), "__metadata__['steps'] is 3"),
    "metadata nested": (raw({"__metadata__": {"a": {"b": "c"}}}, b""), "not a string"),
    "row is a number": (raw({"w": 1}), "'w' is 1, not {dtype"),
    "row lacks a field": (raw({"w": {"dtype": "F32", "shape": [2]}}), "not {dtype"),
    "row has a field too many": (raw(row(extra=1)), "not {dtype"),
    "dtype unknown": (raw(row(dtype="F33")), "has dtype 'F33'; known are BOOL"),
    "dtype is a list": (raw(row(dtype=["F32"])), "has dtype"),
    "shape is a string": (raw(row(shape="2")), "has shape '2'"),
    "shape of floats": (raw(row(shape=[2.0])), "has shape [2.0]"),
    "shape of truths": (raw(row(shape=[True, 2])), "has shape [True, 2]"),
    "shape negative": (raw(row(shape=[-1, -2])), "has shape [-1, -2]"),
    "shape beyond int64": (raw(row(shape=[2**64])), "has shape"),
    "shape whose product wraps round to 2": (raw(row(shape=[2**62, 2**62, 2])), "more than a tensor can have"),
    "shape empty and huge": (raw(row(shape=[0, 2**62, 2**62], data_offsets=[0, 0]), b""), "more than a tensor can have"),
    "shape of 65 dimensions": (raw(row(shape=[1] * 65, data_offsets=[0, 4])), "at most 64"),
    "shape too small for its bytes": (raw(row(shape=[1])), "needs 4 bytes but its offsets span 8"),
    "offsets reversed": (raw(row(data_offsets=[8, 0])), "offsets span -8"),
    "offsets negative": (raw(row(data_offsets=[-8, 0])), "has offsets [-8, 0]"),
    "offsets three": (raw(row(data_offsets=[0, 4, 8])), "has offsets"),
    "offsets beyond the file": (raw(row(), b"\0" * 4), "an overlap of 4 bytes between 'w' and 'the end of the file'"),
    "hole at the front": (raw(row(data_offsets=[8, 16]), b"\0" * 16), "a hole of 8 bytes between 'the header' and 'w'"),
    "hole between": (
        raw({"v": ROW, "w": ROW | {"data_offsets": [12, 20]}}, b"\0" * 20),
        "a hole of 4 bytes between 'v' and 'w'",
    ),
    "hidden bytes at the end": (raw(row(), b"\0" * 9), "a hole of 1 bytes between 'w' and 'the end of the file'"),
    "overlap": (raw({"v": ROW, "w": ROW | {"data_offsets": [4, 12]}}, b"\0" * 12), "an overlap of 4 bytes between 'v' and 'w'"),
    "the same bytes twice": (raw({"v": ROW, "w": ROW}), "an overlap of 8 bytes"),
    "name is half a character": (raw(b'{"\\ud800": %b}' % json.dumps(ROW).encode()), "no valid Unicode"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_file_is_refused(tmp_path, attack):
    content, complaint = ATTACKS[attack]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=re.escape(complaint)) as refusal:
        open_tensors(path)
    assert "hostile.safetensors" in str(refusal.value)
    assert len(str(refusal.value)) < 1500


def test_all_faults_of_a_file_are_counted_at_once(tmp_path):
    path = tmp_path / "many.safetensors"
    path.write_bytes(raw({f"w{index}": ROW | {"dtype": "X"} for index in range(5)} | {"__metadata__": {"a": 1}}))
    with pytest.raises(FileFormatError, match=r"6 problems.*__metadata__.*'w0'.*'w1'"):
        open_tensors(path)


def test_control_characters_in_names_do_not_reach_the_terminal(tmp_path):
    path = tmp_path / "ansi.safetensors"
    path.write_bytes(raw({"\x1b[2J\nall is well": ROW | {"dtype": "X" * 10_000}}))
    with pytest.raises(FileFormatError) as refusal:
        open_tensors(path)
    assert "\x1b" not in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 1000


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_or_changed_anywhere_is_refused_or_still_tiles(tmp_path, data):
    """Either FileFormatError, or tensors that lie inside the file: never a crash, never another error."""
    path = tmp_path / "good.safetensors"
    write_tensors(path, {"a": torch.ones(2, 2), "b": torch.ones(3, dtype=torch.int8)}, metadata={"k": "v"})
    content = bytearray(path.read_bytes())
    cut = data.draw(st.integers(0, len(content)))
    damage = data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=3))
    for place, value in damage:
        content[place] = value
    path.write_bytes(content[:cut] if not damage else content)
    with suppress(FileFormatError):
        store = open_tensors(path)
        assert sum(tensor.nbytes for tensor in store.values()) == store.size_bytes < len(content)


def index(folder, weight_map):
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    return path


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
        "",
        "x.bin",
        "C:x.safetensors",
        "a\\b.safetensors",
        "\0.safetensors",
        7,
    ],
)
def test_an_index_cannot_point_out_of_its_folder(tmp_path, name):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "sub").mkdir()
    for place in ("secret.safetensors", "model/sub/x.safetensors"):
        write_tensors(tmp_path / place, {"w": torch.ones(1)})
    with pytest.raises(FileFormatError, match="no plain name"):
        open_tensors(index(tmp_path / "model", {"w": name}))


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_an_index_needs_a_weight_map(tmp_path, weight_map):
    with pytest.raises(FileFormatError, match="has no weight_map"):
        open_tensors(index(tmp_path, weight_map))


def test_an_index_with_a_name_twice_is_refused(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map": {"w": "a.safetensors", "w": "b.safetensors"}}')
    with pytest.raises(FileFormatError, match=r"twice, first 'w'"):
        open_tensors(path)


def test_missing_shards_are_counted_and_named(tmp_path):
    write_tensors(tmp_path / "1.safetensors", {"a": torch.ones(1)})
    with pytest.raises(FileFormatError, match=r"2 of 3 shards are missing, 2\.safetensors, 3\.safetensors"):
        open_tensors(index(tmp_path, {"a": "1.safetensors", "b": "2.safetensors", "c": "3.safetensors"}))


def test_an_index_and_shards_that_disagree_are_refused_with_every_disagreement(tmp_path):
    write_tensors(tmp_path / "1.safetensors", {"a": torch.ones(1), "both": torch.ones(1), "stranger": torch.ones(1)})
    write_tensors(tmp_path / "2.safetensors", {"both": torch.ones(1)})
    weight_map = {"a": "1.safetensors", "both": "1.safetensors", "lost": "2.safetensors"}
    with pytest.raises(
        FileFormatError,
        match=r"not in the shard .* 'lost'; 1 .*not in the index, first 'stranger'; 1 .*two shards, first 'both'",
    ):
        open_tensors(index(tmp_path, weight_map))


def test_a_hostile_shard_is_named(tmp_path):
    (tmp_path / "1.safetensors").write_bytes(b"\0" * 4)
    with pytest.raises(FileFormatError, match=r"1\.safetensors: 4 bytes"):
        open_tensors(index(tmp_path, {"a": "1.safetensors"}))
