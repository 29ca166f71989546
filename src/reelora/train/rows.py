"""JSON objects with a ``step``, one per line, that a resumed run takes up again."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from reelora.tensorio import atomic_path

__all__ = ["Row", "RowFile", "read_rows"]

Row = Mapping[str, Any]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; lines that a power cut or a kill left unreadable are dropped."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [row for row in map(_row, lines) if row is not None]


class RowFile:
    """Adds rows to a file; a context manager.

    Rows from after ``first_step`` that an earlier, interrupted start has left are dropped, since they are made again, and so
    are those that ``is_ours`` turns down.
    """

    def __init__(self, path: Path, *, first_step: int, is_ours: Callable[[Row], bool] = lambda row: True) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.kept = [row for row in read_rows(path) if row["step"] <= first_step and is_ours(row)]
        with atomic_path(path) as fresh:
            fresh.write_text("".join(json.dumps(row) + "\n" for row in self.kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, row: Row) -> None:
        """Add a row."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until all rows are on the disk itself."""
        os.fsync(self._file.fileno())


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
