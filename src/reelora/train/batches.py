"""What the model sees at each step: a pure function of the run's seed and the place in the run."""

import hashlib
from dataclasses import dataclass

import torch

from reelora.data import CachedClip, CachedClips, batch_indices
from reelora.shapes import Latents, PromptStates

from .config import LoopConfig
from .diffusion import Timesteps, draw_noise

__all__ = ["Batch", "read_batch"]


@dataclass(frozen=True)
class Batch:
    """Clean latents with the noise, timesteps and captions they are seen with, on the CPU."""

    clean: Latents
    noise: Latents
    timesteps: Timesteps
    states: PromptStates
    sources: tuple[str, ...]


def generator_for(*parts: object) -> torch.Generator:
    """A generator seeded by the hash of ``parts``, so that what it draws depends on nothing else."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def read_batch(clips: CachedClips, config: LoopConfig, *, forward: int, num_timesteps: int, frame_group: int) -> Batch:
    """The batch of the ``forward``-th forward pass of a run (there are ``gradient_accumulation`` of them in a step)."""
    indices = batch_indices(forward, batch_size=config.batch_size, num_clips=len(clips), seed=config.seed)
    rows = [
        _seen(clips, index, forward * config.batch_size + i, config, num_timesteps, frame_group)
        for i, index in enumerate(indices)
    ]
    clean, noise, timesteps, states = (list(column) for column in zip(*rows, strict=True))
    return Batch(
        clean=torch.stack(clean),
        noise=torch.stack(noise),
        timesteps=torch.stack(timesteps),
        states=torch.stack(states),
        sources=tuple(clips.sources[index] for index in indices),
    )


def _seen(
    clips: CachedClips, index: int, visit: int, config: LoopConfig, num_timesteps: int, frame_group: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents drawn from the posterior, noise, timestep and prompt states of one visit of one clip."""
    clip, generator = clips[index], generator_for(config.seed, visit)
    clean = padded_in_front(sample_posterior(clip, generator), frame_group)
    noise = draw_noise(tuple(clean.shape), generator)
    timestep = torch.randint(num_timesteps, (), generator=generator)
    is_dropped = torch.rand((), generator=generator) < config.caption_dropout
    states = clips.empty_prompt_states if is_dropped else clip["prompt_states"]
    return clean, noise, timestep, states.float()


def sample_posterior(clip: CachedClip, generator: torch.Generator) -> torch.Tensor:
    """A latent ``(f c h w)`` drawn from what the VAE said of the clip."""
    mean = clip["latent_mean"].float()
    return mean + clip["latent_std"].float() * draw_noise(tuple(mean.shape), generator)


def padded_in_front(clean: torch.Tensor, frame_group: int) -> torch.Tensor:
    """A latent ``(f c h w)`` with copies of its first frame in front, until its frames fill whole groups.

    CogVideoX 1.5 makes one token of two latent frames. The copy is made before noise is added, so that each frame has noise
    of its own, as at inference. Source: CogVideo, finetune/models/cogvideox_t2v/lora_trainer.py.
    """
    return torch.cat([clean[:1].expand(-clean.shape[0] % frame_group, -1, -1, -1), clean])
