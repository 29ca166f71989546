"""Checkpoints made to run code, to exhaust the machine or to reach outside of themselves: refused, and nothing of them runs."""

import pickle
import subprocess
import sys

import pytest
import torch
from pickles import call, named, part, stack_named, storage, tensor, untyped, whole, zipped

from reelora.errors import FileFormatError
from reelora.tensorio import open_checkpoint

CANARY = "canary"
"""What every attack would leave in the working folder if it ran."""
TOUCH = f"touch {CANARY}"
WRITE = f"open({CANARY!r}, 'w').close()"


OS_SYSTEM = call(named("os:system"), part(TOUCH))
IMPORT_OS = call(named("builtins:__import__"), part("os"))

CODE = {
    "os.system": OS_SYSTEM,
    "posix.system": call(named("posix:system"), part(TOUCH)),
    "nt.system": call(named("nt:system"), part(TOUCH)),
    "subprocess.Popen": call(named("subprocess:Popen"), part(["touch", CANARY])),
    "subprocess.check_output": call(named("subprocess:check_output"), part(["touch", CANARY])),
    "builtins.eval": call(named("builtins:eval"), part(WRITE)),
    "__builtin__.eval": call(named("__builtin__:eval"), part(WRITE)),
    "builtins.exec": call(named("builtins:exec"), part(WRITE)),
    "builtins.open": call(named("builtins:open"), part(CANARY), part("w")),
    "builtins.__import__": IMPORT_OS,
    "builtins.getattr": call(call(named("builtins:getattr"), IMPORT_OS, part("system")), part(TOUCH)),
    "operator.attrgetter": call(call(named("operator:attrgetter"), part("system")), named("os:path")),
    "functools.partial": call(call(named("functools:partial"), named("os:system"), part(TOUCH))),
    "runpy._run_code": call(named("runpy:_run_code"), part(WRITE), part({})),
    "pty.spawn": call(named("pty:spawn"), part(["touch", CANARY])),
    "shutil.rmtree": call(named("shutil:rmtree"), part(".")),
    "pickle.loads": call(named("pickle:loads"), part(whole(OS_SYSTEM).decode("latin1"))),
    "importlib.import_module": call(named("importlib:import_module"), part("antigravity")),
    "torch.load": call(named("torch:load"), part(CANARY)),
    "torch.hub.load": call(named("torch.hub:load"), part("owner/repo"), part("model")),
    "torch.serialization.add_safe_globals": call(
        named("torch.serialization:add_safe_globals"), b"]" + named("os:system") + b"a"
    ),
    "torch.utils.data.DataLoader": call(named("torch.utils.data:DataLoader"), b"]"),
    "torch._utils._rebuild_device_tensor_from_numpy": call(named("torch._utils:_rebuild_device_tensor_from_numpy")),
    "torch._tensor._rebuild_from_type_v2": call(named("torch._tensor:_rebuild_from_type_v2"), named("os:system")),
    "torch.jit._script.RecursiveScriptModule": call(named("torch.jit._script:RecursiveScriptModule")),
    "__torch__.torch.nn.modules.activation.ReLU": call(named("__torch__.torch.nn.modules.activation:ReLU")),
    "numpy.load": call(named("numpy:load"), part(CANARY)),
    "numpy.testing._private.utils.runstring": call(named("numpy.testing._private.utils:runstring"), part(WRITE), part({})),
    "argparse.Namespace": call(named("argparse:Namespace")),
    "collections.OrderedDict.__reduce__": call(named("collections:OrderedDict.__reduce__")),
    "collections.OrderedDict.fromkeys": call(named("collections:OrderedDict.fromkeys"), part((1,))),
    "torch._utils._rebuild_tensor_v2.__globals__": call(named("torch._utils:_rebuild_tensor_v2.__globals__")),
    "reelora.tensorio.stand_ins.StandIn": call(named("reelora.tensorio.stand_ins:StandIn"), part("x"), named("os:system")),
}

HIDDEN = {
    "as an argument": call(named("collections:OrderedDict"), OS_SYSTEM),
    "as a state": call(named("collections:OrderedDict")) + OS_SYSTEM + b"b",
    "as a function of a function": call(OS_SYSTEM, part(1)),
    "in a dict": b"}" + part("a") + OS_SYSTEM + b"s",
    "as a key": b"}" + OS_SYSTEM + part(1) + b"s",
    "in a list": b"]" + OS_SYSTEM + b"a",
    "dropped": OS_SYSTEM + b"0" + part(1),
    "remembered": OS_SYSTEM + b"q\x00" + b"0" + part(1),
    "named on the stack": call(stack_named("os:system"), part(TOUCH)),
    "as a storage": call(named("torch._utils:_rebuild_tensor_v2"), OS_SYSTEM + b"Q"),
    "as a persistent id": OS_SYSTEM + b"Q",
    "as a storage class": b"(" + part("storage") + OS_SYSTEM + part("0") + part("cpu") + part(4) + b"tQ",
    "as hooks": call(named("torch._utils:_rebuild_parameter"), part(1), part(True), OS_SYSTEM),
    "in a numpy array of objects": call(named("numpy._core.multiarray:_reconstruct"), named("numpy:ndarray"), OS_SYSTEM),
    "in the state of a numpy array": call(named("numpy:dtype"), part("O8")) + b"(" + part(3) + OS_SYSTEM + b"tb",
    "as a new object": named("os:system") + part((TOUCH,)) + b"\x81",
    "as an instance": b"(" + part(TOUCH) + b"ios\nsystem\n",
    "as an object": b"(" + named("os:system") + part(TOUCH) + b"o",
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """No attack may leave anything where it would run."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / CANARY).exists()


def refusal_of(path, content):
    path.write_bytes(content)
    with pytest.raises(FileFormatError) as refusal:
        open_checkpoint(path)
    assert path.name in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 1500
    return str(refusal.value)


@pytest.mark.parametrize("name", CODE)
def test_code_is_refused_by_its_name(tmp_path, name):
    complaint = refusal_of(tmp_path / "hostile.pt", zipped(whole(CODE[name])))
    assert f"'{name}'" in complaint
    assert "Nothing of the file was run" in complaint


@pytest.mark.parametrize("place", HIDDEN)
def test_code_is_refused_wherever_it_hides(tmp_path, place):
    complaint = refusal_of(tmp_path / "hostile.pt", zipped(whole(HIDDEN[place])))
    assert "'os.system'" in complaint or "opcode INST" in complaint


def test_these_attacks_are_real(tmp_path):
    """The same bytes do run in Python's own unpickler, so the canary would be seen."""
    script = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-c", script], input=whole(CODE["builtins.getattr"]), cwd=tmp_path, check=True)
    assert (tmp_path / CANARY).exists()
    (tmp_path / CANARY).unlink()


def test_everything_that_is_not_allowed_is_counted_at_once(tmp_path):
    several = b"]" + b"".join(named(name) + b"a" for name in ("os:system", "builtins:eval", "os:system", "a:b", "c:d"))
    complaint = refusal_of(tmp_path / "hostile.pt", zipped(whole(several)))
    assert "names 4 things" in complaint
    assert "'os.system', 'builtins.eval', 'a.b' ..." in complaint


def test_control_characters_in_names_do_not_reach_the_terminal(tmp_path):
    complaint = refusal_of(tmp_path / "hostile.pt", zipped(whole(call(stack_named("\x1b[2Jos:sys\ntem" + "x" * 500), part(1)))))
    assert "\x1b" not in complaint


TENSORS = {
    "one element too long": (tensor((5,)), "reaches to byte 20 of a record of 16"),
    "offset beyond": (tensor((1,), (1,), 4), "reaches to byte 20"),
    "stride beyond": (tensor((2, 2), (3, 1)), "reaches to byte 20"),
    "huge offset": (tensor((1,), (1,), 2**62), "reaches to byte"),
    "huge stride": (tensor((3,), (2**62,)), "reaches to byte"),
    "negative offset": (tensor((1,), (1,), -1), "are no counts"),
    "negative stride": (tensor((2,), (-1,), 3), "are no counts"),
    "negative size": (tensor((-1, -4), (1, 1)), "are no counts"),
    "size of truth": (tensor((True, 4), (4, 1)), "are no counts"),
    "size of floats": (tensor((4.0,), (1,)), "are no counts"),
    "size is a list": (tensor([4], [1]), "are no counts"),
    "size beyond int64": (tensor((2**70,), (0,)), "are no counts"),
    "product beyond int64": (tensor((2**40, 2**40), (0, 0)), "more than a tensor can have"),
    "empty and huge": (tensor((0, 2**62, 2**62), (1, 1, 1)), "more than a tensor can have"),
    "few bytes repeated for ever": (tensor((2**40,), (0,)), "unfolds a record of 16 bytes into 4,398,046,511,104"),
    "65 dimensions": (tensor((1,) * 65, (1,) * 65), "are no counts"),
    "strides of another number": (tensor((2, 2), (1,)), "2 dimensions but 1 strides"),
    "storage too large": (tensor(of=storage(count=5)), "needs a record of 20 bytes; it has 16"),
    "storage too small": (tensor(of=storage(count=3), shape=(3,)), "needs a record of 12 bytes; it has 16"),
    "storage of another dtype": (tensor(of=storage(kind="torch:DoubleStorage")), "needs a record of 32 bytes"),
    "storage of negative size": (tensor(of=storage(count=-1)), "no storage"),
    "storage of true size": (tensor(of=storage(count=True)), "no storage"),
    "storage that is not there": (tensor(of=storage(key="7")), "has no record 'data/7'"),
    "storage out of its folder": (tensor(of=storage(key="../version")), "has no record 'data/../version'"),
    "storage of a long name": (tensor(of=storage(key="0" * 65)), "no storage"),
    "storage of a name that is no text": (tensor(of=storage(key=0)), "no storage"),
    "persistent id of another kind": (storage(word="module"), "no storage"),
    "persistent id of text": (part("storage") + b"Q", "no storage"),
    "persistent id of a tensor class": (storage(kind="torch:float32"), "no storage"),
    "persistent id of protocol 0": (b"Pstorage\n", "opcode PERSID"),
    "no storage at all": (tensor(of=part("0")), "wrong arguments"),
    "untyped storage under an old tensor": (
        tensor(of=storage(kind="torch.storage:UntypedStorage", count=16)),
        "wrong arguments",
    ),
    "untyped and too long": (untyped((17,), "uint8"), "reaches to byte 17"),
    "untyped of an odd size": (untyped((3,), "float64"), "reaches to byte 24"),
    "untyped of a class": (untyped((1,), "FloatStorage"), "wrong arguments"),
    "one storage, two dtypes": (
        b"(" + tensor() + tensor(of=storage(kind="torch:IntStorage")) + b"t",
        "another tensor for torch.int32",
    ),
    "quantised": (tensor(of=storage(kind="torch:QInt8Storage")), "'torch.QInt8Storage'"),
    "hooks that are none": (tensor(hooks=part([1])), "wrong arguments"),
    "unknown marks": (tensor(more=part({"fake": True})), "other marks"),
    "conjugate of real numbers": (tensor(more=part({"conj": True})), "other marks"),
    "no arguments": (call(named("torch._utils:_rebuild_tensor_v2")), "wrong arguments"),
    "parameter of nothing": (
        call(named("torch._utils:_rebuild_parameter"), part(None), part(True), b"}"),
        "other than a tensor",
    ),
    "a size of text": (call(named("torch:Size"), part(("a",))), "other than counts"),
    "an ordered dict of pairs": (call(named("collections:OrderedDict"), part([["a", 1]])), "with arguments"),
}

PICKLES = {
    "empty": (b"", "it ends without STOP"),
    "no end": (b"\x80\x02}", "it ends without STOP"),
    "nothing": (whole(b""), "does not end with one object"),
    "two objects": (whole(b"}}"), "does not end with one object"),
    "an open mark": (whole(b"}("), "does not end with one object"),
    "more behind the end": (whole(b"}") + whole(OS_SYSTEM), "does not end with one object"),
    "no opcode": (whole(b"\xff"), "opcode b'\\xff'"),
    "takes from nothing": (whole(b"s"), "empty stack"),
    "a mark never set": (whole(b"t"), "mark that it never set"),
    "recalls nothing": (whole(b"h\x05"), "never remembered"),
    "remembers nothing": (whole(b"q\x00"), "empty stack"),
    "calls a dict": (whole(b"})R"), "calls a dict"),
    "calls a dtype": (whole(named("torch:float32") + b")R"), "calls a dtype"),
    "calls a storage class": (whole(named("torch:FloatStorage") + b")R"), "calls a StorageClass"),
    "calls with a list": (whole(named("torch:Size") + b"]R"), "calls a StandIn"),
    "sets a dict's state on a list": (whole(b"]}b"), "sets the state"),
    "sets the state of a class": (whole(named("torch:Size") + b"}b"), "sets the state"),
    "sets the state of a tensor": (whole(tensor() + b"}b"), "sets the state"),
    "appends to a dict": (whole(b"}Na"), "no list"),
    "extends a tensor": (whole(tensor() + b"(Ne"), "no list"),
    "sets an item of a list": (whole(b"]K\x00Ns"), "no dict"),
    "a key without a value": (whole(b"}(K\x00u"), "without a value"),
    "the same key twice": (whole(b"}(K\x00NK\x00Nu"), "the key 0 occurs twice"),
    "half a character as key": (whole(b"}X\x03\x00\x00\x00\xed\xa0\x80Ns"), "a key is a str"),
    "a name with escapes": (whole(b"ctorch\\x2e_utils\n_rebuild_tensor_v2\n"), r"'torch\\x2e_utils._rebuild_tensor_v2'"),
    "a name without an end": (whole(b"ctorch\nSize"), "names something by no lines"),
    "a name of 2,000 letters": (whole(b"c" + b"x" * 2000 + b"\ny\n"), "names something by no lines"),
    "a name that is no text": (whole(b"c\xff\ny\n"), "can't decode"),
    "a tuple as key": (whole(b"})Ns"), "a key is a tuple"),
    "a list as key": (whole(b"}]Ns"), "a key is a list"),
    "a huge number as key": (whole(b"}" + part(2**61 - 1) + b"Ns"), "a key is a int"),
    "an extension": (whole(b"\x82\x01"), "opcode EXT1"),
    "an extension of four bytes": (whole(b"\x84\x01\x00\x00\x00"), "opcode EXT4"),
    "new object": (whole(named("collections:OrderedDict") + b")\x81"), "opcode NEWOBJ"),
    "new object with keywords": (whole(named("collections:OrderedDict") + b")}\x92"), "opcode NEWOBJ_EX"),
    "a buffer from outside": (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
    "duplicates": (whole(b"}2"), "opcode DUP"),
    "text protocol": (pickle.dumps({"a": 1}, 0), "opcode"),
    "a protocol of the future": (b"\x80\x06}.", "protocol 6, not 2 to 5"),
    "names by number": (whole(b"K\x01K\x02\x93"), "by no text"),
    "two values of one name": (
        whole(b"}(" + part("a.b") + b"N" + part("a") + part({"b": 1}) + b"u"),
        "two values are called 'a.b'",
    ),
    "a list in itself": (whole(b"]q\x00h\x00a"), "deeper than 64"),
    "a dict in itself": (whole(b"}q\x09" + part("x") + b"h\x09s"), "deeper than 64"),
    "lists 100,000 deep": (whole(b"]" * 100_000 + b"a" * 99_999), "deeper than 64"),
    "tuples 100,000 deep": (whole(b")" + b"\x85" * 100_000), "deeper than 64"),
}


@pytest.mark.parametrize("attack", TENSORS)
def test_a_tensor_that_does_not_lie_in_its_record_is_refused(tmp_path, attack):
    opcodes, complaint = TENSORS[attack]
    assert complaint in refusal_of(tmp_path / "hostile.pt", zipped(whole(b"}" + part("w") + opcodes + b"s")))


def test_the_tensor_that_the_attacks_change_is_sound(tmp_path):
    (tmp_path / "good.pt").write_bytes(zipped(whole(b"}" + part("w") + tensor() + b"s")))
    assert torch.equal(open_checkpoint(tmp_path / "good.pt")["w"], torch.zeros(4))
    assert torch.equal(torch.load(tmp_path / "good.pt", weights_only=True)["w"], torch.zeros(4))


@pytest.mark.parametrize("attack", PICKLES)
def test_a_pickle_that_torch_never_writes_is_refused(tmp_path, attack):
    content, complaint = PICKLES[attack]
    assert complaint in refusal_of(tmp_path / "hostile.pt", zipped(content))
