"""Figures of a run, one JSON object per step, and the same for TensorBoard."""

import json
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Self

from reelora.tensorio import atomic_path

__all__ = ["Tracker", "read_metrics"]

Row = Mapping[str, Any]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; lines that a power cut or a kill left unreadable are dropped."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [row for row in map(_row, lines) if row is not None]


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


class Tracker:
    """Writes ``metrics.jsonl`` and, if wanted, TensorBoard's event file into a run's folder; a context manager.

    Rows from after ``first_step`` that an earlier, interrupted start has left are dropped: they are made again.
    """

    def __init__(self, folder: Path, *, first_step: int, tensorboard: bool = True) -> None:
        self._folder, self._first_step, self._wants_board = folder, first_step, tensorboard
        self._stack = ExitStack()
        self._file: IO[str] | None = None
        self._board: _Board | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "metrics.jsonl"
        kept = [row for row in read_metrics(path) if row["step"] <= self._first_step]
        with atomic_path(path) as fresh:
            fresh.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._file = self._stack.enter_context(path.open("a", encoding="utf-8"))
        if self._wants_board:
            self._board = self._stack.enter_context(_Board(self._folder / "tensorboard", purge_step=self._first_step + 1))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, row: Row) -> None:
        """Add the row of one step."""
        assert self._file is not None, "a Tracker is used as a context manager"
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is not None:
            self._board.write(row)

    def sync(self) -> None:
        """Wait until all rows are on the disk itself."""
        assert self._file is not None, "a Tracker is used as a context manager"
        os.fsync(self._file.fileno())


class _Board:
    """TensorBoard's event file, written at once and in this thread, so that a full disk is an error here and not a lost log."""

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.reelora"  # TensorBoard reads the files of a folder in this order
        self._file = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        self._add(step=purge_step, session_log={"status": "START"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, row: Row) -> None:
        values = [{"tag": name, "simple_value": value} for name, value in row.items() if name != "step"]
        self._add(step=row["step"], summary={"value": values})

    def _add(self, **content: Any) -> None:
        from tensorboard.compat.proto import event_pb2

        message: Any = event_pb2
        self._records.write(message.Event(wall_time=time.time(), **content).SerializeToString())
        self._file.flush()
