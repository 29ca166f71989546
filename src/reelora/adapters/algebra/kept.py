"""How much of an adapter another one keeps."""

from collections.abc import Mapping
from dataclasses import dataclass

from reelora.adapters.adapter import Adapter
from reelora.adapters.pair import Pair

from .checks import check_ready
from .core import Reduced, inner

__all__ = ["Kept", "energy_kept"]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The share of the energy (sum of squared singular values) that is kept: ``1 - |W - W'|^2 / |W|^2``."""

    modules: Mapping[str, float]
    """Of every module; under 0 where the difference is larger than the update was."""
    total: float
    """Of all modules together."""

    @classmethod
    def of(cls, reduced: Mapping[str, Reduced]) -> "Kept":
        """What reduced pairs kept."""
        total = sum(entry.lost for entry in reduced.values()), sum(entry.energy for entry in reduced.values())
        return cls(modules={name: _share(entry.lost, entry.energy) for name, entry in reduced.items()}, total=_share(*total))

    @property
    def worst(self) -> str:
        """The module that kept least."""
        return min(self.modules, key=self.modules.__getitem__)

    def __str__(self) -> str:
        return f"{self.total:.6g} in all, least {self.modules[self.worst]:.6g} in {self.worst}"


def energy_kept(before: Adapter, after: Adapter) -> Kept:
    """How much of ``before`` is in ``after``, worked out from both: a module that ``after`` lacks keeps nothing.

    Raises MismatchError with every module whose shapes differ; UnknownScaleError and AdapterError for one that is not usable.
    """
    check_ready([before, after])
    return Kept.of({name: _compared(pair, after.pairs.get(name)) for name, pair in before.pairs.items()})


def _compared(before: Pair, after: Pair | None) -> Reduced:
    energy = inner(before, before)
    if after is None:
        return Reduced(before, energy, energy)
    return Reduced(after, max(0.0, energy - 2 * inner(before, after) + inner(after, after)), energy)


def _share(lost: float, energy: float) -> float:
    """An update of zero keeps all that it has."""
    return 1 - lost / energy if energy else 1.0
