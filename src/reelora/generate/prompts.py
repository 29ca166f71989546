"""Prompts as the denoiser takes them, encoded once and one at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from reelora.components import Bundle, EncodedPrompts, encode_captions
from reelora.errors import ConfigError
from reelora.shapes import PromptStates

from .uses import AdapterUse, text_key

__all__ = ["EncodedTexts", "PromptBook", "TokenStates"]

TokenStates = Float[Tensor, "s d"]
"""Prompt states of one prompt."""

_REMEMBERED = 256
"""Prompts; one of CogVideoX takes 2 MB."""

Key = tuple[object, ...]
"""A prompt, and what acts on the text encoders."""


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedTexts:
    """Prompt states of a batch in the denoiser's precision."""

    states: PromptStates
    pooled: Float[Tensor, "b d"] | None
    """For SDXL alone."""


class PromptBook:
    """Prompt states by prompt: those that are known from the start, and those that the text encoder makes when asked.

    It keeps no model, so that whoever keeps both is no part of a cycle and is freed at once.
    """

    def __init__(self, known: Mapping[str, TokenStates]) -> None:
        self._known = dict(known)
        self._encoded: dict[Key, EncodedPrompts] = {}
        self._room = _REMEMBERED

    def make_room(self, count: int) -> None:
        """Remember at least so many prompts."""
        self._room = max(_REMEMBERED, count)

    def lacks(self, prompt: str, uses: Sequence[AdapterUse]) -> bool:
        """Whether a text encoder is needed for a prompt."""
        return prompt not in self._known and (prompt, *text_key(uses)) not in self._encoded

    def learn(self, parts: Bundle, prompt: str, uses: Sequence[AdapterUse]) -> EncodedPrompts:
        """One prompt at a time: what it becomes then never depends on its company, not even by rounding.

        Adapters of text encoders have to act already.
        """
        key = (prompt, *text_key(uses))
        encoded = self._encoded.pop(key, None) or encode_captions(parts, [prompt])
        self._encoded[key] = encoded  # at the end: the first is the one that was not asked for longest
        if len(self._encoded) > self._room:
            del self._encoded[next(iter(self._encoded))]
        return encoded

    def texts(self, parts: Bundle, prompts: Sequence[str], uses: Sequence[AdapterUse]) -> EncodedTexts:
        """Prompts as one batch, where the denoiser is; ConfigError where known ones are not of this model."""
        denoiser = getattr(parts, parts.denoiser)
        encoded = [None if prompt in self._known else self.learn(parts, prompt, uses) for prompt in prompts]
        states = torch.stack(
            [self._known[prompt] if one is None else one.states[0] for prompt, one in zip(prompts, encoded, strict=True)]
        )
        expected = (parts.facts.num_text_tokens, denoiser.config[_WIDTHS[parts.denoiser]])
        if tuple(states.shape[1:]) != expected:
            raise ConfigError(
                f"Prompt states are {tuple(states.shape[1:])}, {parts.facts.name} takes {expected} (tokens, width): "
                "they were encoded for another model."
            )
        pooled = [one.pooled for one in encoded if one is not None and one.pooled is not None]
        place = (denoiser.device, denoiser.dtype)
        return EncodedTexts(states=states.to(*place), pooled=torch.cat(pooled).to(*place) if pooled else None)

    def notes(self, parts: Bundle, prompt: str, uses: Sequence[AdapterUse]) -> tuple[str, ...]:
        """What of the prompt the model does not read; nothing is said of prompts whose states were given."""
        return () if prompt in self._known else tuple(map(str, self.learn(parts, prompt, uses).long))


_WIDTHS = {"transformer": "text_embed_dim", "unet": "cross_attention_dim"}
"""Where a denoiser's config says how wide prompt states are."""
