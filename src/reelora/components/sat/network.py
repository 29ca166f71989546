"""diffusers' transformer as SAT computes it: the epsilon of its last norm, and position tables that are read and not made."""

from typing import Any

import torch
from diffusers.models.embeddings import CogVideoXPatchEmbed
from torch import Tensor, nn

from reelora.errors import ComponentError

from .tables import FINAL_NORM_EPS

__all__ = ["SatPatchEmbed", "as_sat"]


class SatPatchEmbed(CogVideoXPatchEmbed):
    """Patch embedding that slices its position table for clips of fewer frames, as the model was trained.

    diffusers computes a table of sines for them, whatever was learned or stored. Source: CogVideo, sat/dit_video_concat.py,
    position_embedding_forward.
    """

    def _get_positional_embeddings(
        self, sample_height: int, sample_width: int, sample_frames: int, device: torch.device | None = None
    ) -> Tensor:
        if "pos_embedding" not in self._buffers or (sample_height, sample_width) != (self.sample_height, self.sample_width):
            return super()._get_positional_embeddings(sample_height, sample_width, sample_frames, device)
        if sample_frames > self.sample_frames:
            raise ComponentError(
                f"The position table has {self.sample_frames} frames, {sample_frames} were asked for. Make shorter clips."
            )
        frames = (sample_frames - 1) // self.temporal_compression_ratio + 1
        num_tokens = frames * (sample_height // self.patch_size) * (sample_width // self.patch_size)
        table = self._buffers["pos_embedding"]
        assert table is not None
        return table[:, : self.max_text_seq_length + num_tokens]


def as_sat(network: Any) -> nn.Module:
    """A transformer without memory, made to compute what SAT does once its weights are there."""
    config = network.config
    network.norm_out.norm.eps = FINAL_NORM_EPS
    with torch.device("meta"):
        network.patch_embed = SatPatchEmbed(
            patch_size=config.patch_size,
            patch_size_t=config.patch_size_t,
            in_channels=config.in_channels,
            embed_dim=config.num_attention_heads * config.attention_head_dim,
            text_embed_dim=config.text_embed_dim,
            bias=config.patch_bias,
            sample_width=config.sample_width,
            sample_height=config.sample_height,
            sample_frames=config.sample_frames,
            temporal_compression_ratio=config.temporal_compression_ratio,
            max_text_seq_length=config.max_text_seq_length,
            spatial_interpolation_scale=config.spatial_interpolation_scale,
            temporal_interpolation_scale=config.temporal_interpolation_scale,
            use_positional_embeddings=not config.use_rotary_positional_embeddings,
            use_learned_positional_embeddings=config.use_learned_positional_embeddings,
        ).requires_grad_(False)
    return network
