"""What a rack holds and does, for people and programs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from reelora.adapters import Adapter

from .strengths import Strength

__all__ = ["AdapterState", "RackState"]


@dataclass(frozen=True, kw_only=True)
class AdapterState:
    """One registered adapter."""

    name: str
    source: str
    roles: tuple[str, ...]
    num_modules: int
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    scale_source: str
    size_bytes: int
    strengths: tuple[Strength, ...]
    """Now, one for the whole batch or one for each sample; 0 is off."""
    resident: tuple[str, ...]
    """Where its values are: in a ``file`` (read when they are used) or ``memory``, and the devices where stacks hold them."""
    is_pinned: bool
    """Whether its stacks stay whatever the budget."""
    notes: tuple[str, ...]

    @classmethod
    def of(cls, name: str, adapter: Adapter, *, strengths: tuple[Strength, ...], **told: Any) -> Self:
        """The facts of an adapter."""
        return cls(
            name=name,
            roles=adapter.roles,
            num_modules=len(adapter.pairs),
            ranks=adapter.ranks,
            scales=tuple(sorted({pair.scale for pair in adapter.pairs.values() if pair.scale is not None})),
            scale_source=adapter.scale_source,
            size_bytes=adapter.size_bytes,
            strengths=strengths,
            **told,
        )

    @property
    def row(self) -> tuple[str, ...]:
        """Its cells in the table."""
        numbers = [", ".join(f"{number:g}" for number in column) for column in (self.ranks, self.scales)]
        size = f"{self.size_bytes / 2**20:,.0f} MiB"
        name = f"{self.name} (pinned)" if self.is_pinned else self.name
        places = [", ".join(column) for column in (self.resident, self.roles)]
        return name, _spoken(self.strengths), str(self.num_modules), *numbers, size, *places, self.source


@dataclass(frozen=True, kw_only=True)
class RackState:
    """A rack as it is now."""

    is_fused: bool
    adapters: tuple[AdapterState, ...]
    num_samples: int
    """1 unless other adapters act on each sample of a batch."""
    num_fused: int
    """Modules whose weight is fused."""
    branches: Mapping[str, str]
    """Modules with a branch, and why each is not fused although the rack is; empty text where it need not be."""
    lost: Mapping[str, float]
    """Of every fused module, the estimated share of the update that rounding it to the nearest of the weight's dtype loses."""
    home: str
    """Where pristine weights wait."""
    buffer_bytes: int
    """Of fused weights and buffers for them."""
    stack_bytes: int
    """Of stacked branches, active or kept for later."""

    def __str__(self) -> str:
        mode = "fused" if self.is_fused else "as branches"
        lines = [f"{len(self.adapters)} adapters, {mode}: {self.num_fused} modules fused, {len(self.branches)} with a branch"]
        lines.append(
            f"pristine weights {self.home}, {_mebibytes(self.buffer_bytes)} of fused weights, "
            f"{_mebibytes(self.stack_bytes)} of stacked branches"
        )
        if self.lost:
            worst = max(self.lost, key=lambda name: self.lost[name])
            lines.append(f"rounding loses up to {self.lost[worst]:.1%} of an update ({worst})")
        lines += [f"{name} is a branch: {why}" for name, why in self.branches.items() if why][:3]
        heads = ("name", "strength", "modules", "rank", "scale", "size", "resident", "roles", "source")
        lines += _table([heads, *(adapter.row for adapter in self.adapters)]) if self.adapters else []
        return "\n".join([*lines, *(f"{adapter.name}: {note}" for adapter in self.adapters for note in adapter.notes)])


def _spoken(strengths: Sequence[Strength]) -> str:
    return " | ".join(_strength(strength) for strength in strengths)


def _strength(strength: Strength) -> str:
    if isinstance(strength, Mapping):
        return ", ".join(f"{pattern}: {number:g}" for pattern, number in strength.items())
    return f"{strength:g}" if strength else "off"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
