"""What a model is told of a clip besides its caption, made for a run: one row per kind."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from reelora.components import encode_image, load_components, to_video
from reelora.data import PlannedClip, read_first_frame
from reelora.errors import ConfigError
from reelora.train import Condition, ImageCondition, StoredImageCondition, needed_extras, stored_images

from .config import TrainConfig
from .listener import Listener
from .model import find_model

__all__ = ["check_conditions", "conditions_for"]


def check_conditions(denoiser: nn.Module, config: TrainConfig) -> None:
    """Raise ConfigError for a model that has to be told something that no cache holds yet."""
    if unknown := sorted(needed_extras(denoiser) - _MAKERS.keys()):
        raise ConfigError(
            f"{config.model} is told {', '.join(unknown)} besides the caption, which are not made here yet: train a model that "
            f"needs nothing or {', '.join(_MAKERS)} besides."
        )


def conditions_for(
    denoiser: nn.Module, clips: Sequence[PlannedClip], config: TrainConfig, *, device: torch.device, listener: Listener
) -> list[Condition]:
    """The conditions that ``denoiser`` needs for these clips.

    A VAE is loaded where pictures have to be encoded, and stays in memory only if they are encoded anew at every look.
    """
    return [_MAKERS[name](clips, config, device, listener) for name in sorted(needed_extras(denoiser))]


def _image_condition(
    clips: Sequence[PlannedClip], config: TrainConfig, device: torch.device, listener: Listener
) -> ImageCondition | StoredImageCondition:
    vae = load_components(find_model(config.model), roles=["vae"], device=device)
    planned = {clip.name: clip for clip in clips}

    def first_frame(name: str) -> Tensor:
        return to_video([read_first_frame(planned[name])]).to(device)

    def encode(image: Tensor, generator: torch.Generator) -> Tensor:
        return encode_image(vae, image).sample(generator)

    if not config.image.draws:
        listener.say(f"{'images':<10} encoded at every look; the VAE stays in memory")
        return ImageCondition(first_frame=first_frame, encode=encode, dropout=config.image.dropout)
    draws = stored_images(list(planned), first_frame, encode, count=config.image.draws, seed=config.loop.seed)
    vae.release("vae")
    size = sum(tensor.nbytes for tensor in draws.values()) / 1e6
    listener.say(f"{'images':<10} {config.image.draws} noisy latents of each of {len(draws)} pictures, {size:.0f} MB in memory")
    return StoredImageCondition(draws=draws.__getitem__, dropout=config.image.dropout)


_MAKERS: Mapping[str, Callable[..., Condition]] = {"image": _image_condition}
"""By the name of the extra."""
