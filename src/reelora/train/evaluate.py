"""The loss on held-out clips, on the same noise and timesteps every time, so that only the weights can change it."""

from contextlib import contextmanager

import torch
from torch import nn

from reelora.data import CachedClips

from .batches import generator_for, sample_posterior
from .diffusion import Diffusion, draw_noise, per_clip_error
from .predict import Predictor

__all__ = ["held_out_loss", "resting"]

_TIMES_PER_CLIP = 8


@contextmanager
def resting(model: nn.Module):
    """Evaluation mode without gradients for the length of a block; every module's mode is as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def held_out_loss(model: nn.Module, predict: Predictor, clips: CachedClips, diffusion: Diffusion, *, seed: int) -> float:
    """Mean velocity error over all ``clips`` at eight timesteps each, spread evenly over the schedule."""
    device = next(model.parameters()).device
    timesteps = ((torch.arange(_TIMES_PER_CLIP) + 0.5) / _TIMES_PER_CLIP * diffusion.num_timesteps).long()
    errors = []
    with resting(model):
        for source, clip in zip(clips.sources, clips, strict=True):
            generator = generator_for(seed, "held out", source)
            clean = sample_posterior(clip, generator).expand(_TIMES_PER_CLIP, -1, -1, -1, -1)
            noise = draw_noise(tuple(clean.shape), generator)
            states = clip["prompt_states"].float().expand(_TIMES_PER_CLIP, -1, -1)
            clean, noise, states, times = (tensor.to(device) for tensor in (clean, noise, states, timesteps))
            predicted = predict(diffusion.noisy(clean, noise, times), states, times)
            errors.append(per_clip_error(predicted, diffusion.velocity(clean, noise, times)).mean())
    return float(torch.stack(errors).mean())
