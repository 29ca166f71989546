"""What each opcode does to the stack: the few that torch.save writes, each of a cost that its own bytes bound."""

from collections.abc import Callable, Mapping
from typing import Any

from .header import is_text, shown
from .stand_ins import ALLOWED, StandIn, Unread, storage_of

__all__ = ["MAX_NAME", "STEPS", "Machine"]

MAX_NAME = 1000
MAX_ARGUMENTS = 8
MAX_KEY = 2**31
PROTOCOLS = range(2, 6)
"""Protocol 2 is what torch.save writes unless told otherwise; older ones are text."""


class Machine:
    """The state of reading: what is on the stack, where its marks are, and what was remembered."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.strangers: dict[str, None] = {}

    def is_done(self) -> bool:
        return len(self.stack) == 1 and not self.marks

    def pop(self) -> Any:
        if not self.stack:
            raise ValueError("it takes from an empty stack")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        """The uppermost object, which must be of one class and stays."""
        if not self.stack or type(self.stack[-1]) is not kind:
            raise ValueError(f"it fills something that is no {kind.__name__}")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("it goes back to a mark that it never set")
        items, self.stack = self.stack, self.marks.pop()
        return items


def _push(machine: Machine, value: object) -> None:
    machine.stack.append(value)


def _ignore(machine: Machine, argument: object) -> None:
    """Frames and the end say nothing that matters here."""


def _check_protocol(machine: Machine, protocol: int) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"it is of protocol {protocol}, not {PROTOCOLS.start} to {PROTOCOLS.stop - 1}")


def _mark(machine: Machine, _: object) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _tuple_of(count: int) -> Callable[[Machine, Any], None]:
    def step(machine: Machine, _: object) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(items)))

    return step


def _tuple_to_mark(machine: Machine, _: object) -> None:
    items = machine.pop_to_mark()
    machine.stack.append(tuple(items))


def _append(machine: Machine, _: object) -> None:
    item = machine.pop()
    machine.top(list).append(item)


def _extend(machine: Machine, _: object) -> None:
    items = machine.pop_to_mark()
    machine.top(list).extend(items)


def _set_item(machine: Machine, _: object) -> None:
    value, key = machine.pop(), machine.pop()
    _insert(machine.top(dict), key, value)


def _set_items(machine: Machine, _: object) -> None:
    items = machine.pop_to_mark()
    if len(items) % 2:
        raise ValueError("it sets a key without a value")
    target = machine.top(dict)
    for key, value in zip(items[::2], items[1::2], strict=True):
        _insert(target, key, value)


def _insert(target: dict[Any, Any], key: object, value: object) -> None:
    # Only keys that hash at once and cannot be made to collide: a nested tuple can take for ever, and so can a million longs.
    if not is_text(key) and not (type(key) is int and abs(key) < MAX_KEY):
        raise ValueError(f"a key is a {type(key).__name__}, neither text nor a small whole number")
    if key in target:
        raise ValueError(f"the key {shown(key)} occurs twice")
    target[key] = value


def _remember(machine: Machine, index: int) -> None:
    if not machine.stack:
        raise ValueError("it remembers the top of an empty stack")
    machine.memo[index] = machine.stack[-1]


def _remember_next(machine: Machine, _: object) -> None:
    _remember(machine, len(machine.memo))


def _recall(machine: Machine, index: int) -> None:
    if index not in machine.memo:
        raise ValueError("it recalls what it never remembered")
    machine.stack.append(machine.memo[index])


def _name(machine: Machine, name: str) -> None:
    if name not in ALLOWED:
        machine.strangers[name.replace(" ", ".")] = None
    machine.stack.append(ALLOWED.get(name, StandIn(name, lambda _: Unread(name))))


def _name_from_stack(machine: Machine, _: object) -> None:
    name, module = machine.pop(), machine.pop()
    if type(name) is not str or type(module) is not str or len(name) + len(module) > MAX_NAME:
        raise ValueError(f"it names something by no text of at most {MAX_NAME} letters")
    _name(machine, f"{module} {name}")


def _call(machine: Machine, _: object) -> None:
    arguments, function = machine.pop(), machine.pop()
    if type(function) is not StandIn or type(arguments) is not tuple or len(arguments) > MAX_ARGUMENTS:
        raise ValueError(f"it calls a {type(function).__name__} that is no function, or with too many arguments")
    machine.stack.append(function.build(arguments))


def _set_state(machine: Machine, _: object) -> None:
    """Attributes of an OrderedDict (versions of modules) and the inside of numpy's objects are dropped."""
    machine.pop()
    if not machine.stack or type(machine.stack[-1]) not in (dict, Unread):
        raise ValueError("it sets the state of an object that has none")


def _refer(machine: Machine, _: object) -> None:
    machine.stack.append(storage_of(machine.pop()))


_PLAIN = [
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
]

STEPS: Mapping[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(_PLAIN, _push),
    **dict.fromkeys(["FRAME", "STOP"], _ignore),
    "PROTO": _check_protocol,
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "MARK": _mark,
    "TUPLE": _tuple_to_mark,
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": _append,
    "APPENDS": _extend,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "BINPUT": _remember,
    "LONG_BINPUT": _remember,
    "MEMOIZE": _remember_next,
    "BINGET": _recall,
    "LONG_BINGET": _recall,
    "GLOBAL": _name,
    "STACK_GLOBAL": _name_from_stack,
    "REDUCE": _call,
    "BUILD": _set_state,
    "BINPERSID": _refer,
}
