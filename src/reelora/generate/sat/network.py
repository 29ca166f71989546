"""The transformer as SAT calls it: latents and a timestep in, the foreseen clip out."""

from dataclasses import dataclass
from typing import Any

import torch
from einops import repeat

from reelora.components import Positions
from reelora.shapes import Latents, PromptStates

from .solvers import Signal

__all__ = ["SatNetwork"]


_OFS = 2.0
"""What CogVideoX 1.5 with an image is told beside the timestep, always the same."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SatNetwork:
    """A transformer with everything that stays the same from step to step."""

    transformer: Any
    states: PromptStates
    negative_states: PromptStates | None
    """None where nothing is led away from."""
    positions: Positions | None
    image_latents: Latents | None = None
    """Of a conditioning image, beside the latents of the clip."""

    def foresee(self, x: Latents, *, timestep: int, signal: Signal, guidance: float) -> Latents:
        """The clip that the latents seem to become, ``signal x - sqrt(1 - signal^2) v``, guided; in float32 like ``x``."""
        copies = 1 if self.negative_states is None else 2
        x = repeat(x, "b f c h w -> (n b) f c h w", n=copies)
        clean = self._velocity(x, timestep) * -((1 - signal**2) ** 0.5) + x * signal
        if self.negative_states is None:
            return clean
        without, with_prompt = clean.chunk(2)
        return without + guidance * (with_prompt - without)

    def _velocity(self, x: Latents, timestep: int) -> Latents:
        inputs = x if self.image_latents is None else torch.cat([x, self._beside(x)], 2)
        states = self.states if self.negative_states is None else torch.cat([self.negative_states, self.states])
        return self.transformer(
            hidden_states=inputs.to(states.dtype),
            encoder_hidden_states=states,
            timestep=torch.full((len(x),), timestep, device=x.device),
            ofs=states.new_full((1,), _OFS) if self.transformer.config.ofs_embed_dim else None,
            image_rotary_emb=self.positions,
            return_dict=False,
        )[0].float()

    def _beside(self, x: Latents) -> Latents:
        """The image's latents for each of these."""
        assert self.image_latents is not None
        return repeat(self.image_latents.to(x), "b f c h w -> (n b) f c h w", n=len(x) // len(self.image_latents))
