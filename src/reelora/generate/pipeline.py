"""The stock pipeline with what it lacks. Imports diffusers, so import this only where a pipeline is made."""

import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline

from reelora.components import Positions, rotary_positions

__all__ = ["TextToVideoPipeline"]


class TextToVideoPipeline(CogVideoXPipeline):
    """CogVideoX's stock pipeline, for every size that the model can do.

    Stock slices the positions of CogVideoX 1.5 out of the trained landscape grid, and fails for portrait.
    """

    def _prepare_rotary_positional_embeddings(
        self, height: int, width: int, num_frames: int, device: torch.device
    ) -> Positions:
        stride = self.vae_scale_factor_spatial
        return rotary_positions(
            self.transformer.config,
            num_latent_frames=num_frames,
            height=height // stride,
            width=width // stride,
            device=device,
        )
