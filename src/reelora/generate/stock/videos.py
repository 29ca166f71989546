"""The stock pipelines of videos with what they lack. Imports diffusers, so import this only where a pipeline is made.

Each is made without its text half: prompts come encoded.
"""

from typing import Any

import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import CogVideoXImageToVideoPipeline
from torch import Tensor

from reelora.components import Positions, rotary_positions, tiled

from .guided import Guided

__all__ = ["ImageToVideoPipeline", "VideoPipeline"]


class _OfEverySize:
    """Positions for every size that a model can do.

    Stock slices those of CogVideoX 1.5 out of the trained landscape grid, and fails for portrait.
    """

    transformer: Any
    vae_scale_factor_spatial: int

    def _prepare_rotary_positional_embeddings(
        self, height: int, width: int, num_frames: int, device: torch.device
    ) -> Positions:
        stride = self.vae_scale_factor_spatial
        size = {"height": height // stride, "width": width // stride}
        return rotary_positions(self.transformer.config, num_latent_frames=num_frames, **size, device=device)


class VideoPipeline(Guided, _OfEverySize, CogVideoXPipeline):
    """Text to video; also video to video, as noisy latents from which a scheduler begins later."""


class ImageToVideoPipeline(Guided, _OfEverySize, CogVideoXImageToVideoPipeline):
    """Image to video."""

    def prepare_latents(self, image: Tensor, *rest: Any) -> Any:
        """In the VAE's own precision, in tiles where the picture is large."""
        with tiled(self.vae, num_frames=1, height=image.shape[-2], width=image.shape[-1]):
            return super().prepare_latents(image.to(self.vae.dtype), *rest)
