"""Small files that ask for endless time or memory: each is refused, or read as the little that it is, at once.

Bounds: 300 MB of Python's memory, and 60 seconds on the slowest machine (a second or two on most).
"""

import tracemalloc

import pytest
from pickles import named, part, storage, tensor, whole, zipped

from reelora.errors import FileFormatError
from reelora.tensorio import open_checkpoint

MANY = 600_000
LONG_TEXT = b"X" + (5_000_000).to_bytes(4, "little") + b"x" * (5_000_000) + b"q\x09"
LONG_TUPLE = b"(" + b"K\x01" * 100_000 + b"tq\x09"


def doubled(seed, joined, levels=60):
    """A value that holds the one before it twice, and so on: ``2 ** levels`` values in a few hundred bytes."""
    return seed + b"q\x09" + joined * levels


TUPLES = doubled(b")", b"h\x09\x86q\x09")
WIDE = b"](" + b"](" + b"N" * 10_000 + b"eq\x09" + b"h\x09" * 10_000 + b"e"
WIDER = b"](" + WIDE + b"q\x09" + b"h\x09" * 10_000 + b"e"


REFUSED = {
    "a memo index of four billion": (whole(b"Nr\xff\xff\xff\xff(r\xff\xff\xff\xff"), "empty stack"),
    "bytes of four exabytes": (whole(b"\x8e" + b"\xff" * 7 + b"\x3f"), "expected"),
    "text of four gigabytes": (whole(b"X\xff\xff\xff\xff"), "expected"),
    "text of four exabytes": (whole(b"\x8d" + b"\xff" * 7 + b"\x3f"), "expected"),
    "a number of two gigabytes": (whole(b"\x8b\xff\xff\xff\x7f"), "opcode LONG4"),
    "a number of five million digits": (whole(b"L" + b"9" * (5_000_000) + b"L\n"), "opcode LONG"),
    "a fraction of five million digits": (whole(b"F0." + b"7" * (5_000_000) + b"\n"), "opcode FLOAT"),
    "a frame of four exabytes around too much": (b"\x80\x04\x95" + b"\xff" * 7 + b"\x3f" + b"]", "ends without STOP"),
    "600,000 lists": (whole(b"]" * (MANY)), "more than 500,000 opcodes"),
    "600,000 dicts that are remembered": (whole(b"}\x94" * MANY), "more than 500,000 opcodes"),
    "600,000 marks": (whole(b"(" * (MANY)), "more than 500,000 opcodes"),
    "tuples that double": (whole(TUPLES), "deeper than 64|without end"),
    "tuples that double, as a key": (whole(b"}" + TUPLES + b"Ns"), "a key is a tuple"),
    "tuples that double, as a shape": (whole(tensor(stride=(1,)).replace(part((4,)), TUPLES, 1)), "no counts"),
    "tuples that double, as arguments": (whole(named("torch:Size") + TUPLES + b"R"), "other than counts"),
    "tuples that double, as a function": (whole(TUPLES + b")R"), "calls a tuple"),
    "tuples that double, as a storage": (whole(TUPLES + b"Q"), "no storage"),
    "lists of lists of lists": (whole(WIDER), "without end"),
    "ten thousand times ten thousand": (whole(WIDE), "without end"),
    "a long text as a module": (whole(LONG_TEXT + (b"h\x09h\x09\x93" * 100_000)), "at most 1000 letters"),
    "a long text as a key, nested": (whole(b"}" + LONG_TEXT + b"}s"), "more than 1,000 letters"),
    "a long text as a storage": (whole(storage().replace(part("0"), LONG_TEXT, 1)), "no storage"),
    "numbers that collide": (
        whole(b"}(" + b"".join(part(k * (2**61 - 1)) + b"N" for k in range(1000)) + b"u"),
        "a key is a int",
    ),
}


@pytest.fixture(autouse=True)
def within_bounds():
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 * 2**20


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bomb", REFUSED)
def test_a_bomb_is_refused_in_bounded_time_and_memory(tmp_path, bomb):
    content, complaint = REFUSED[bomb]
    (tmp_path / "bomb.pt").write_bytes(zipped(content))
    with pytest.raises(FileFormatError, match=complaint) as refusal:
        open_checkpoint(tmp_path / "bomb.pt")
    assert len(str(refusal.value)) < 1500


MANY_CALLS = b"h\x08h\x09\x85R\x85" * 45_000
HARMLESS = {
    "one text encoded 45,000 times": named("_codecs:encode") + b"q\x08" + LONG_TEXT + b"\x85" + MANY_CALLS,
    "one tuple handed to 45,000 calls": named("torch:device") + b"q\x08" + LONG_TUPLE + b"\x85" + MANY_CALLS,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bomb", HARMLESS)
def test_one_long_argument_costs_nothing_in_many_calls(tmp_path, bomb):
    """The stack is left full, so the file is refused in the end; what counts is that the calls before it are cheap."""
    (tmp_path / "bomb.pt").write_bytes(zipped(whole(HARMLESS[bomb])))
    with pytest.raises(FileFormatError, match="does not end with one object"):
        open_checkpoint(tmp_path / "bomb.pt")


@pytest.mark.timeout(60)
def test_what_is_large_but_honest_is_read(tmp_path):
    """Ten thousand tensors, of which a real model has two thousand."""
    entries = b"".join(part(f"transformer.layers.{index}.weight") + tensor() for index in range(10_000))
    (tmp_path / "many.pt").write_bytes(zipped(whole(b"}(" + entries + b"u")))
    assert len(open_checkpoint(tmp_path / "many.pt")) == 10_000


def test_a_small_file_with_a_pickle_of_33_megabytes_is_not_read(tmp_path):
    (tmp_path / "bomb.pt").write_bytes(zipped(b"N" * (33 * 2**20)))
    with pytest.raises(FileFormatError, match=r"data\.pkl has 34,603,008 bytes; the most that is read is 33,554,432"):
        open_checkpoint(tmp_path / "bomb.pt")
