"""SAT's ways through the VAE."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from reelora.catalog import ModelFacts
from reelora.components import LatentPosterior
from reelora.shapes import Latents, Video

__all__ = ["decode", "encode", "image_latents"]

_MOST_CHUNKS = 10
"""Into which the code of CogVideoX 1.5 divides a clip."""


@torch.no_grad()
def encode(vae: Any, video: Video) -> LatentPosterior:
    """Posterior of the latents of clips in [-1, 1], each encoded in one piece, times the VAE's scaling factor, in float32.

    diffusers goes through a clip eight frames at a time, and every group norm sees only those.
    """
    with _with(vae, use_tiling=False, num_sample_frames_batch_size=video.shape[2]):
        posterior = vae.encode(video.to(vae.device, vae.dtype)).latent_dist
    scale = vae.config.scaling_factor
    mean, std = (rearrange(moment.float() * scale, "b c f h w -> b f c h w") for moment in (posterior.mean, posterior.std))
    return LatentPosterior(mean=mean.contiguous(), std=std.contiguous())


@torch.no_grad()
def decode(vae: Any, latents: Latents, facts: ModelFacts) -> Video:
    """The clips of scaled latents, in whole frames.

    The code of CogVideoX 1.0 decodes three latent frames and then two at a time, of the first of which one frame comes, as
    diffusers does. That of 1.5 leaves the first latent frame out and makes four frames of every other.
    """
    z = 1 / vae.config.scaling_factor * rearrange(latents, "b f c h w -> b c f h w").to(vae.dtype)
    if facts.patch_size_t is None:
        with _with(vae, use_tiling=False):
            return vae.decode(z).sample
    return _decode_every_frame(vae, z[:, :, 1:])


def image_latents(latents: Latents, facts: ModelFacts, *, num_latent_frames: int) -> Latents:
    """What stands beside a clip's latents for the image that it begins with, from its own scaled ones ``(b, 1, c, h, w)``.

    Zeros follow it in time. The code of CogVideoX 1.0 leaves it scaled, that of 1.5 takes the scale away; diffusers divides by
    the scale a second time there (``invert_scale_latents``).
    """
    unscaled = latents if facts.patch_size_t is None else latents / facts.scaling_factor
    rest = torch.zeros_like(unscaled)
    return torch.cat([unscaled, repeat(rest, "b 1 c h w -> b f c h w", f=num_latent_frames - 1)], dim=1)


@contextmanager
def _with(vae: Any, **settings: Any) -> Iterator[None]:
    """A VAE with other settings; afterwards they are as before."""
    before = {name: getattr(vae, name) for name in settings}
    vars(vae).update(settings)
    try:
        yield
    finally:
        vars(vae).update(before)


def _decode_every_frame(vae: Any, z: Tensor) -> Video:
    """Chunk after chunk, each with the frames that the one before has left in the convolutions' caches."""
    videos, cache = [], None
    with _no_first_frame(vae.decoder):
        for chunk in z.tensor_split(min(_MOST_CHUNKS, z.shape[2] // 2), dim=2):
            video, cache = vae.decoder(chunk, conv_cache=cache)
            videos.append(video)
    return torch.cat(videos, dim=2)


@contextmanager
def _no_first_frame(decoder: nn.Module) -> Iterator[None]:
    """A decoder that doubles every frame; diffusers' own leaves the first of an odd number single."""
    handles = []
    for module in decoder.modules():
        if getattr(module, "compress_time", False):
            doubling = _Doubling()
            handles += [module.register_forward_pre_hook(doubling.before), module.register_forward_hook(doubling.after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Doubling:
    """Hooks on one upsampler that give it an even number of frames, and take what the added frame became away again."""

    def __init__(self) -> None:
        self._added = 0

    def before(self, module: nn.Module, inputs: tuple[Video]) -> tuple[Video]:
        frames = inputs[0]
        self._added = frames.shape[2] % 2
        return (torch.cat([frames[:, :, : self._added], frames], dim=2),)

    def after(self, module: nn.Module, inputs: tuple[Video], output: Video) -> Video:
        return output[:, :, 2 * self._added :]
