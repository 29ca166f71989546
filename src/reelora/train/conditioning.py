"""What a model is told of a clip besides its caption: one class per kind of extra.

Everything random follows from the look at the clip, so that a resumed run sees the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from reelora.data import CachedClip
from reelora.errors import ConfigError
from reelora.shapes import Latents, Video

from .draws import draw_noise, generator_for

__all__ = [
    "Condition",
    "EncodeImage",
    "ImageCondition",
    "Look",
    "PooledCondition",
    "SizeCondition",
    "StoredImageCondition",
    "check_extras",
    "extras_of",
    "noisy_draws",
    "noisy_image",
    "padded_with_zeros",
]

ClipLatents = Float[Tensor, "f c h w"]

FirstFrame = Callable[[str], Float[Tensor, "1 c 1 h w"]]
"""The first picture of the clip of a name, in [-1, 1]."""

EncodeImage = Callable[[Video, torch.Generator], Latents]
"""A draw of the latents of pictures, at the scale that the model takes for images."""

_LOG_SIGMA_MEAN, _LOG_SIGMA_STD = -3.0, 0.5
"""Of the noise on a conditioning image. Source: sat/diffusion_video.py of CogVideo, and its ``finetune/``."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at one clip, for which everything is drawn anew."""

    place: tuple[object, ...]
    """Which look of the run it is."""
    caption: str
    """What it is seen with; empty where the caption was dropped."""
    frame_group: int
    """Latent frames of one token."""
    is_measured: bool = False
    """Whether it only measures: then nothing is dropped."""

    def generator(self, purpose: str) -> torch.Generator:
        """Random numbers for one purpose: no other purpose changes them."""
        return generator_for(*self.place, purpose)


class Condition(Protocol):
    """A kind of extra: what it is called, and what it is for one look at a clip, without the axis of the batch."""

    @property
    def name(self) -> str: ...

    def __call__(self, clip: CachedClip, look: Look, /) -> Tensor: ...


def extras_of(conditions: Sequence[Condition], clip: CachedClip, look: Look) -> dict[str, Tensor]:
    """Every extra of one look at a clip, by name."""
    return {condition.name: condition(clip, look) for condition in conditions}


def check_extras(needed: frozenset[str], conditions: Sequence[Condition], model: str) -> None:
    """Raise ConfigError unless exactly the extras that a model needs are given."""
    given = frozenset(condition.name for condition in conditions)
    if given != needed:
        said = {"needs": needed - given, "cannot take": given - needed}
        found = " and ".join(f"{what} {', '.join(sorted(names))}" for what, names in said.items() if names)
        raise ConfigError(f"This {model} {found} besides the caption; give it the conditions {sorted(needed) or 'of none'}.")


@dataclass(frozen=True, kw_only=True)
class ImageCondition:
    """The latents of a clip's first picture, made noisy, as an image-to-video model is shown it.

    The noise belongs to the look, so the VAE is needed at every step. Source: sat/diffusion_video.py of CogVideo, where the
    noise is one draw for each clip, as here.
    """

    first_frame: FirstFrame
    encode: EncodeImage
    dropout: float = 0.05
    """Share of clips that are seen without their picture: all zeros."""
    name: str = field(default="image", init=False)

    def __call__(self, clip: CachedClip, look: Look, /) -> ClipLatents:
        generator = look.generator(self.name)
        latent = _encoded(self.first_frame(clip["source"]), self.encode, generator)
        return _shown(latent, clip, look, self.dropout)


@dataclass(frozen=True, kw_only=True)
class StoredImageCondition:
    """The same from latents that were made beforehand, each with noise of its own, of which every look takes one.

    So no VAE is needed while training.
    """

    draws: Callable[[str], Float[Tensor, "n c h w"]]
    """The latents of the clip of this name, at the scale that the model takes for images."""
    dropout: float = 0.05
    """Share of clips that are seen without their picture: all zeros."""
    name: str = field(default="image", init=False)

    def __call__(self, clip: CachedClip, look: Look, /) -> ClipLatents:
        draws = self.draws(clip["source"])
        chosen = int(torch.randint(len(draws), (), generator=look.generator(self.name)))
        return _shown(draws[chosen : chosen + 1].float(), clip, look, self.dropout)


@dataclass(frozen=True, kw_only=True)
class PooledCondition:
    """The pooled states of captions, which SDXL is told beside the states of their tokens."""

    states: Mapping[str, Float[Tensor, " d"]]
    """By caption, "" among them."""
    name: str = field(default="pooled", init=False)

    def __call__(self, clip: CachedClip, look: Look, /) -> Float[Tensor, " d"]:
        return self.states[look.caption].float()


@dataclass(frozen=True, kw_only=True)
class SizeCondition:
    """What SDXL is told of a picture's size: height and width of the file, top and left of the crop, height and width of it.

    Source: SDXL, arXiv:2307.01952, section 2.2.
    """

    count: ClassVar[int] = 6
    sizes: Callable[[str], tuple[int, int, int, int, int, int]]
    """The six numbers of the clip of this name."""
    name: str = field(default="time_ids", init=False)

    def __call__(self, clip: CachedClip, look: Look, /) -> Float[Tensor, " n"]:
        return torch.tensor(self.sizes(clip["source"]), dtype=torch.float32)


def noisy_image(image: Video, generator: torch.Generator) -> Video:
    """``image + sigma * noise`` with log sigma drawn from N(-3, 0.5^2), one for each picture."""
    noise = draw_noise(tuple(image.shape), generator).to(image)
    log_sigma = _LOG_SIGMA_MEAN + _LOG_SIGMA_STD * draw_noise((len(image), 1, 1, 1, 1), generator).to(image)
    return image + log_sigma.exp() * noise


def noisy_draws(
    image: Float[Tensor, "1 c 1 h w"], encode: EncodeImage, *, count: int, place: Sequence[object]
) -> Float[Tensor, "n c h w"]:
    """``count`` noisy latents of a picture, for a StoredImageCondition; the same for the same ``place``."""
    return torch.cat([_encoded(image, encode, generator_for(*place, "stored image", draw)) for draw in range(count)])


def _encoded(image: Video, encode: EncodeImage, generator: torch.Generator) -> Float[Tensor, "1 c h w"]:
    return encode(noisy_image(image, generator), generator)[0].cpu().float()


def padded_with_zeros(image: Float[Tensor, "1 c h w"], num_frames: int) -> ClipLatents:
    """The latents of a picture, followed by zeros until they are as long as a clip, its padding included.

    The padding of CogVideoX 1.5 makes the clip longer, but only its very first latent frame shows the picture: so do the
    published pipeline, SAT and CogVideo's ``finetune/``.
    """
    return torch.cat([image, image.new_zeros(num_frames - 1, *image.shape[1:])])


def _shown(latent: Float[Tensor, "1 c h w"], clip: CachedClip, look: Look, dropout: float) -> ClipLatents:
    """A picture's latents as long as the clip's, or zeros where the picture is dropped."""
    is_dropped = torch.rand((), generator=look.generator("image dropout")) < dropout and not look.is_measured
    kept = torch.zeros_like(latent) if is_dropped else latent
    num_frames = clip["latent_mean"].shape[0]
    return padded_with_zeros(kept, num_frames + -num_frames % look.frame_group)
