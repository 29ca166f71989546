"""What a model is told of a clip besides its caption, made for a run: one row per kind."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reelora.components import encode_image, load_components, to_video, tokenize
from reelora.data import CachedClips, CacheSummary, DrawEncoder, PlannedClip, StoredImages, read_first_frame
from reelora.errors import ConfigError
from reelora.train import (
    Condition,
    EncodeImage,
    ImageCondition,
    PooledCondition,
    SizeCondition,
    StoredImageCondition,
    TokenCondition,
    needed_extras,
    noisy_draws,
)

from .config import TrainConfig
from .listener import Listener
from .model import facts_of, find_model, text_roles_of
from .precompute import DataPlan, precompute_plan

__all__ = ["Kind", "check_conditions", "conditions_for", "precompute_kind"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The clips of one folder: what became of every one, and what the cache has of them."""

    planned: Sequence[PlannedClip]
    clips: CachedClips


def check_conditions(denoiser: nn.Module, config: TrainConfig) -> None:
    """Raise ConfigError for a model that has to be told something that no cache holds yet."""
    if unknown := sorted(needed_extras(denoiser) - _MAKERS.keys()):
        raise ConfigError(
            f"{config.model} is told {', '.join(unknown)} besides the caption, which are not made here yet: train a model that "
            f"needs nothing or {', '.join(_MAKERS)} besides."
        )
    if SizeCondition.name in needed_extras(denoiser):
        _check_sizes(denoiser, config)


def _check_sizes(unet: nn.Module, config: TrainConfig) -> None:
    """Raise ConfigError for a UNet that is told more or fewer numbers of a picture than SDXL is."""
    encoder = text_roles_of(config.model)[-1]
    pooled = getattr(load_components(find_model(config.model), roles=[encoder]), encoder).config.projection_dim
    shape: Any = unet.config
    count = (shape.projection_class_embeddings_input_dim - pooled) / shape.addition_time_embed_dim
    if count != SizeCondition.count:
        raise ConfigError(
            f"The UNet of {config.model} is told {count:g} numbers of a picture besides a pooled state of {pooled}; SDXL is "
            f"told {SizeCondition.count}. A refiner, which is told 5, or an encoder of another model cannot be trained here: "
            "take the folders unet and text_encoder_2 of one SDXL base model."
        )


def conditions_for(
    model: nn.Module, kind: Kind, config: TrainConfig, *, device: torch.device, listener: Listener
) -> list[Condition]:
    """The conditions that ``model`` needs for these clips.

    A VAE is loaded only where pictures are to be encoded anew at every look, and then stays in memory.
    """
    return [_MAKERS[name](kind, config, device, listener) for name in sorted(needed_extras(model))]


def precompute_kind(
    plan: DataPlan, config: TrainConfig, *, device: torch.device, listener: Listener, is_read_whole: bool = False
) -> tuple[CacheSummary, Kind]:
    """Carry out a plan, and put into the cache what else the model is told of its clips.

    What is there already is compared with its hash now if it ``is_read_whole``, otherwise when it is first read.
    """
    summary = precompute_plan(plan, config.model, device=str(device), listener=listener)
    kind = Kind(planned=plan.plan.clips, clips=CachedClips(summary.manifest))
    if facts_of(config.model).needs_image and config.image.draws:
        _store_images(kind, config, device, listener, is_read_whole)
    return summary, kind


def _store_images(kind: Kind, config: TrainConfig, device: torch.device, listener: Listener, is_read_whole: bool) -> None:
    """Noisy latents of the first picture of every clip; a VAE is loaded only if some are missing."""
    images = _stored_images(kind, config)
    with ExitStack() as loaded:

        def make_encoder() -> DrawEncoder:
            encode = _image_encoder(config, device, loaded)
            return lambda frames, clip: noisy_draws(
                to_video([frames]).to(device), encode, count=config.image.draws, place=(config.loop.seed, clip)
            )

        made = images.complete(
            kind.planned,
            make_encoder,
            on_progress=lambda done, total, name: listener.progress("images", done, total, name),
            is_read_whole=is_read_whole,
        )
    found = f"{made} made now, {len(kind.clips) - made} found in {kind.clips.folder}"
    listener.say(f"{'images':<10} {config.image.draws} noisy latents of each of {len(kind.clips)} pictures: {found}")


def _stored_images(kind: Kind, config: TrainConfig) -> StoredImages:
    return StoredImages(kind.clips, count=config.image.draws, seed=config.loop.seed)


def _image_encoder(config: TrainConfig, device: torch.device, loaded: ExitStack) -> EncodeImage:
    """Latents of pictures, by a VAE that is let go of at the end of ``loaded``."""
    parts = load_components(find_model(config.model), roles=["vae"], device=device)
    loaded.callback(parts.release, "vae")
    return lambda image, generator: encode_image(parts, image).sample(generator)


def _image_condition(
    kind: Kind, config: TrainConfig, device: torch.device, listener: Listener
) -> ImageCondition | StoredImageCondition:
    if config.image.draws:
        return StoredImageCondition(draws=_stored_images(kind, config), dropout=config.image.dropout)
    listener.say(f"{'images':<10} encoded at every look; the VAE stays in memory")
    planned = {clip.name: clip for clip in kind.planned}

    def first_frame(name: str) -> Tensor:
        return to_video([read_first_frame(planned[name])]).to(device)

    encode = _image_encoder(config, device, ExitStack())
    return ImageCondition(first_frame=first_frame, encode=encode, dropout=config.image.dropout)


def _pooled_condition(kind: Kind, config: TrainConfig, device: torch.device, listener: Listener) -> PooledCondition:
    return PooledCondition(states=kind.clips.pooled_states())


def _size_condition(kind: Kind, config: TrainConfig, device: torch.device, listener: Listener) -> SizeCondition:
    return SizeCondition(sizes=kind.clips.micro_conditions().__getitem__)


def _token_condition(kind: Kind, config: TrainConfig, device: torch.device, listener: Listener) -> TokenCondition:
    parts = load_components(find_model(config.model), roles=text_roles_of(config.model)[::2])
    captions = ["", *kind.clips.all_captions]
    tokens = dict(zip(captions, tokenize(parts, captions), strict=True))
    silence = {"": torch.full_like(tokens[""], -1)} if parts.has_zero_unconditional else {}
    return TokenCondition(tokens=tokens | silence)


_MAKERS: Mapping[str, Callable[[Kind, TrainConfig, torch.device, Listener], Condition]] = {
    "image": _image_condition,
    "pooled": _pooled_condition,
    "time_ids": _size_condition,
    "tokens": _token_condition,
}
"""By the name of the extra."""
