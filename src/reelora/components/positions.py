"""Where each token of a clip is, as CogVideoX's attention is told."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Positions", "rotary_positions"]

Positions = tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]
"""Cosines and sines of every token and every channel of a head."""


def rotary_positions(config: Any, *, num_latent_frames: int, height: int, width: int, device: torch.device) -> Positions:
    """Rotary positions of latents of this size, equal to those of the stock pipeline wherever it has them.

    ``config`` is the transformer's. CogVideoX 1.0 stretches the trained grid over the frame, 1.5 takes a slice of it; of
    a frame that is longer than the trained grid on either side (portrait) the grid is continued, where stock ends.
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
