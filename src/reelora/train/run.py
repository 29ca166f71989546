"""A run between its learner and its files."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from torch import Tensor

from reelora.errors import ConfigError

from .checkpoint import check_identity, find_checkpoint, read_state, write_checkpoint
from .config import LoopConfig
from .disk import has_room
from .evaluate import held_out_errors
from .guard import Guard
from .held_out import HeldOut
from .learner import Learner
from .lesson import Lesson, StepReport, held_out_figures
from .memory import peak_memory_bytes
from .objective import Objective
from .rows import Row
from .team import Team
from .track import METRICS, MakeBoard, Tracker, read_metrics
from .verdict import Verdict

__all__ = ["Run", "identity_of"]

STOP = "STOP"
"""A file of this name in the run's folder stops it after the step that it is in."""

_KEPT_PER_WEIGHT = 5
"""Numbers in a checkpoint for each that is trained, at most: itself, its mean, and three of the optimizer."""


def identity_of(lesson_identity: Mapping[str, object], config: LoopConfig) -> dict[str, object]:
    """All that two runs have to agree in to continue each other."""
    return {**lesson_identity, "loop": config.identity()}


class Run:
    """Where a run stands, from its newest checkpoint on, and what is done between its steps; a context manager."""

    def __init__(self, lesson: Lesson, config: LoopConfig, folder: Path, *, team: Team, boards: Sequence[MakeBoard]) -> None:
        self.lesson, self.config, self.folder, self.team = lesson, config, folder, team
        self._identity = identity_of(lesson.identity, config)
        self._objective = Objective.of(lesson.model, lesson.diffusion, lesson.conditions)
        with ExitStack() as stack:
            self.learner = stack.enter_context(Learner(lesson, self._objective, config, team))
            self._checkpoint_bytes = _KEPT_PER_WEIGHT * sum(parameter.nbytes for parameter in self.learner.parameters)
            self.step, self._seconds_before, self._last_good = self._resumed()
            self._began = time.monotonic()
            folder.mkdir(parents=True, exist_ok=True)
            self._guard = Guard([row["relative_loss"] for row in self._rows_so_far() if "relative_loss" in row])
            self._held_out = stack.enter_context(
                HeldOut(folder, first_step=self.step, grid=self._grid, is_writing=team.is_first)
            )
            self._tracker = stack.enter_context(Tracker(folder, first_step=self.step, boards=boards)) if team.is_first else None
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def seconds(self) -> float:
        """Of all starts together."""
        return self._seconds_before + time.monotonic() - self._began

    @property
    def best_step(self) -> int | None:
        """The step that did best on the held-out clips."""
        return self._held_out.best_step

    def begin(self) -> None:
        """What comes before the first step: room on the disk, and the held-out clips with the base and with the adapter."""
        needed = self.config.keep_checkpoints + 2
        if not has_room(self.folder, needed * self._checkpoint_bytes):
            raise ConfigError(
                f"{self.folder}: {needed} checkpoints of {self._checkpoint_bytes / 1e6:.0f} MB do not fit on this disk. "
                "Free some space, or lower loop.keep_checkpoints or lora.rank."
            )
        if len(self.lesson.held_out):
            self._write({"step": 0, **held_out_figures(self._judge())})

    def advance(self) -> StepReport:
        """One optimizer step and what is due after it."""
        started = time.monotonic()
        figures = self.learner.step(self.step, self._guard, self._last_good)
        seconds = time.monotonic() - started
        self.step += 1
        report = StepReport(
            step=self.step,
            **vars(figures),
            seconds=seconds,
            clips_per_second=self.config.clips_per_step / seconds,
            peak_memory_bytes=peak_memory_bytes(self.learner.device),
            verdict=self._judge() if self._is_evaluated() else None,
        )
        self._write(report.row())
        if self._is_saved(report.verdict):
            self.save()
        return report

    def save(self) -> None:
        """Write a checkpoint, once all figures up to it are on the disk."""
        if self._tracker is None:
            return
        self._tracker.sync()
        self._last_good = write_checkpoint(
            self._checkpoints,
            self.learner.state(),
            step=self.step,
            identity=self._identity,
            seconds=self.seconds,
            keep=self.config.keep_checkpoints,
            best=self.best_step,
        )

    def reason_to_stop(self, is_asked: bool) -> str:
        """Why no further step is to be made; empty if one is. All processes of a team stop together."""
        reasons = {
            "it was asked to": is_asked,
            f"a file {STOP} was found": (self.folder / STOP).exists(),
            "the disk is nearly full": not has_room(self.folder, self._checkpoint_bytes),
        }
        found = [reason for reason, is_true in reasons.items() if is_true]
        return next(iter(found), "another process stopped") if self.team.any(bool(found)) else ""

    def forget_stop_file(self) -> None:
        """The same command is to go on."""
        if self.team.is_first:
            (self.folder / STOP).unlink(missing_ok=True)

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def _grid(self) -> str:
        return f"{self.lesson.held_out.data_hash}-{self.config.seed}"

    def _resumed(self) -> tuple[int, float, Path | None]:
        """Steps and seconds that earlier starts have done, and their newest checkpoint, which the learner has taken up."""
        checkpoint = find_checkpoint(self._checkpoints, skip_damaged=self.config.skip_damaged_checkpoints)
        if checkpoint is None:
            return 0, 0.0, None
        check_identity(checkpoint, self._identity)
        self.learner.load(read_state(checkpoint))
        return checkpoint.step, checkpoint.seconds, checkpoint.folder

    def _rows_so_far(self) -> list[Row]:
        return [row for row in read_metrics(self.folder / METRICS) if row["step"] <= self.step]

    def _judge(self) -> Verdict:
        def measure() -> Tensor:
            return held_out_errors(
                self.lesson.model,
                self._objective,
                self.lesson.held_out,
                seed=self.config.seed,
                batch_size=self.config.batch_size,
                team=self.team,
            )

        def measure_base() -> Tensor:
            with self.learner.as_base():
                return measure()

        with self.learner.as_saved():
            return self._held_out.compare(self.step, measure, measure_base)

    def _is_evaluated(self) -> bool:
        return bool(len(self.lesson.held_out)) and _is_due(self.step, self.config.evaluate_every, self.config)

    def _is_saved(self, verdict: Verdict | None) -> bool:
        is_best = verdict is not None and verdict.best_step == self.step
        return is_best or _is_due(self.step, self.config.checkpoint_every, self.config)

    def _write(self, row: Row) -> None:
        if self._tracker is not None:
            self._tracker.write(row)


def _is_due(step: int, every: int, config: LoopConfig) -> bool:
    return step == config.steps or (every > 0 and step % every == 0)
