"""Figures of a run, one JSON object per step, and the same for TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from reelora.tensorio import atomic_path

__all__ = ["Tracker", "read_metrics"]

Row = Mapping[str, Any]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; a last line that a killed run left half written is dropped."""
    if not path.exists():
        return []
    *lines, _half_written = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]


class Tracker:
    """Writes ``metrics.jsonl`` and TensorBoard's event file into a run's folder; a context manager.

    Rows from ``first_step`` on that an earlier, interrupted start has left are dropped: they are made again.
    """

    def __init__(self, folder: Path, *, first_step: int, tensorboard: bool = True) -> None:
        self._path = folder / "metrics.jsonl"
        self._folder, self._first_step, self._wants_board = folder, first_step, tensorboard
        self._file: IO[str] | None = None
        self._board: Any = None

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(self._path) if row["step"] <= self._first_step]
        with atomic_path(self._path) as fresh:
            fresh.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._file = self._path.open("a", encoding="utf-8")
        if self._wants_board:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._first_step + 1)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, row: Row) -> None:
        """Add the row of one step; it is on disk when this returns."""
        assert self._file is not None, "a Tracker is used as a context manager"
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, row["step"])
