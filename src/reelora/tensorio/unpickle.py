"""A pickle read as data: the few opcodes that torch.save writes, worked on a stack of our own, never by ``pickle``.

The standard unpickler cannot be made safe against a file that means harm: it allocates what a memo index asks for, hashes
nested keys for ever, and sets attributes. Source: ``pickletools`` of Python, whose readers decode the arguments here.
"""

from io import BytesIO
from pathlib import Path
from pickletools import opcodes
from typing import Any, BinaryIO

from reelora.errors import FileFormatError, first_few

from .header import shown
from .pickle_steps import MAX_NAME, STEPS, Machine

__all__ = ["MAX_OPCODES", "unpickle"]

MAX_OPCODES = 500_000
"""A tensor takes about 40, so this is some 12,000 tensors, where a whole fine-tune has 2,000."""
OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in opcodes}

ADVICE = (
    "Nothing of the file was run. If you trust who made it, open it with torch.load(path, weights_only=False) and save the "
    "tensors alone, as a dict, with torch.save."
)


def unpickle(content: bytes, path: Path) -> object:
    """The dicts, lists, tuples and plain values of a pickle, with StoredTensor and Unread where torch and numpy were.

    Time and memory are bounded by ``MAX_OPCODES`` and the length of ``content``. Raises FileFormatError that names ``path``
    and every function or class that is not allowed.
    """
    machine = Machine()
    problem = _run(machine, content)
    if machine.strangers:
        names = [shown(name) for name in machine.strangers]
        count = "a thing that is" if len(names) == 1 else f"{len(names)} things that are"
        raise FileFormatError(f"{path}: its pickle names {count} no part of a checkpoint: {first_few(names)}. {ADVICE}")
    if problem:
        raise FileFormatError(f"{path}: its pickle is damaged or was made by something else: {problem}. {ADVICE}")
    return machine.stack[0]


def _run(machine: Machine, content: bytes) -> str:
    """Work through all opcodes; returns what went wrong, or nothing."""
    stream = BytesIO(content)
    position = 0
    try:
        for _ in range(MAX_OPCODES):
            position = stream.tell()
            name, argument = _next_opcode(stream)
            STEPS[name](machine, argument)
            if name == "STOP":
                return "" if machine.is_done() and not stream.read(1) else "it does not end with one object"
    except ValueError as error:
        return f"at byte {position:,} {str(error)[:200]}"
    return f"it has more than {MAX_OPCODES:,} opcodes"


def _next_opcode(stream: BinaryIO) -> tuple[str, Any]:
    """The next opcode and its argument. One that is not worked here is not decoded either."""
    code = stream.read(1)
    opcode = OPCODES.get(code)
    if not code:
        raise ValueError("it ends without STOP")
    if opcode is None or opcode.name not in STEPS:
        raise ValueError(f"torch.save never writes the opcode {opcode.name if opcode else code}")
    if opcode.name == "GLOBAL":
        return opcode.name, _read_names(stream)
    return opcode.name, opcode.arg.reader(stream) if opcode.arg else None


def _read_names(stream: BinaryIO) -> str:
    """``module name`` from two lines. pickletools would undo escapes in them, which pickle does not know."""
    module, name = stream.readline(MAX_NAME), stream.readline(MAX_NAME)
    if not module.endswith(b"\n") or not name.endswith(b"\n"):
        raise ValueError(f"it names something by no lines of at most {MAX_NAME} letters")
    return f"{module[:-1].decode()} {name[:-1].decode()}"
