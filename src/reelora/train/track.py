"""Figures of a run: one JSON object per step, and the same for the boards that are wanted."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

from .rows import Row, RowFile, read_rows

__all__ = ["METRICS", "Board", "MakeBoard", "Tracker", "read_metrics"]

METRICS = "metrics.jsonl"


class Board(Protocol):
    """Something that shows figures besides the file."""

    def write(self, row: Row) -> None:
        """Take in the row of one step."""
        ...

    def close(self) -> None: ...


class MakeBoard(Protocol):
    """Opens a board for the run in ``folder``, whose next step is ``first_step + 1``."""

    def __call__(self, folder: Path, *, first_step: int) -> Board: ...


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; lines that a power cut or a kill left unreadable are dropped."""
    return read_rows(path)


class Tracker:
    """Writes ``metrics.jsonl`` in a run's folder, and to boards; a context manager."""

    def __init__(self, folder: Path, *, first_step: int, boards: Sequence[MakeBoard] = ()) -> None:
        with ExitStack() as stack:
            self._file = stack.enter_context(RowFile(folder / METRICS, first_step=first_step))
            self._boards = [make(folder, first_step=first_step) for make in boards]
            for board in self._boards:
                stack.callback(board.close)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, row: Row) -> None:
        """Add the row of one step."""
        self._file.write(row)
        for board in self._boards:
            board.write(row)

    def sync(self) -> None:
        """Wait until all rows are on the disk itself."""
        self._file.sync()
