"""What was loaded: role, class, precision, size, origin and time."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

__all__ = ["LoadReport", "PartReport", "report_part"]

_HEADINGS = ("role", "class", "dtype", "parameters", "bytes", "seconds", "source")


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """One role as it was loaded."""

    role: str
    class_name: str
    dtypes: tuple[torch.dtype, ...]
    """Most bytes first; more than one where a layer must not be float16. Empty for roles without weights."""

    num_parameters: int
    size_bytes: int
    seconds: float
    source: Path

    def cells(self) -> tuple[str, ...]:
        """The row of a table, in the order of its headings."""
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes) or "-"
        size = (f"{self.num_parameters:,}", f"{self.size_bytes:,}") if self.dtypes else ("-", "-")
        return (self.role, self.class_name, dtypes, *size, f"{self.seconds:.2f}", str(self.source))


@dataclass(frozen=True)
class LoadReport:
    """All roles of a bundle; as text a small table, with notes below."""

    parts: tuple[PartReport, ...]
    notes: tuple[str, ...] = ()
    """What a user should know of them."""

    def __str__(self) -> str:
        rows = [_HEADINGS, *(part.cells() for part in self.parts)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join([*(line.rstrip() for line in lines), *self.notes])


def report_part(part: object, *, role: str, source: Path, seconds: float) -> PartReport:
    """Measure a loaded part."""
    tensors = list(part.parameters()) if isinstance(part, nn.Module) else []
    size_of = {dtype: sum(t.nbytes for t in tensors if t.dtype == dtype) for dtype in {t.dtype for t in tensors}}
    return PartReport(
        role=role,
        class_name=type(part).__name__,
        dtypes=tuple(sorted(size_of, key=lambda dtype: -size_of[dtype])),
        num_parameters=sum(tensor.numel() for tensor in tensors),
        size_bytes=sum(size_of.values()),
        seconds=seconds,
        source=source,
    )
