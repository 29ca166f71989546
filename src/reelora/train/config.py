"""How a run learns. The defaults are those of CogVideo's ``finetune/`` where it has a good one."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from reelora.settings import Settings

from .rates import SCHEDULES, Schedule

__all__ = ["Distribution", "LoopConfig", "OptimizerConfig", "OptimizerKind", "TimestepConfig", "Weighting"]

Distribution = Literal["uniform", "logit_normal"]
OptimizerKind = Literal["adamw", "adamw8bit", "prodigy"]
Weighting = Literal["flat", "min_snr"]

Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
CountOrNever = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]

_PRODIGY_RATE = 0.1


class OptimizerConfig(Settings):
    """Who makes the steps, its learning rate over the run, and clipping."""

    kind: OptimizerKind = "adamw"
    """adamw8bit needs `pip install bitsandbytes` and an accelerator, prodigy `pip install prodigyopt` and learning_rate 1."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """Rate after the warm-up. prodigy finds the rate by itself and multiplies it by this."""
    schedule: Schedule = "constant"
    """What the rate does after the warm-up; all but the first would end one step after the last."""
    warmup_steps: CountOrNever = 20
    """Steps over which the rate rises from zero."""
    cycles: Count = 1
    """How often cosine_with_restarts begins."""
    power: Positive = 1.0
    """Of polynomial."""
    betas: tuple[Share, Share] = (0.9, 0.99)
    """Decay of the running means of gradients and of their squares."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Share of a weight, times the rate, that is taken off at each step."""
    epsilon: Positive = 1e-8
    """Keeps a step finite where gradients are zero."""
    max_grad_norm: Positive = 1.0
    """Gradients of all trainable parameters together are scaled down to this norm."""

    @model_validator(mode="after")
    def _check_prodigy(self) -> Self:
        if self.kind == "prodigy" and self.learning_rate < _PRODIGY_RATE:
            raise ValueError("prodigy finds the rate by itself and multiplies it by learning_rate: write learning_rate = 1")
        return self


class TimestepConfig(Settings):
    """Which noise levels are trained on, and how much each counts."""

    distribution: Distribution = "uniform"
    """logit_normal sees the middle of the schedule more often than its ends."""
    mean: float = 0.0
    """Of logit_normal; above 0 there is more noise. In units of log(t / (1 - t))."""
    std: Positive = 1.0
    """Of logit_normal."""
    stratified: bool = False
    """Spread the draws: every 16 that follow each other come from 16 equal shares of the distribution."""
    weighting: Weighting = "flat"
    """flat: the error of the velocity as it is. min_snr: its error at little noise counts less."""
    snr_gamma: Positive = 5.0
    """Of min_snr."""


class LoopConfig(Settings):
    """The steps of a run and what happens between them."""

    steps: Count = 500
    """Optimizer steps in all."""
    batch_size: Count = 1
    """Clips per forward pass."""
    gradient_accumulation: Count = 1
    """Forward passes per optimizer step. Several processes share them, so the numbers do not depend on how many there are."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """true: every block keeps nothing but its inputs and computes the rest again in the backward pass. false: it keeps all.
    auto: what each block keeps is chosen by memory. The numbers stay the same, bit for bit."""
    memory: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """GiB that the weights, the optimizer and a step may take together. As much is computed again as makes it fit, and no more.
    auto: most of what is free on the device at the start."""
    shard_base: bool = False
    """Several processes each hold a part of the frozen base and gather it block by block, where it does not fit on one device.
    The numbers stay the same, bit for bit."""
    compile: bool = False
    """Run the blocks that repeat as compiled code, made in the first step for each size of clips: minutes once, and each step
    faster where memory traffic is its limit. Numbers differ in their last bits, so a run keeps to its choice."""
    caption_dropout: Share = 0.1
    """Share of clips that are seen with the empty caption, for guidance."""
    seed: int = 0
    """Everything random follows from it, the step and the clip."""
    ema_decay: Share = 0.0
    """Measure, preview and save a running mean of the weights with this decay per step; 0: the weights themselves."""
    checkpoint_every: Count = 100
    """Steps between checkpoints; one is also written at the end and when a run is stopped."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints stay; the best one by the held-out clips stays too."""
    skip_damaged_checkpoints: bool = False
    """Where the newest checkpoint is damaged, go on from the one before instead of stopping."""
    evaluate_every: CountOrNever = 50
    """Steps between evaluations on the held-out clips; 0: only at the start and the end."""
    optimizer: OptimizerConfig = OptimizerConfig()
    timesteps: TimestepConfig = TimestepConfig()

    @model_validator(mode="after")
    def _check_compile(self) -> Self:
        if self.compile and self.shard_base:
            raise ValueError("a block whose weights are gathered for every use cannot be compiled: set compile or shard_base")
        return self

    @property
    def clips_per_step(self) -> int:
        return self.batch_size * self.gradient_accumulation

    def learning_rate(self, step: int) -> float:
        """Rate of step ``step`` (from 0): linear warm-up, then the schedule."""
        optimizer = self.optimizer
        warm = min(1.0, (step + 1) / optimizer.warmup_steps) if optimizer.warmup_steps else 1.0
        done = max(0, step - optimizer.warmup_steps) / max(1, self.steps - optimizer.warmup_steps)
        return optimizer.learning_rate * warm * SCHEDULES[optimizer.schedule](done, optimizer.cycles, optimizer.power)

    def identity(self) -> dict[str, object]:
        """The settings that decide the numbers of a run; two runs that agree in them may continue each other."""
        free = {
            "gradient_checkpointing",
            "memory",
            "shard_base",
            "checkpoint_every",
            "keep_checkpoints",
            "skip_damaged_checkpoints",
            "evaluate_every",
        }
        if self.optimizer.schedule == "constant":
            free.add("steps")
        if not self.compile:
            free.add("compile")  # as in runs that are older than this setting
        return self.model_dump(mode="json", exclude=free)
