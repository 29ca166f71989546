"""The loss on held-out clips, on the same noise and timesteps every time, so that only the weights can change it."""

import torch
from torch import nn

from reelora.data import CachedClips
from reelora.lora import evaluating

from .batches import generator_for, padded_in_front, sample_posterior
from .diffusion import Diffusion, draw_noise, per_clip_error
from .predict import Predictor

__all__ = ["held_out_loss"]

_TIMES_PER_CLIP = 8


def held_out_loss(
    model: nn.Module,
    predict: Predictor,
    clips: CachedClips,
    diffusion: Diffusion,
    *,
    seed: int,
    batch_size: int,
    frame_group: int,
) -> float:
    """Mean velocity error over all ``clips`` at eight timesteps each, spread evenly over the schedule.

    At most ``batch_size`` of them are computed at once, so that measuring needs no more memory than training.
    """
    device = next(model.parameters()).device
    timesteps = ((torch.arange(_TIMES_PER_CLIP) + 0.5) / _TIMES_PER_CLIP * diffusion.num_timesteps).long()
    errors = []
    with evaluating(model), torch.no_grad():
        for source, clip in zip(clips.sources, clips, strict=True):
            generator = generator_for(seed, "held out", source)
            clean = padded_in_front(sample_posterior(clip, generator), frame_group)
            states = clip["prompt_states"].float()
            for times in timesteps.split(batch_size):
                noise = draw_noise((len(times), *clean.shape), generator).to(device)
                many = clean.to(device).expand_as(noise)
                repeated = states.to(device).expand(len(times), -1, -1)
                times = times.to(device)
                predicted = predict(diffusion.noisy(many, noise, times), repeated, times)
                errors.append(per_clip_error(predicted, diffusion.velocity(many, noise, times)))
    return float(torch.cat(errors).mean())
