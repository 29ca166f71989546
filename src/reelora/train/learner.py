"""One optimizer step, from the batches to the new weights."""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from reelora.data import BatchPlan
from reelora.errors import TrainingDivergedError, first_few
from reelora.lora import Shadows, free_bytes, shard_base

from .ahead import ReadAhead, passes_ahead, room_for_clips
from .batches import Batch, Batches
from .budget import MemoryPlan, plan_memory
from .compiled import Blocks, blocks_for
from .config import LoopConfig
from .guard import Guard
from .lesson import Lesson
from .objective import Objective
from .optimizers import by_rate, make_optimizer
from .predict import predictor_of
from .recompute import Recomputing
from .shown import RunningMean, nothing_like, showing
from .state import State, pack, unpack
from .team import Team

__all__ = ["Learner", "StepFigures"]

_HOST = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """What one optimizer step was like."""

    loss: float
    relative_loss: float
    """Divided by that of a model which predicts nothing, on the same batches."""
    learning_rate: float
    grad_norm: float
    """Before clipping."""
    data_wait: float
    """Seconds in which the model waited for clips."""


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """What became of one forward pass."""

    loss: float
    of_nothing: float
    """The loss of a model that predicts nothing, on the same batch."""
    waited: float


class Learner:
    """The parts of a run that stay the same from step to step: model, optimizer, running mean, this process's batches.

    A context manager, since it reads ahead.
    """

    def __init__(self, lesson: Lesson, objective: Objective, config: LoopConfig, team: Team) -> None:
        model = lesson.model
        self.model, self.objective, self.config, self.team = model, objective, config, team
        self._blocks = blocks_for(model, config)
        self._batches = Batches(
            lesson.clips,
            config,
            num_timesteps=objective.diffusion.num_timesteps,
            frame_group=objective.frame_group,
            conditions=objective.conditions,
            priors=lesson.priors,
        )
        self._batches.hold(room_for_clips(free_bytes(_HOST), team))
        self._ahead = ReadAhead(self._ready, stride=team.size, depth=passes_ahead(config, team))
        model.train()
        self._shadows = Shadows(model)
        self.plan = self._planned(lesson)
        if config.shard_base:
            shard_base(model, team.device)
        self.named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.parameters = list(self.named.values())
        self.device = self.parameters[0].device
        groups = by_rate(self.named, lesson.rates)
        self._rate_factors = tuple(groups)
        self.optimizer = make_optimizer(config.optimizer, [{"params": group} for group in groups.values()])
        self.mean = RunningMean(self.parameters, config.ema_decay)
        _run_blocks(model, self.plan, self._blocks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ahead.close()
        self._batches.hold(0)
        self.model.disable_gradient_checkpointing()  # pyright: ignore[reportCallIssue]

    def _planned(self, lesson: Lesson) -> MemoryPlan:
        """What the blocks keep, by a rehearsal with the largest batch of the run."""
        device = next(p for p in self.model.parameters() if p.requires_grad).device  # the host, if the base is to be split
        batch = self._batches.read(_largest_batch(lesson, self.config)).to(device)
        with Shadows(self.model).cast():  # its own: they may lie on another device than those of the steps
            return plan_memory(
                self.model,
                # By a predictor of its own: what it remembers has no values.
                lambda: predictor_of(self.model)(batch.clean, batch.states, batch.timesteps, batch.extras),
                self.config,
                device=self.team.device if self.config.shard_base else device,
                processes=self.team.size,
            )

    def state(self) -> State:
        """All that a step changes."""
        return pack(self.named, self.mean, self.optimizer)

    def load(self, state: State) -> None:
        """Take up a state of the same model, bit for bit."""
        unpack(state, self.named, self.mean, self.optimizer)

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """The model with the weights that are measured, shown and saved: the running mean, if there is one."""
        with showing(self.parameters, self.mean.values):
            yield

    def become_saved(self) -> None:
        """Put the weights to save into the model for good, at the end of a run."""
        for parameter, value in zip(self.parameters, self.mean.values, strict=True):
            parameter.data = value

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """The model without what was learned."""
        with showing(self.parameters, nothing_like(self.parameters)):
            yield

    def step(self, step: int, guard: Guard, last_good: Path | None) -> StepFigures:
        """Make the optimizer step after ``step`` others.

        Raises TrainingDivergedError, before anything has changed, for a gradient that is not finite and for a loss that the
        ``guard`` finds hopeless.
        """
        rate = self.config.learning_rate(step)
        for factor, group in zip(self._rate_factors, self.optimizer.param_groups, strict=True):
            group["lr"] = factor * rate
        passes = range(step * self.config.gradient_accumulation, (step + 1) * self.config.gradient_accumulation)
        with self._shadows.cast(), self._blocks.running():
            done = {forward: self._backward(forward) for forward in self.team.share(passes)}
        losses, of_nothing = self._gathered(passes, done)
        self.team.sum_gradients(self.parameters)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.max_grad_norm))
        relative = sum(losses) / of_nothing
        if guard.is_hopeless(relative) or not math.isfinite(norm):
            raise TrainingDivergedError(self._obituary(step + 1, losses, relative, norm, last_good))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.mean.update(step + 1)
        return StepFigures(
            loss=sum(losses),
            relative_loss=relative,
            learning_rate=rate,
            grad_norm=norm,
            data_wait=sum(one.waited for one in done.values()),
        )

    def _ready(self, forward: int) -> Batch:
        """A batch as the device takes it fastest."""
        batch = self._batches.read(forward)
        return batch.pinned() if self.device.type == "cuda" else batch

    def _backward(self, forward: int) -> _Pass:
        """Add the gradients of one forward pass."""
        started = time.monotonic()
        batch = self._ahead.read(forward)
        waited = time.monotonic() - started
        batch = batch.to(self.device)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(_seed_of(self.config.seed, forward))  # for the dropout inside the model
            errors, of_nothing = self.objective.errors(batch)
        weights = self.objective.weights(batch, self.config.timesteps)
        loss = (weights * errors).mean() / self.config.gradient_accumulation
        loss.backward()
        nothing = (weights * of_nothing).mean() / self.config.gradient_accumulation
        return _Pass(loss=float(loss.detach()), of_nothing=float(nothing), waited=waited)

    def _gathered(self, passes: Sequence[int], done: dict[int, _Pass]) -> tuple[list[float], float]:
        """The loss of every pass of the step, whoever made it, in their order; and the loss of predicting nothing."""
        table = torch.zeros(len(passes), 2, dtype=torch.float64)
        for forward, one in done.items():
            table[forward - passes[0]] = torch.tensor([one.loss, one.of_nothing], dtype=torch.float64)
        table = self.team.sum(table)
        return table[:, 0].tolist(), float(table[:, 1].sum())

    def _obituary(self, step: int, losses: Sequence[float], relative: float, norm: float, last_good: Path | None) -> str:
        """Where a run ended, on what, and what to do."""
        bad = [index for index, loss in enumerate(losses) if not math.isfinite(loss)] or range(len(losses))
        first = (step - 1) * self.config.gradient_accumulation
        seen = [f"{source} at timestep {time}" for index in bad for source, time in _shown(self._batches.read(first + index))]
        kept = f"The last checkpoint is {last_good}." if last_good else "There is no checkpoint yet."
        return (
            f"Step {step}: the loss is {sum(losses):g}, {relative:.3g} times that of predicting nothing, the gradient's norm "
            f"{norm:g}. It saw {first_few(seen)}. This step changed nothing. {kept} "
            f"Lower loop.optimizer.learning_rate (now {self.config.optimizer.learning_rate:g}), or lengthen warmup_steps. "
            "If one clip is always among those it saw, look at that clip."
        )


def _shown(batch: Batch) -> list[tuple[str, int]]:
    return list(zip(batch.sources, batch.timesteps.tolist(), strict=True))


def _run_blocks(model: Any, plan: MemoryPlan, blocks: Blocks) -> None:
    """Let every block keep what was chosen for it."""
    model.enable_gradient_checkpointing(Recomputing(plan.chosen, otherwise=plan.otherwise, ways=blocks.ways_of))


def _largest_batch(lesson: Lesson, config: LoopConfig) -> int:
    """The first forward pass that sees clips of the largest bucket."""
    buckets = lesson.clips.buckets
    largest = max(buckets, key=lambda name: math.prod(map(int, name.split("x"))))
    plan = BatchPlan(lesson.clips, batch_size=config.batch_size, seed=config.seed)
    return next(number for number in count() if buckets[plan.at(number)[0].index] == largest)


def _seed_of(seed: int, forward: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{forward}".encode()).digest()[:4], "big")
