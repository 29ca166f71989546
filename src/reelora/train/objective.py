"""What a prediction is measured against: one place for training and for the held-out clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .batches import Batch
from .conditioning import Condition, check_extras
from .config import TimestepConfig
from .diffusion import Diffusion, per_clip_error
from .predict import Predictor, frame_group, needed_extras, predictor_of
from .weights import loss_weights

__all__ = ["Objective"]

PerClip = Float[Tensor, " b"]


@dataclass(frozen=True)
class Objective:
    """A model's predictor with the forward process that it was trained for."""

    predict: Predictor
    diffusion: Diffusion
    frame_group: int
    conditions: Sequence[Condition] = ()
    """What the model is told besides the caption."""

    @classmethod
    def of(cls, model: nn.Module, diffusion: Diffusion, conditions: Sequence[Condition] = ()) -> Self:
        """That of ``model``; ConfigError for a class that cannot be trained, and unless the conditions are those it needs."""
        predict = predictor_of(model)
        check_extras(needed_extras(model), conditions, type(model).__name__)
        return cls(predict, diffusion, frame_group(model), conditions)

    def errors(self, batch: Batch) -> tuple[PerClip, PerClip]:
        """Mean squared error of each clip's prediction, and that of a prediction of nothing, to see it by."""
        noisy = self.diffusion.noisy(batch.clean, batch.noise, batch.timesteps)
        wanted = self.diffusion.target(batch.clean, batch.noise, batch.timesteps)
        predicted = self.predict(noisy, batch.states, batch.timesteps, batch.extras)
        return per_clip_error(predicted, wanted), per_clip_error(torch.zeros_like(wanted), wanted)

    def weights(self, batch: Batch, config: TimestepConfig) -> PerClip:
        """How much each clip's error counts in training."""
        return loss_weights(self.diffusion, batch.timesteps, config) * batch.weights
