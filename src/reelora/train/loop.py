"""The training loop: steps, evaluations and checkpoints of attached branches, resumed exactly."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from reelora.errors import ConfigError

from .budget import MemoryPlan
from .checkpoint import check_identity, find_checkpoint
from .config import LoopConfig
from .lesson import Lesson, StepReport, TrainResult
from .run import Run, identity_of
from .team import Team
from .track import MakeBoard

__all__ = ["check_continues", "check_team", "train"]

ALONE = Team()


def train(
    lesson: Lesson,
    config: LoopConfig,
    folder: Path,
    *,
    team: Team = ALONE,
    boards: Sequence[MakeBoard] = (),
    on_plan: Callable[[MemoryPlan], None] = lambda plan: None,
    on_start: Callable[[int], None] = lambda step: None,
    on_step: Callable[[StepReport], None] = lambda report: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train the branches of a model, from the newest checkpoint in ``folder`` if there is one.

    Every random number follows from the seed and the place in the run, so a resumed run gives the losses of one that was
    never stopped, bit for bit. ``on_plan`` hears which block keeps what and what a step takes by that, ``on_start`` how many
    steps are done already, once the folder is known to belong to this run, ``on_step`` what every step did; these two find the
    model with the weights that would be saved. ``should_stop`` is asked between steps; when it says yes, a file STOP appears in
    ``folder``, or the disk is nearly full, a checkpoint is
    written and the result is incomplete. Afterwards the model holds the weights to save.

    Raises ConfigError for an empty data set, for settings that do not fit the team or the disk, and for a folder of another
    run, with every difference; TrainingDivergedError for a loss that is not finite or beyond hope.
    """
    if not len(lesson.clips):
        raise ConfigError("There are no clips to train on: hold out fewer, or add some.")
    check_team(config, team)
    reason = ""
    with Run(lesson, config, folder, team=team, boards=boards) as run:
        first = run.step
        on_plan(run.learner.plan)
        with run.learner.as_saved():
            on_start(first)
        if first == 0:
            run.begin()
        while run.step < config.steps and not (reason := run.reason_to_stop(should_stop())):
            report = run.advance()
            with run.learner.as_saved():
                on_step(report)
        if reason and run.step > first:
            run.save()
        run.forget_stop_file()
        run.learner.become_saved()
    return TrainResult(
        step=run.step,
        is_complete=run.step >= config.steps,
        resumed_from=first,
        seconds=run.seconds,
        stopped_by=reason,
        best_step=run.best_step,
    )


def check_continues(folder: Path, identity: Mapping[str, object], config: LoopConfig) -> None:
    """Raise ConfigError with every difference where ``folder`` holds a run of other settings or another lesson."""
    checkpoint = find_checkpoint(folder / "checkpoints", skip_damaged=config.skip_damaged_checkpoints)
    if checkpoint is not None:
        check_identity(checkpoint, identity_of(identity, config))


def check_team(config: LoopConfig, team: Team) -> None:
    """Raise ConfigError for settings that do not fit the number of processes."""
    if config.shard_base and team.size == 1:
        raise ConfigError(
            "loop.shard_base splits the base over several processes, and this is one: start it with `accelerate launch` or "
            "`torchrun`, or set loop.shard_base = false."
        )
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not config.shard_base:
        raise ConfigError(
            "accelerate was told to use FSDP, and loop.shard_base is false: set it to true, which splits the frozen base over "
            "the processes, or leave FSDP out of accelerate's settings."
        )
    if config.gradient_accumulation % team.size:
        raise ConfigError(
            f"{team.size} processes share the forward passes of a step, and loop.gradient_accumulation is "
            f"{config.gradient_accumulation}, so some would wait. Make it a multiple of {team.size}; the size of a step is "
            "batch_size x gradient_accumulation, however many processes there are."
        )
