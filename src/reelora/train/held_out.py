"""The held-out clips over a run: measured on a fixed grid, kept in a file, judged."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from .rows import Row, RowFile, read_rows
from .verdict import Evaluation, Verdict, best_step, judge

__all__ = ["HELD_OUT", "HeldOut", "read_verdicts"]

HELD_OUT = "held_out.jsonl"


def read_verdicts(folder: Path) -> list[Verdict]:
    """What the held-out clips of a run said after every evaluation; nothing where none were held out."""
    rows = read_rows(folder / HELD_OUT)
    base, taken = _base(rows), _evaluations(rows)
    return [judge(base, taken[: index + 1]) for index in range(len(taken))] if base else []


class HeldOut:
    """Evaluations of a run in ``held_out.jsonl``: first that of the base, then those with the adapter; a context manager.

    ``grid`` names clips, noise and timesteps: rows of another grid cannot be compared and are dropped. Only one process of a
    team ``is_writing``.
    """

    def __init__(self, folder: Path, *, first_step: int, grid: str, is_writing: bool) -> None:
        self._grid, self._stack = grid, ExitStack()
        path = folder / HELD_OUT
        rows = [row for row in read_rows(path) if row["step"] <= first_step and self._is_ours(row)]
        self._base, self._evaluations = _base(rows), _evaluations(rows)
        self._file = RowFile(path, first_step=first_step, is_ours=self._is_ours) if is_writing else None
        if self._file is not None:
            self._stack.enter_context(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def best_step(self) -> int | None:
        """The step whose weights did best, the base's included; None before the first evaluation."""
        return best_step(self._base, self._evaluations) if self._base and self._evaluations else None

    def compare(self, step: int, measure: Callable[[], Tensor], measure_base: Callable[[], Tensor]) -> Verdict:
        """Measure after ``step`` steps, once in the life of the run also the base, and judge."""
        if self._base is None:
            self._base = measure_base().tolist()
            self._write({"step": 0, "is_base": True, "grid": self._grid, "errors": self._base})
        if not (self._evaluations and self._evaluations[-1].step == step):
            self._evaluations.append(Evaluation(step=step, errors=measure().tolist()))
            self._write({"step": step, "is_base": False, "grid": self._grid, "errors": self._evaluations[-1].errors})
        return judge(self._base, self._evaluations)

    def _write(self, row: Row) -> None:
        if self._file is not None:
            self._file.write(row)

    def _is_ours(self, row: Row) -> bool:
        return row.get("grid") == self._grid


def _base(rows: list[dict[str, Any]]) -> list[list[float]] | None:
    return next((row["errors"] for row in rows if row.get("is_base") is True), None)


def _evaluations(rows: list[dict[str, Any]]) -> list[Evaluation]:
    return [Evaluation(step=row["step"], errors=row["errors"]) for row in rows if row.get("is_base") is False]
