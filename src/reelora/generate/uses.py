"""Which adapters act on a video, and how strongly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from reelora.adapters import Adapter, content_hash
from reelora.errors import ConfigError

__all__ = ["NO_ADAPTERS", "AdapterUse", "Adapters", "HeldAdapter", "strength_of", "text_key", "uses_key"]

Strength = float | tuple[Adapter, float]
Adapters = Mapping[str, Strength] | Mapping[Path, Strength] | Mapping[str | Path, Strength]
"""``{path: strength}``, or ``{name: (adapter, strength)}`` for an adapter in memory; strength 1.0 is as trained.

A name that is a `Path` says which file the adapter was read from."""

NO_ADAPTERS: Adapters = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class HeldAdapter:
    """An adapter, and what it takes long to find out about it."""

    adapter: Adapter

    @cached_property
    def content_hash(self) -> str:
        """The one that ``reelora inspect`` shows."""
        return content_hash(self.adapter)


@dataclass(frozen=True, kw_only=True)
class AdapterUse:
    """One adapter at one strength."""

    name: str
    held: HeldAdapter
    strength: float
    source: str = ""
    """The path as it was given; empty for an adapter in memory."""

    @property
    def adapter(self) -> Adapter:
        return self.held.adapter

    @property
    def description(self) -> dict[str, Any]:
        """For a file's metadata."""
        scales = sorted({pair.scale for pair in self.adapter.pairs.values() if pair.scale is not None})
        told = {"name": self.name, **({"file": self.source} if self.source else {}), "content_hash": self.held.content_hash}
        return {**told, "scales": scales, "strength": self.strength}


def strength_of(key: str | Path, value: object) -> tuple[Adapter | None, float]:
    """The adapter in memory, if it is none to be read, and its strength. Raises ConfigError for what is no strength."""
    match value:
        case bool():
            raise ConfigError(f"{key}: its strength is {value}; it has to be a number (1.0: as trained, 0: off).")
        case float() | int():
            return None, float(value)
        case (Adapter() as adapter, (float() | int()) as strength):
            return adapter, float(strength)
        case _:
            raise ConfigError(f"{key}: give {{path: strength}} or {{name: (adapter, strength)}}, not {value!r}.")


def uses_key(uses: Sequence[AdapterUse]) -> tuple[tuple[str, float], ...]:
    """What acts, by content alone: the same for the same adapters, whatever they are called."""
    return tuple(sorted((use.held.content_hash, use.strength) for use in uses if use.strength))


def text_key(uses: Sequence[AdapterUse]) -> tuple[tuple[str, float], ...]:
    """What acts on text encoders: prompt states depend on it."""
    return uses_key([use for use in uses if any(role.startswith("text_encoder") for role in use.adapter.roles)])
