"""Calling a denoiser as its pipeline calls it: one row per class of model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from reelora.components import Positions, hear, rotary_positions
from reelora.errors import ConfigError
from reelora.shapes import Latents, PromptStates

from .diffusion import Timesteps

__all__ = [
    "PREDICTORS",
    "Predictor",
    "cogvideox_predictor",
    "frame_group",
    "needed_extras",
    "predictor_of",
    "unet_predictor",
    "with_text_predictor",
]

Extras = Mapping[str, Tensor]
"""What a model is told besides the caption, by name: ``image`` latents ``(b f c h w)`` as long as the clip's, ``pooled`` text
states ``(b d)``, ``time_ids`` ``(b n)``, ``tokens`` ``(b e s)`` of each text encoder, -1 throughout for states of zeros."""

NOTHING: Extras = {}

_OFS = 2.0
"""What CogVideoX 1.5's image-to-video model is always told. Source: sat/sample_video.py and diffusers' pipeline."""


class Predictor(Protocol):
    """Noisy latents, prompt states, timesteps and extras to the prediction in float32, as long as the latents that came in."""

    def __call__(self, noisy: Latents, states: PromptStates, timesteps: Timesteps, extras: Extras = NOTHING, /) -> Latents: ...


def frame_group(model: nn.Module) -> int:
    """How many latent frames make one token: 2 for CogVideoX 1.5, else 1."""
    return getattr(model.config, "patch_size_t", None) or 1


def cogvideox_predictor(model: nn.Module) -> Predictor:
    """A function that runs the transformer ``model`` in the dtype of its base and hands back float32.

    An image-to-video model sees the image's latents behind those of the clip on the channel axis.
    """
    config: Any = model.config
    dtype = _dtype_of_base(model)

    @lru_cache(maxsize=8)
    def positions(num_latent_frames: int, height: int, width: int, device: torch.device) -> Positions | None:
        if not config.use_rotary_positional_embeddings:
            return None
        return rotary_positions(config, num_latent_frames=num_latent_frames, height=height, width=width, device=device)

    def predict(noisy: Latents, states: PromptStates, timesteps: Timesteps, extras: Extras = NOTHING, /) -> Latents:
        frames, _, height, width = noisy.shape[1:]
        shown = torch.cat([noisy, extras["image"]], dim=2) if "image" in extras else noisy
        predicted = model(
            hidden_states=shown.to(dtype),
            encoder_hidden_states=states.to(dtype),
            timestep=timesteps,
            ofs=noisy.new_full((1,), _OFS, dtype=dtype) if config.ofs_embed_dim else None,
            image_rotary_emb=positions(frames, height, width, noisy.device),
            return_dict=False,
        )[0]
        return predicted.float()

    return predict


def unet_predictor(model: nn.Module) -> Predictor:
    """A function that runs a UNet for still images on clips of one frame; SDXL's is told pooled states and sizes too."""
    dtype = _dtype_of_base(model)

    def predict(noisy: Latents, states: PromptStates, timesteps: Timesteps, extras: Extras = NOTHING, /) -> Latents:
        predicted = model(
            rearrange(noisy, "b 1 c h w -> b c h w").to(dtype),
            timesteps,
            encoder_hidden_states=states.to(dtype),
            added_cond_kwargs={theirs: extras[ours].to(dtype) for theirs, ours in _ADDED.items() if ours in extras},
            return_dict=False,
        )[0]
        return rearrange(predicted, "b c h w -> b 1 c h w").float()

    return predict


def with_text_predictor(model: Any) -> Predictor:
    """A function that makes the prompt states of ``WithText`` from the extra ``tokens``, and then runs its denoiser."""
    denoise = predictor_of(model.denoiser)

    def predict(noisy: Latents, states: PromptStates, timesteps: Timesteps, extras: Extras = NOTHING, /) -> Latents:
        tokens = extras["tokens"]
        is_said = (tokens >= 0).all(dim=2).all(dim=1)
        heard, pooled = hear(model.text_encoders, tokens.clamp(min=0).unbind(1))
        told = {} if pooled is None else {"pooled": pooled * is_said[:, None]}
        return denoise(noisy, heard * is_said[:, None, None], timesteps, {**extras, **told})

    return predict


_ADDED: Mapping[str, str] = {"text_embeds": "pooled", "time_ids": "time_ids"}
"""What SDXL's UNet calls its extras, and what we do."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """How a class of model is called."""

    make: Callable[[nn.Module], Predictor]
    needs: Callable[[Any], frozenset[str]]
    """The extras that a model cannot do without."""


PREDICTORS: Mapping[str, _Row] = {
    "CogVideoXTransformer3DModel": _Row(
        make=cogvideox_predictor,
        needs=lambda model: frozenset({"image"} if model.config.in_channels == 2 * model.config.out_channels else ()),
    ),
    "UNet2DConditionModel": _Row(
        make=unet_predictor,
        needs=lambda model: frozenset(_ADDED.values() if model.config.addition_embed_type == "text_time" else ()),
    ),
    "WithText": _Row(make=with_text_predictor, needs=lambda model: needed_extras(model.denoiser) - {"pooled"} | {"tokens"}),
}
"""How a denoiser is called, by the name of its class."""


def predictor_of(model: nn.Module) -> Predictor:
    """The predictor of ``model``; ConfigError for a class that has none."""
    return _row_of(model).make(model)


def needed_extras(model: nn.Module) -> frozenset[str]:
    """The extras that ``model`` cannot be called without; ConfigError for a class that cannot be trained."""
    return _row_of(model).needs(model)


def _row_of(model: nn.Module) -> _Row:
    name = type(model).__name__
    if name not in PREDICTORS:
        raise ConfigError(f"A {name} cannot be trained: known are {', '.join(sorted(PREDICTORS))}.")
    return PREDICTORS[name]


def _dtype_of_base(model: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters() if not parameter.requires_grad)
