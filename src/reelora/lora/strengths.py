"""How strongly an adapter acts on each module: one number, or a rule by path."""

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache

from reelora.adapters import split_role
from reelora.errors import ConfigError, first_few, nearest

__all__ = ["Strength", "by_module"]

Strength = float | Mapping[str, float]
"""A number (1.0: as trained, 0: off), or numbers by path or glob: the first that fits a module decides.

A pattern is compared with the whole path, with or without its role: ``{"transformer_blocks.[0-9].*": 1.0, "*": 0.3}``.
"""


def by_module(adapter: str, strength: Strength, modules: Iterable[str]) -> dict[str, float]:
    """The strength on each of an adapter's ``modules`` (full names).

    Raises ConfigError for a number that is not finite, a pattern that fits no module, and a module that no pattern fits.
    """
    if not isinstance(strength, Mapping):
        return dict.fromkeys(modules, _number(adapter, strength))
    names = tuple(modules)
    chosen = _choose(tuple(strength), names)
    if idle := [pattern for pattern in strength if not any(_fits(pattern, name) for name in names)]:
        raise ConfigError(f"{adapter}: {idle[0]!r} fits none of its {len(names)} modules: {nearest(idle[0], _paths(names))}")
    if lost := [name for name, pattern in zip(names, chosen, strict=True) if pattern is None]:
        raise ConfigError(
            f'{adapter}: no strength is given for {len(lost)} of its {len(names)} modules ({first_few(lost)}); add "*": 0 or 1.'
        )
    numbers = {pattern: _number(adapter, number) for pattern, number in strength.items()}
    return {name: numbers[pattern] for name, pattern in zip(names, chosen, strict=True) if pattern is not None}


@lru_cache(maxsize=64)
def _choose(patterns: tuple[str, ...], names: tuple[str, ...]) -> tuple[str | None, ...]:
    return tuple(next((pattern for pattern in patterns if _fits(pattern, name)), None) for name in names)


def _fits(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(split_role(name)[1], pattern)


def _paths(names: Iterable[str]) -> set[str]:
    return {split_role(name)[1] for name in names}


def _number(adapter: str, strength: object) -> float:
    if isinstance(strength, bool) or not isinstance(strength, float | int) or not math.isfinite(strength):
        raise ConfigError(f"{adapter}: a strength is {strength!r}; it has to be a finite number (1.0: as trained, 0: off).")
    return float(strength)
