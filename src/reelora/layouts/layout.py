"""One dialect: its grammar of tensor names, and what it says about the strength."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from .place import Place, Slot

__all__ = ["Grammar", "Layout"]


class Grammar(Protocol):
    """Which tensor names a layout has, both ways."""

    def of_file(self, keys: Iterable[str], metadata: Mapping[str, str]) -> "Grammar":
        """The grammar as the header of one file completes it; most need no header and return themselves."""
        ...

    def parse(self, key: str) -> Place | None:
        """Where a tensor belongs; None for a name that this grammar has not."""
        ...

    def likeness(self, key: str) -> int:
        """Letters that speak for this layout in a name, whether or not it can be parsed; 0 for none."""
        ...

    def spell(self, module: str, slot: Slot) -> str | None:
        """The name of a tensor; None for a module or slot that this grammar cannot spell."""
        ...


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One row of the table of dialects."""

    name: str
    producers: str
    """The programs that write it, for people."""
    example: str
    """A tensor name."""
    grammar: Grammar
    strength: str
    """Where it stores alpha, for people."""
    without_alpha: str = ""
    """Why a file that stores no alpha has alpha = rank, scale 1, where the format or its only reader defines that."""
    needs: frozenset[Slot] = frozenset()
    """Slots of which a file must hold one to be of this layout and not of one with the same names."""
    scale_of_whole_lokr: float | None = 1.0
    """Of a LoKr of two whole factors: LyCORIS ignores alpha there. None: alpha counts, and no tensor says what divides it."""
    doras: frozenset[tuple[str, str]] = frozenset()
    """Whose DoRA norms, and over which axis, the programs that read this layout take for what they are."""
    is_written: bool = False
