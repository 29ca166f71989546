"""What acts: adapters with a strength for each of their modules."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from reelora.adapters import Pair

__all__ = ["Acting", "Use", "only", "uses_by_site"]


@dataclass(frozen=True, eq=False)
class Use:
    """One adapter and how strongly it acts on each of its modules, where it acts at all."""

    name: str
    pairs: Mapping[str, Pair]
    strengths: Mapping[str, float]
    """None of them is 0."""


Acting = Sequence[Use]
"""Everything that acts, in the order of names, so that the result does not depend on how the set was reached."""


def uses_by_site(acting: Acting) -> dict[str, list[tuple[Pair, float]]]:
    """The pairs that act on each module with their strengths."""
    found: dict[str, list[tuple[Pair, float]]] = {}
    for use in acting:
        for site, strength in use.strengths.items():
            found.setdefault(site, []).append((use.pairs[site], strength))
    return found


def only(acting: Acting, chosen: Callable[[str], bool]) -> Acting:
    """The same on some modules alone."""
    parts = (replace(use, strengths={name: value for name, value in use.strengths.items() if chosen(name)}) for use in acting)
    return tuple(use for use in parts if use.strengths)
