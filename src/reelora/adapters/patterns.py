"""Patterns for module paths, as PEFT's ``rank_pattern`` and ``alpha_pattern`` have them, looked up in bounded time.

A pattern is a path, or a regular expression of this kind: letters, ``.``, ``\\d``, ``\\w`` and ``[...]``, each with ``?``,
``*`` or ``+``; alternatives in brackets, which may be optional but not repeated; ``^`` in front, ``$`` at the end. That is what
people and programs write for paths, and it is matched without ever going back: all places that may have been reached in the
path are carried along together, as the bits of one number. A dot between the parts of a plain path is a dot (PEFT takes it for
any letter, which tells no two modules of any model apart).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

from reelora.tensorio import shown

__all__ = ["Patterns", "endings", "pattern_problems"]

T = TypeVar("T")

MAX_LETTERS = 200
MAX_EXPRESSIONS = 8
"""Patterns that are no plain path: each of them is tried on every module."""

_PLAIN = re.compile(r"(?P<pin>\^?)(?P<path>\w+((\\?\.|\\?-)\w+)*)\$?", re.ASCII)
_TOKEN = re.compile(
    r"(?P<letter>\\[dw]|\\[^\w\s]|\[\^?[\w.\-]+\]|[\w.\-/])(?P<often>[?*+]?)|(?P<open>\((\?:)?)|(?P<close>\)\??)|(?P<bar>\|)",
    re.ASCII,
)


class Patterns(Generic[T]):
    """Values by pattern: the first that fits whole components at the end of a path counts; ``^`` pins it to the whole path.

    `pattern_problems` has to find nothing.
    """

    def __init__(self, patterns: Mapping[str, T]) -> None:
        self._values = list(patterns.values())
        self._paths: dict[tuple[str, str], int] = {}
        self._expressions: dict[str, int] = {}
        for place, pattern in enumerate(patterns):
            if plain := _PLAIN.fullmatch(pattern):
                self._paths.setdefault((plain["pin"], plain["path"].replace("\\", "")), place)
            else:
                self._expressions[pattern] = place

    def at(self, path: str, default: T) -> T:
        """The value for a module path."""
        if not self._values:
            return default
        plain = [("^", path), *(("", ending) for ending in endings(path))] if self._paths else []
        places = [self._paths[key] for key in plain if key in self._paths]
        places += [place for pattern, place in self._expressions.items() if _fits(pattern, path)]
        return self._values[min(places)] if places else default


def endings(path: str) -> list[str]:
    """A path, and what is left of it without its first components: ``a.b.c``, ``b.c`` and ``c``."""
    return [path[start:] for start in _starts(path)]


def pattern_problems(patterns: Mapping[str, object]) -> Iterator[str]:
    """What is wrong with each of some patterns, and with their number."""
    expressions = [pattern for pattern in patterns if not _PLAIN.fullmatch(pattern)]
    for pattern in expressions:
        try:
            _parsed(pattern)
        except ValueError as error:
            yield f"{shown(pattern)} is no pattern for module paths: {error}"
    if len(expressions) > MAX_EXPRESSIONS:
        yield f"{len(expressions)} patterns are no plain paths, more than {MAX_EXPRESSIONS}: write the paths of the modules"


@dataclass(frozen=True)
class _Letter:
    """One letter of a kind, or several."""

    kind: str
    often: str

    def step(self, path: str, at: int) -> int:
        """The places in ``path`` that can be reached from the places ``at``, both as bits."""
        here = _places(self.kind, path)
        once = (at & here) << 1
        if self.often in ("", "?"):
            return once | at if self.often else once
        at = once if self.often == "+" else at
        seeds = at & here
        return at | seeds | ((here + seeds) ^ here)  # a sum carries each seed to the end of its run of places


@dataclass(frozen=True)
class _Choice:
    """Alternatives in brackets, perhaps optional."""

    branches: "Sequence[Sequence[_Letter | _Choice]]"
    is_optional: bool

    def step(self, path: str, at: int) -> int:
        reached = at if self.is_optional else 0
        for branch in self.branches:
            reached |= _walk(branch, path, at)
        return reached


def _walk(items: Sequence[_Letter | _Choice], path: str, at: int) -> int:
    for item in items:
        if not at:
            return 0
        at = item.step(path, at)
    return at


@lru_cache(maxsize=1024)
def _places(kind: str, path: str) -> int:
    return sum(1 << match.start() for match in re.finditer(kind, path))


def _fits(pattern: str, path: str) -> bool:
    is_pinned, choice = _parsed(pattern)
    starts = 1 if is_pinned else sum(1 << start for start in _starts(path))
    return bool(choice.step(path, starts) >> len(path))


def _starts(path: str) -> list[int]:
    """Where the components of a path begin."""
    return [0, *(match.end() for match in re.finditer(r"\.", path))]


@lru_cache(maxsize=1024)
def _parsed(pattern: str) -> tuple[bool, _Choice]:
    """Whether it is pinned to the whole path, and what it consists of; ValueError says what is wrong with it."""
    if not 0 < len(pattern) <= MAX_LETTERS:
        raise ValueError(f"it has {len(pattern):,} letters, not 1 to {MAX_LETTERS}")
    inner = pattern.removeprefix("^")
    inner = inner if inner.endswith("\\$") else inner.removesuffix("$")
    choice = _Choice(_branches(_tokens(inner), opened="")[0], is_optional=False)
    if len(choice.branches) > 1 and inner != pattern:
        raise ValueError("put the alternatives between ^ and $ into brackets")
    return pattern.startswith("^"), choice


def _tokens(text: str) -> Iterator[re.Match[str]]:
    place = 0
    while place < len(text):
        if (token := _TOKEN.match(text, place)) is None:
            raise ValueError(f"{text[place]!r} cannot stand where it stands, {place + 1} letters in")
        yield token
        place = token.end()


def _branches(tokens: Iterator[re.Match[str]], opened: str) -> tuple[list[list[_Letter | _Choice]], str]:
    """The alternatives up to the bracket that closes what ``opened`` opens (else up to the end), and that bracket."""
    branches: list[list[_Letter | _Choice]] = [[]]
    for token in tokens:
        if token["letter"]:
            branches[-1].append(_Letter(token["letter"], token["often"]))
        elif token["open"]:
            inner, closed = _branches(tokens, token["open"])
            branches[-1].append(_Choice(inner, is_optional=closed == ")?"))
        elif token["bar"]:
            branches.append([])
        elif opened:
            return branches, token["close"]
        else:
            raise ValueError("it closes a bracket that was never opened")
    if opened:
        raise ValueError("it opens a bracket that is never closed")
    return branches, ""
