"""Prompts as the transformer takes them, encoded once and one at a time."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from reelora.components import Bundle, EncodedPrompts, encode_prompts
from reelora.errors import ConfigError
from reelora.shapes import PromptStates

__all__ = ["PromptBook", "TokenStates"]

TokenStates = Float[Tensor, "s d"]
"""Prompt states of one prompt."""

_REMEMBERED = 32


class PromptBook:
    """Prompt states by prompt: those that are known from the start, and those that the text encoder makes when asked.

    It keeps no model, so that whoever keeps both is no part of a cycle and is freed at once.
    """

    def __init__(self, known: Mapping[str, TokenStates]) -> None:
        self._known = dict(known)
        self._encoded: dict[str, EncodedPrompts] = {}

    def states(self, parts: Bundle, prompts: Sequence[str]) -> PromptStates:
        """Prompt states in the transformer's precision and place; ConfigError where known ones are not of this model."""
        states = torch.stack(
            [self._known[text] if text in self._known else self._encode(parts, text).states[0] for text in prompts]
        )
        expected = (parts.facts.num_text_tokens, parts.transformer.config.text_embed_dim)
        if tuple(states.shape[1:]) != expected:
            raise ConfigError(
                f"Prompt states are {tuple(states.shape[1:])}, {parts.facts.name} takes {expected} (tokens, width): "
                "they were encoded for another model."
            )
        return states.to(parts.transformer.device, parts.transformer.dtype)

    def notes(self, parts: Bundle, prompt: str) -> tuple[str, ...]:
        """What of the prompt the model does not read; nothing is said of prompts whose states were given."""
        return () if prompt in self._known else tuple(map(str, self._encode(parts, prompt).long))

    def _encode(self, parts: Bundle, text: str) -> EncodedPrompts:
        """One prompt at a time: what it becomes then never depends on its company, not even by rounding."""
        encoded = self._encoded.pop(text, None) or encode_prompts(parts, [text])
        self._encoded[text] = encoded  # at the end: the first is the one that was not asked for longest
        if len(self._encoded) > _REMEMBERED:
            del self._encoded[next(iter(self._encoded))]
        return encoded
