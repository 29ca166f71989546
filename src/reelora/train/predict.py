"""Calling CogVideoX's transformer as its pipeline calls it."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from reelora.components import Positions, rotary_positions
from reelora.shapes import Latents, PromptStates

from .diffusion import Timesteps

__all__ = ["Predictor", "cogvideox_predictor", "frame_group"]

Predictor = Callable[[Latents, PromptStates, Timesteps], Latents]
"""Noisy latents, prompt states and timesteps to the predicted velocity, as long as the latents that came in."""


def frame_group(model: nn.Module) -> int:
    """How many latent frames make one token: 2 for CogVideoX 1.5, else 1."""
    return getattr(model.config, "patch_size_t", None) or 1


def cogvideox_predictor(model: nn.Module) -> Predictor:
    """A function that runs the transformer ``model`` in the dtype of its base and hands back float32."""
    config: Any = model.config
    dtype = next(parameter.dtype for parameter in model.parameters() if not parameter.requires_grad)

    @lru_cache(maxsize=8)
    def positions(num_latent_frames: int, height: int, width: int, device: torch.device) -> Positions | None:
        if not config.use_rotary_positional_embeddings:
            return None
        return rotary_positions(config, num_latent_frames=num_latent_frames, height=height, width=width, device=device)

    def predict(noisy: Latents, states: PromptStates, timesteps: Timesteps) -> Latents:
        frames, _, height, width = noisy.shape[1:]
        predicted = model(
            hidden_states=noisy.to(dtype),
            encoder_hidden_states=states.to(dtype),
            timestep=timesteps,
            image_rotary_emb=positions(frames, height, width, noisy.device),
            return_dict=False,
        )[0]
        return predicted.float()

    return predict
