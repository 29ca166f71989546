"""The smallest forward of a model: enough to see what an adapter changes, at a fraction of a clip's work."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reelora.components import rotary_positions
from reelora.errors import ConfigError

__all__ = ["probe"]

_SEED, _TIMESTEP = 0, 500
_PATCHES, _UNET_SIDE, _NUM_TOKENS = 4, 16, 16
_OFFSET = 2.0
"""CogVideoX 1.5 image-to-video is always told this. Source: diffusers 0.42.1, pipeline_cogvideox_image2video.py."""

Inputs = Mapping[str, Any]


@torch.no_grad()
def probe(model: nn.Module, *, nudged: bool = False) -> Tensor:
    """What a denoiser or text encoder makes of noise (of token ids): the same for the same weights, in float32 on the CPU.

    With ``nudged`` every number of the noise is rounded the other way first: how far that moves the output is what the
    precision of the model leaves undecided. Raises ConfigError for a class that has no such input here.
    """
    kind = next((cls.__name__ for cls in type(model).__mro__ if cls.__name__ in _INPUTS), None)
    if kind is None:
        raise ConfigError(f"A {type(model).__name__} cannot be tried here; what can: {', '.join(_INPUTS)}.")
    parameter = next(model.parameters())
    inputs = {name: _placed(value, parameter, nudged) for name, value in _INPUTS[kind](model.config).items()}
    return model(**inputs, return_dict=False)[0].float().cpu()


def _placed(value: Any, like: Tensor, nudged: bool) -> Any:
    if isinstance(value, dict):
        return {name: _placed(held, like, nudged) for name, held in value.items()}
    if isinstance(value, tuple):  # positions stay exact
        return tuple(tensor.to(like.device) for tensor in value)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value if value is None else value.to(like.device)
    placed = value.to(like.device, like.dtype)
    return placed.nextafter(placed * 2) if nudged else placed


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(_SEED))


def _cogvideox(config: Any) -> Inputs:
    """One token's worth of frames, a few patches wide; a learned position table fits nothing but the trained size."""
    height, width = (
        (config.sample_height, config.sample_width)
        if config.use_learned_positional_embeddings
        else (_PATCHES * config.patch_size,) * 2
    )
    frames = config.patch_size_t or 1
    has_table = not config.use_rotary_positional_embeddings or config.use_learned_positional_embeddings
    num_tokens = config.max_text_seq_length if has_table else _NUM_TOKENS
    cpu = torch.device("cpu")
    size = {"num_latent_frames": frames, "height": height, "width": width}
    return {
        "hidden_states": _noise(1, frames, config.in_channels, height, width),
        "encoder_hidden_states": _noise(1, num_tokens, config.text_embed_dim),
        "timestep": torch.tensor([_TIMESTEP]),
        "ofs": torch.tensor([_OFFSET]) if config.ofs_embed_dim else None,
        "image_rotary_emb": rotary_positions(config, **size, device=cpu) if config.use_rotary_positional_embeddings else None,
    }


def _unet(config: Any) -> Inputs:
    """A small picture; SDXL is told its size and a pooled prompt besides."""
    width = config.cross_attention_dim
    inputs = {
        "sample": _noise(1, config.in_channels, _UNET_SIDE, _UNET_SIDE),
        "timestep": torch.tensor([_TIMESTEP]),
        "encoder_hidden_states": _noise(1, _NUM_TOKENS, width if isinstance(width, int) else max(width)),
    }
    if config.addition_embed_type != "text_time":
        return inputs
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return {**inputs, "added_cond_kwargs": {"text_embeds": _noise(1, pooled), "time_ids": torch.zeros(1, 6)}}


def _text(config: Any) -> Inputs:
    return {"input_ids": torch.arange(1, 1 + min(_NUM_TOKENS, config.vocab_size - 1))[None]}


_INPUTS: Mapping[str, Callable[[Any], Inputs]] = {
    "CogVideoXTransformer3DModel": _cogvideox,
    "UNet2DConditionModel": _unet,
    "T5EncoderModel": _text,
    "CLIPTextModel": _text,
    "CLIPTextModelWithProjection": _text,
}
