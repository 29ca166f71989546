"""Pickles put together opcode by opcode, and the zip archive around them."""

import pickle
import zipfile
from io import BytesIO

RECORDS = (("byteorder", b"little"), ("version", b"3\n"), ("data/0", bytes(16)), ("data/1", bytes(16)))


def zipped(pickled, records=RECORDS, folder="archive"):
    """A checkpoint with this pickle, laid out as torch.save does."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (("data.pkl", pickled), *records):
            archive.writestr(zipfile.ZipInfo(f"{folder}/{name}"), content)
    return file.getvalue()


def part(value):
    """The opcodes that put a plain value on the stack."""
    return pickle.dumps(value, 2)[2:-1]


def named(name):
    module, _, attribute = name.rpartition(":")
    return f"c{module}\n{attribute}\n".encode()


def call(function, *arguments):
    """The opcodes of a call; function and arguments are opcodes themselves."""
    return function + b"(" + b"".join(arguments) + b"tR"


def whole(opcodes):
    return b"\x80\x02" + opcodes + b"."


def stack_named(name):
    module, _, attribute = name.rpartition(":")
    return part(module) + part(attribute) + b"\x93"


def storage(key: object = "0", count=4, kind="torch:FloatStorage", word="storage"):
    return b"(" + part(word) + named(kind) + part(key) + part("cpu") + part(count) + b"tQ"


def tensor(shape=(4,), stride=(1,), offset=0, of=None, hooks=b"}", more=b""):
    view = part(offset) + part(shape) + part(stride) + part(False)
    return call(named("torch._utils:_rebuild_tensor_v2"), of or storage(), view, hooks, more)


def untyped(shape, dtype, count=16):
    view = part(0) + part(shape) + part((1,)) + part(False) + b"}" + named(f"torch:{dtype}")
    return call(named("torch._utils:_rebuild_tensor_v3"), storage("1", count, "torch.storage:UntypedStorage"), view)
