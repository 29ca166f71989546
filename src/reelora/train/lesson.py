"""What goes into a run and what comes out of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

from torch import nn

from reelora.data import CachedClips

from .batches import Prior
from .conditioning import Condition
from .diffusion import Diffusion
from .verdict import Verdict

__all__ = ["Lesson", "StepReport", "TrainResult", "held_out_figures"]


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
    conditions: Sequence[Condition] = ()
    """What the model is told of a clip besides its caption."""
    priors: Sequence[Prior] = ()
    """Clips of the class, each kind with its weight."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Of parameters that learn at a rate of their own: how their names begin, and that rate over the loop's."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one optimizer step did; its figures are a row of ``metrics.jsonl``."""

    step: int
    """Steps done, this one included."""
    loss: float
    relative_loss: float
    """Divided by that of a model which predicts nothing: 1 is worth nothing."""
    learning_rate: float
    grad_norm: float
    """Before clipping."""
    seconds: float
    data_wait: float
    """Of them, those in which the model waited for clips."""
    clips_per_second: float
    peak_memory_bytes: int
    verdict: Verdict | None = None
    """What the held-out clips say, where they were asked."""

    def row(self) -> dict[str, float]:
        figures = {name: value for name, value in vars(self).items() if name != "verdict"}
        return figures | held_out_figures(self.verdict)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended."""

    step: int
    is_complete: bool
    """False where it was stopped; the same call goes on with it."""
    resumed_from: int
    seconds: float
    """Of all starts together."""
    stopped_by: str
    """Why it is not complete, in words; empty where it is."""
    best_step: int | None
    """The step with the lowest error on the held-out clips; None where none were held out."""


def held_out_figures(verdict: Verdict | None) -> dict[str, float]:
    """A verdict in numbers, gains as shares of the base's error; an interval without ends is left out."""
    if verdict is None:
        return {}
    gain = verdict.gain
    figures = {
        "held_out_loss": verdict.loss,
        "held_out_gain": gain.mean,
        "held_out_gain_low": gain.low,
        "held_out_gain_high": gain.high,
    }
    return {name: value for name, value in figures.items() if isfinite(value)}
