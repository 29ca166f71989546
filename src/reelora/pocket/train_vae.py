"""Trains the pocket VAE: single frames first (several times cheaper per gradient), then whole clips, then the decoder alone.

Twelve of the sixteen channels are drawn towards the clip's own pixels, pooled to 16 x 16 and folded into
8 x 8 (the *thumbnail*). Without that the latents are a code that decodes well and that a small transformer cannot learn:
after 3,400 steps it knew colours, but neither shapes nor where things move.
The decoder can learn on while the transformer does, because the encoder, and with it the latents, stay as they are.

Half of what it sees are doodles, so that it can draw things no sentence names. It never sees a star, nor a held-out
combination.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from einops import rearrange
from numpy.random import Generator
from torch import Tensor
from torch.nn.functional import avg_pool2d

from .clips import NUM_FRAMES, SIZE, draw, draw_doodle, known_combinations, sample_scene
from .fit import Plan, average_of, fit

__all__ = ["CLIPS", "DECODER", "FRAMES", "build_vae", "psnr", "to_video", "train_decoder", "train_vae", "trained_vae"]

FRAMES = Plan(num_steps=4000, learning_rate=1e-3)
CLIPS = Plan(num_steps=1400, learning_rate=7e-4, checkpoint_every=100)
DECODER = Plan(num_steps=600, learning_rate=5e-4, checkpoint_every=50)
_FRAMES_PER_BATCH, _CLIPS_PER_BATCH = 12, 3
_KL_WEIGHT = 1e-4
_THUMBNAIL_WEIGHT = 0.1
_THUMBNAIL_SCALE = 1.5
"""Makes the pixels of a thumbnail about as large as the other latents."""


def build_vae() -> AutoencoderKLCogVideoX:
    """A CogVideoX VAE of 2.65 M parameters: 8x smaller in space, 4x in time, 16 channels, like the published one."""
    config: dict[str, Any] = {
        "down_block_types": ("CogVideoXDownBlock3D",) * 4,
        "up_block_types": ("CogVideoXUpBlock3D",) * 4,
        "block_out_channels": (16, 32, 64, 64),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "latent_channels": 16,
        "sample_height": SIZE,
        "sample_width": SIZE,
    }
    return AutoencoderKLCogVideoX(**config)


def to_video(clips: np.ndarray) -> Tensor:
    """uint8 ``(b, t, h, w, 3)`` to float32 ``(b, 3, t, h, w)`` in [-1, 1]."""
    return torch.from_numpy(clips).movedim(-1, 1).float() / 127.5 - 1


def psnr(video: Tensor, other: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB of each clip of a batch in [-1, 1]."""
    error = (video.float() - other.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error)


def _sample_clip(rng: Generator, num_frames: int) -> np.ndarray:
    if rng.random() < 0.5:
        return draw_doodle(rng, num_frames=num_frames)
    combinations = known_combinations(held_out=False)
    scene = sample_scene(rng, combinations[rng.integers(len(combinations))])
    if num_frames == 1:
        return draw(scene, num_frames=3)[int(rng.integers(3))][None]
    return draw(scene, num_frames=num_frames)


def thumbnail(video: Tensor) -> Tensor:
    """``(b, 3, t, 64, 64)`` pooled over the pixels and frames of a latent: ``(b, 12, f, 8, 8)``, four pixels in each cell."""
    groups = [video[:, :, :1].mean(2), *(group.mean(2) for group in video[:, :, 1:].split(4, dim=2))]
    small = avg_pool2d(rearrange(torch.stack(groups, 1), "b f c h w -> (b f) c h w"), 4)
    return rearrange(small, "(b f) c (h y) (w x) -> b (c y x) f h w", b=len(video), y=2, x=2)


def _loss(vae: AutoencoderKLCogVideoX, video: Tensor, noise: torch.Generator) -> Mapping[str, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(video, return_dict=False)[0]
        drawn = vae.decode(posterior.sample(noise), return_dict=False)[0]
    error = drawn.float() - video
    kl = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    squared = error.square().mean()
    wanted = _THUMBNAIL_SCALE * thumbnail(video)
    drift = (posterior.mean[:, : wanted.shape[1]].float() - wanted).square().mean()
    loss = error.abs().mean() + squared + _KL_WEIGHT * kl + _THUMBNAIL_WEIGHT * drift
    return {"loss": loss, "psnr": 10 * torch.log10(4 / squared), "kl": kl, "drift": drift}


def _batch(seed: int, stage: int, step: int, *, size: int, num_frames: int) -> tuple[Tensor, torch.Generator]:
    """The clips of a step, and a generator for the posterior's noise."""
    rng = np.random.default_rng([seed, stage, step])
    video = to_video(np.stack([_sample_clip(rng, num_frames) for _ in range(size)]))
    return video, torch.Generator().manual_seed(int(rng.integers(2**63)))


def train_vae(folder: Path, *, seed: int, report: Callable[[str], None]) -> None:
    """Train the first two stages into ``folder/frames`` and ``folder/clips``, each resumed where it stopped."""
    torch.manual_seed(seed)
    vae = build_vae()
    for stage, plan, size, num_frames in (
        ("frames", FRAMES, _FRAMES_PER_BATCH, 1),
        ("clips", CLIPS, _CLIPS_PER_BATCH, NUM_FRAMES),
    ):

        def loss(step: int, size: int = size, num_frames: int = num_frames) -> Mapping[str, Tensor]:
            return _loss(vae, *_batch(seed, num_frames, step, size=size, num_frames=num_frames))

        fit(vae, loss, plan, folder / stage, report=lambda line, stage=stage: report(f"{stage}: {line}"))


def train_decoder(folder: Path, *, seed: int, report: Callable[[str], None]) -> None:
    """Train the decoder alone into ``folder/decoder``, on what the encoder of the clips' stage says."""
    vae = average_of(build_vae(), folder / "clips").requires_grad_(False)
    decoder = vae.get_submodule("decoder").requires_grad_(True)

    def loss(step: int) -> Mapping[str, Tensor]:
        video, noise = _batch(seed, 3, step, size=_CLIPS_PER_BATCH, num_frames=NUM_FRAMES)
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(video, return_dict=False)[0].sample(noise)
            error = vae.decode(latents, return_dict=False)[0].float() - video
        squared = error.square().mean()
        return {"loss": error.abs().mean() + squared, "psnr": 10 * torch.log10(4 / squared)}

    fit(decoder, loss, DECODER, folder / "decoder", report=lambda line: report(f"decoder: {line}"))


def trained_vae(folder: Path) -> AutoencoderKLCogVideoX:
    """The VAE of the stages that are done, for use."""
    vae = average_of(build_vae(), folder / "clips")
    if (folder / "decoder" / "checkpoint.pt").exists():
        average_of(vae.get_submodule("decoder"), folder / "decoder")
    return vae.eval().requires_grad_(False)
