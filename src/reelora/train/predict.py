"""Calling CogVideoX's transformer as its pipeline calls it."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from einops import repeat
from torch import Tensor, nn

from reelora.shapes import Latents, PromptStates

from .diffusion import Timesteps

__all__ = ["Predictor", "cogvideox_predictor", "rotary_positions"]

Positions = tuple[Tensor, Tensor]

Predictor = Callable[[Latents, PromptStates, Timesteps], Latents]
"""Noisy latents, prompt states and timesteps to the predicted velocity, as long as the latents that came in."""


def rotary_positions(config: Any, *, num_latent_frames: int, height: int, width: int, device: torch.device) -> Positions:
    """Cosines and sines ``(tokens, head_dim)`` that diffusers' pipeline uses for latents of this size.

    CogVideoX 1.0 stretches the trained grid over the frame, 1.5 takes a slice of it.
    """
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    patch, patch_t = config.patch_size, config.patch_size_t
    grid = (height // patch, width // patch)
    base_height, base_width = config.sample_height // patch, config.sample_width // patch
    common: dict[str, Any] = {"embed_dim": config.attention_head_dim, "grid_size": grid, "device": device}
    if patch_t is None:
        crop = get_resize_crop_region_for_grid(grid, base_width, base_height)
        cosines, sines = get_3d_rotary_pos_embed(crops_coords=crop, temporal_size=num_latent_frames, **common)
    else:
        size = (max(base_height, grid[0]), max(base_width, grid[1]))
        frames = -(-num_latent_frames // patch_t)
        cosines, sines = get_3d_rotary_pos_embed(
            crops_coords=None, temporal_size=frames, grid_type="slice", max_size=size, **common
        )
    return cosines, sines


def cogvideox_predictor(model: nn.Module) -> Predictor:
    """A function that runs the transformer ``model`` in the dtype of its base and hands back float32.

    Latents whose frames do not fill the temporal patches (CogVideoX 1.5) get copies of the first frame in front, which are
    cut off again from the prediction, as in the pipeline.
    """
    config: Any = model.config
    dtype = next(parameter.dtype for parameter in model.parameters() if not parameter.requires_grad)

    @lru_cache(maxsize=8)
    def positions(num_latent_frames: int, height: int, width: int, device: torch.device) -> Positions | None:
        if not config.use_rotary_positional_embeddings:
            return None
        return rotary_positions(config, num_latent_frames=num_latent_frames, height=height, width=width, device=device)

    def predict(noisy: Latents, states: PromptStates, timesteps: Timesteps) -> Latents:
        missing = -noisy.shape[1] % (config.patch_size_t or 1)
        whole = torch.cat([repeat(noisy[:, :1], "b 1 c h w -> b f c h w", f=missing), noisy], dim=1)
        frames, _, height, width = whole.shape[1:]
        predicted = model(
            hidden_states=whole.to(dtype),
            encoder_hidden_states=states.to(dtype),
            timestep=timesteps,
            image_rotary_emb=positions(frames, height, width, whole.device),
            return_dict=False,
        )[0]
        return predicted[:, missing:].float()

    return predict
