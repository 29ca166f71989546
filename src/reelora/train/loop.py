"""The training loop: steps, evaluations and checkpoints of attached branches, resumed exactly."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from reelora.data import CachedClips
from reelora.errors import ConfigError, TrainingDivergedError

from .batches import read_batch
from .checkpoint import newest_checkpoint, restore, write_checkpoint
from .config import LoopConfig
from .diffusion import Diffusion, per_clip_error
from .evaluate import held_out_loss
from .predict import Predictor, cogvideox_predictor, frame_group
from .track import Tracker

__all__ = ["Lesson", "StepReport", "TrainResult", "train"]

_MANY_PARAMETERS = 1_000_000_000
"""Beyond this many, activations are computed again unless the user says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What is trained, and on what."""

    model: nn.Module
    """With branches attached; all that requires gradients is trained."""
    clips: CachedClips
    held_out: CachedClips
    """Clips to measure on; may be none."""
    diffusion: Diffusion
    identity: Mapping[str, object]
    """What the numbers depend on besides the loop's settings (base, data, LoRA), as JSON values; resuming checks it."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one optimizer step did; also a row of ``metrics.jsonl``."""

    step: int
    """Steps done, this one included."""
    loss: float
    learning_rate: float
    grad_norm: float
    """Before clipping."""
    seconds: float
    held_out_loss: float | None = None

    def row(self) -> dict[str, float]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended."""

    step: int
    is_complete: bool
    """False where it was asked to stop; the same call goes on with it."""
    resumed_from: int
    seconds: float
    """Of all starts together."""


def train(
    lesson: Lesson,
    config: LoopConfig,
    folder: Path,
    *,
    tensorboard: bool = True,
    on_start: Callable[[int], None] = lambda step: None,
    on_step: Callable[[StepReport], None] = lambda report: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train the branches of a model, from the newest checkpoint in ``folder`` if there is one.

    Every random number follows from the seed and the place in the run, so a resumed run gives the losses of one that was
    never stopped, bit for bit. ``on_start`` hears how many steps are done already, once the folder is known to belong to
    this run, ``on_step`` what every step did. ``should_stop`` is asked between steps; when it says yes, a checkpoint is
    written and the result is incomplete.

    Raises ConfigError for an empty data set and for a folder of another run, with every difference;
    TrainingDivergedError for a loss that is not finite.
    """
    if not len(lesson.clips):
        raise ConfigError("There are no clips to train on: hold out fewer, or add some.")
    run = _Run(lesson, config, folder / "checkpoints")
    first, seconds = run.resume()
    on_start(first)
    started, step = time.monotonic() - seconds, first
    with Tracker(folder, first_step=first, tensorboard=tensorboard) as tracker:
        if first == 0 and len(lesson.held_out):
            tracker.write({"step": 0, "held_out_loss": run.held_out_loss()})
        while step < config.steps and not should_stop():
            report = run.step(step)
            step = report.step
            tracker.write(report.row())
            on_step(report)
            if step % config.checkpoint_every == 0 and step < config.steps:
                tracker.sync()
                run.save(step, time.monotonic() - started)
    if step > first:
        run.save(step, time.monotonic() - started)
    return TrainResult(
        step=step,
        is_complete=step >= config.steps,
        resumed_from=first,
        seconds=time.monotonic() - started if step > first else seconds,
    )


class _Run:
    """The parts of one run that stay the same from step to step."""

    def __init__(self, lesson: Lesson, config: LoopConfig, checkpoints: Path) -> None:
        self.lesson, self.config, self.checkpoints = lesson, config, checkpoints
        self.identity = {**lesson.identity, "loop": config.identity()}
        self.predict: Predictor = cogvideox_predictor(lesson.model)
        self.frame_group = frame_group(lesson.model)
        self.parameters = [parameter for parameter in lesson.model.parameters() if parameter.requires_grad]
        self.device = self.parameters[0].device
        optimizer = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=optimizer.learning_rate,
            betas=optimizer.betas,
            weight_decay=optimizer.weight_decay,
            eps=optimizer.epsilon,
            fused=True,
        )
        if _is_checkpointing(config, lesson.model):
            lesson.model.enable_gradient_checkpointing()  # pyright: ignore[reportCallIssue]
        lesson.model.train()

    def resume(self) -> tuple[int, float]:
        """Steps and seconds that earlier starts have done."""
        checkpoint = newest_checkpoint(self.checkpoints)
        if checkpoint is None:
            return 0, 0.0
        restore(checkpoint, self.lesson.model, self.optimizer, identity=self.identity)
        return checkpoint.step, checkpoint.seconds

    def step(self, step: int) -> StepReport:
        """One optimizer step."""
        started = time.monotonic()
        rate = self.config.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = sum(
            self._backward(step * self.config.gradient_accumulation + i) for i in range(self.config.gradient_accumulation)
        )
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDivergedError(
                f"Step {step + 1}: the loss is {loss:g} and the gradient's norm {norm:g}. This step changed nothing, and the "
                f"last checkpoint is good. Lower loop.optimizer.learning_rate (now {self.config.optimizer.learning_rate:g})."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.monotonic() - started
        held_out = self.held_out_loss() if self._is_evaluated(step + 1) else None
        return StepReport(step=step + 1, loss=loss, learning_rate=rate, grad_norm=norm, seconds=seconds, held_out_loss=held_out)

    def held_out_loss(self) -> float:
        """The loss on the held-out clips."""
        lesson = self.lesson
        return held_out_loss(
            lesson.model,
            self.predict,
            lesson.held_out,
            lesson.diffusion,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            frame_group=self.frame_group,
        )

    def save(self, step: int, seconds: float) -> None:
        """Write a checkpoint after ``step`` steps."""
        write_checkpoint(
            self.checkpoints,
            self.lesson.model,
            self.optimizer,
            step=step,
            identity=self.identity,
            seconds=seconds,
            keep=self.config.keep_checkpoints,
        )

    def _backward(self, forward: int) -> float:
        """Add the gradients of one forward pass; its share of the step's loss."""
        diffusion = self.lesson.diffusion
        batch = read_batch(
            self.lesson.clips,
            self.config,
            forward=forward,
            num_timesteps=diffusion.num_timesteps,
            frame_group=self.frame_group,
        )
        clean, noise, states, times = (t.to(self.device) for t in (batch.clean, batch.noise, batch.states, batch.timesteps))
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(_seed_of(self.config.seed, forward))  # for the dropout inside the model
            predicted = self.predict(diffusion.noisy(clean, noise, times), states, times)
        errors = per_clip_error(predicted, diffusion.velocity(clean, noise, times))
        loss = errors.mean() / self.config.gradient_accumulation
        loss.backward()
        return float(loss.detach())

    def _is_evaluated(self, step: int) -> bool:
        every = self.config.evaluate_every
        return bool(len(self.lesson.held_out)) and (step == self.config.steps or (every > 0 and step % every == 0))


def _is_checkpointing(config: LoopConfig, model: nn.Module) -> bool:
    """Whether activations are computed again in the backward pass."""
    if config.gradient_checkpointing == "auto":
        return sum(parameter.numel() for parameter in model.parameters()) > _MANY_PARAMETERS
    return config.gradient_checkpointing


def _seed_of(seed: int, forward: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{forward}".encode()).digest()[:4], "big")
