"""Which adapters act on a video, and how strongly."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from reelora.adapters import Adapter, content_hash, read_adapter
from reelora.errors import ConfigError

__all__ = ["NO_ADAPTERS", "AdapterUse", "Adapters", "resolve"]

Strength = float | tuple[Adapter, float]
Adapters = Mapping[str, Strength] | Mapping[Path, Strength] | Mapping[str | Path, Strength]
"""``{path: strength}``, or ``{name: (adapter, strength)}`` for an adapter in memory; strength 1.0 is as trained."""

NO_ADAPTERS: Adapters = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class AdapterUse:
    """One adapter at one strength."""

    name: str
    adapter: Adapter
    strength: float

    @cached_property
    def description(self) -> dict[str, Any]:
        """For a file's metadata; the hash is the one that ``reelora inspect`` shows."""
        scales = sorted({pair.scale for pair in self.adapter.pairs.values() if pair.scale is not None})
        told = {"name": self.name, "content_hash": content_hash(self.adapter)}
        return {**told, "scales": scales, "strength": self.strength}


def resolve(adapters: Adapters) -> Sequence[AdapterUse]:
    """Read what is named by path. Raises ConfigError for what is no strength, UnknownScaleError, and what reading raises."""
    uses = list(_resolve(adapters))
    for use in uses:
        use.adapter.check_scale()
    return uses


def _resolve(adapters: Adapters) -> Iterator[AdapterUse]:
    for key, value in adapters.items():
        match value:
            case bool():
                raise ConfigError(f"{key}: its strength is {value}; it has to be a number (1.0: as trained, 0: off).")
            case float() | int():
                yield AdapterUse(
                    name=Path(key).name.removesuffix(".safetensors"), adapter=read_adapter(key), strength=float(value)
                )
            case (Adapter() as adapter, (float() | int()) as strength):
                yield AdapterUse(name=str(key), adapter=adapter, strength=float(strength))
            case _:
                raise ConfigError(f"{key}: give {{path: strength}} or {{name: (adapter, strength)}}, not {value!r}.")
