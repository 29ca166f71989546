"""How a run learns. The defaults are those of CogVideo's ``finetune/`` where it has a good one."""

from typing import Annotated, Literal

from pydantic import Field

from reelora.settings import Settings

__all__ = ["LoopConfig", "OptimizerConfig", "Schedule"]

Schedule = Literal["constant", "linear", "cosine"]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
CountOrNever = Annotated[int, Field(ge=0)]


class OptimizerConfig(Settings):
    """AdamW, its learning rate over the run, and clipping."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """Rate after the warm-up."""
    schedule: Schedule = "constant"
    """What the rate does after the warm-up; linear and cosine would reach zero one step after the last."""
    warmup_steps: CountOrNever = 20
    """Steps over which the rate rises from zero."""
    betas: tuple[Share, Share] = (0.9, 0.99)
    """Decay of the running means of gradients and of their squares."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Share of a weight, times the rate, that is taken off at each step."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Keeps a step finite where gradients are zero."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients of all trainable parameters together are scaled down to this norm."""


class LoopConfig(Settings):
    """The steps of a run and what happens between them."""

    steps: Count = 500
    """Optimizer steps in all."""
    batch_size: Count = 1
    """Clips per forward pass."""
    gradient_accumulation: Count = 1
    """Forward passes per optimizer step."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations again in the backward pass: a third slower, a fraction of the memory; the numbers stay the same.
    auto: for models over a billion parameters, whose blocks keep about a gigabyte each otherwise."""
    caption_dropout: Share = 0.1
    """Share of clips that are seen with the empty caption, for guidance."""
    seed: int = 0
    """Everything random follows from it, the step and the clip."""
    checkpoint_every: Count = 100
    """Steps between checkpoints; one is also written at the end and when a run is stopped."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints stay."""
    evaluate_every: CountOrNever = 50
    """Steps between evaluations on the held-out clips; 0: only at the start and the end."""
    optimizer: OptimizerConfig = OptimizerConfig()

    @property
    def clips_per_step(self) -> int:
        return self.batch_size * self.gradient_accumulation

    def learning_rate(self, step: int) -> float:
        """Rate of step ``step`` (from 0): linear warm-up, then the schedule."""
        from math import cos, pi

        optimizer = self.optimizer
        warm = min(1.0, (step + 1) / optimizer.warmup_steps) if optimizer.warmup_steps else 1.0
        done = max(0, step - optimizer.warmup_steps) / max(1, self.steps - optimizer.warmup_steps)
        after = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + cos(pi * done))}[optimizer.schedule]
        return optimizer.learning_rate * warm * after

    def identity(self) -> dict[str, object]:
        """The settings that decide the numbers of a run; two runs that agree in them may continue each other."""
        free = {"gradient_checkpointing", "checkpoint_every", "keep_checkpoints", "evaluate_every"}
        if self.optimizer.schedule == "constant":
            free.add("steps")
        return self.model_dump(mode="json", exclude=free)
