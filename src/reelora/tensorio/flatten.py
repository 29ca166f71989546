"""Nested dicts and lists as one dict with dotted names."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from reelora.errors import FileFormatError

from .header import shown

__all__ = ["MAX_DEPTH", "MAX_LETTERS", "flatten"]

MAX_DEPTH = 64
MAX_NAME = 1000
MAX_LETTERS = 16 * 2**20
"""Letters of all names together, 64 more for each: what is shared inside a pickle may unfold without end."""

_SHORT = 64
_PLAIN = (str, int, float, bool, bytes, type(None))


def flatten(tree: object, path: Path) -> dict[str, object]:
    """Every value that is no dict or list under its dotted name: ``{"a": [5, {"b": 6}]}`` is ``{"a.0": 5, "a.1.b": 6}``.

    Short tuples of plain values (shapes) and empty containers stay whole. Raises FileFormatError that names ``path`` where two
    values get one name, or where the tree is too deep or, by containers that hold each other, too large.
    """
    try:
        return _unique(_leaves("", tree, 0))
    except ValueError as error:
        raise FileFormatError(f"{path}: its pickle cannot be laid out flat: {error}.") from error


def _unique(leaves: Iterable[tuple[str, object]]) -> dict[str, object]:
    values: dict[str, object] = {}
    letters = 0
    for name, value in leaves:
        letters += len(name) + 64
        if letters > MAX_LETTERS:
            raise ValueError("its dicts and lists hold each other so often that they unfold without end")
        if name in values:
            raise ValueError(f"two values are called {shown(name)}")
        values[name] = value
    return values


def _leaves(name: str, value: object, depth: int) -> Iterator[tuple[str, object]]:
    if len(name) > MAX_NAME or depth > MAX_DEPTH:
        raise ValueError(f"{shown(name)} lies deeper than {MAX_DEPTH} dicts and lists or has more than {MAX_NAME:,} letters")
    if not isinstance(value, dict | list | tuple) or not value or _is_plain(value):
        yield name, value
        return
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(f"{name}.{key}" if depth else str(key), child, depth + 1)


def _is_plain(value: object) -> bool:
    return isinstance(value, tuple) and len(value) <= _SHORT and all(type(item) in _PLAIN for item in value)
