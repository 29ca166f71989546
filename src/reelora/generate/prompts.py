"""Prompts as the transformer takes them, encoded once and one at a time."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from reelora.components import Bundle, encode_prompts
from reelora.errors import ConfigError
from reelora.shapes import PromptStates

__all__ = ["PromptBook", "TokenStates"]

TokenStates = Float[Tensor, "s d"]
"""Prompt states of one prompt."""

_REMEMBERED = 32


class PromptBook:
    """Prompt states by prompt: those that are known from the start, and those that the text encoder makes when asked."""

    def __init__(self, parts: Callable[[], Bundle], known: Mapping[str, TokenStates]) -> None:
        self._parts = parts
        self._known = dict(known)
        self._encode = lru_cache(maxsize=_REMEMBERED)(self._encode_now)

    def states(self, prompts: Sequence[str]) -> PromptStates:
        """Prompt states in the transformer's precision and place; ConfigError where known ones are not of this model."""
        states = torch.stack([self._known[text] if text in self._known else self._encode(text)[0] for text in prompts])
        parts = self._parts()
        expected = (parts.facts.num_text_tokens, parts.transformer.config.text_embed_dim)
        if tuple(states.shape[1:]) != expected:
            raise ConfigError(
                f"Prompt states are {tuple(states.shape[1:])}, {parts.facts.name} takes {expected} (tokens, width): "
                "they were encoded for another model."
            )
        return states.to(parts.transformer.device, parts.transformer.dtype)

    def notes(self, prompt: str) -> tuple[str, ...]:
        """What of the prompt the model does not read; nothing is said of prompts whose states were given."""
        return () if prompt in self._known else self._encode(prompt)[1]

    def _encode_now(self, text: str) -> tuple[TokenStates, tuple[str, ...]]:
        """One prompt at a time: what it becomes then never depends on its company, not even by rounding."""
        encoded = encode_prompts(self._parts(), [text])
        return encoded.states[0], tuple(map(str, encoded.long))
