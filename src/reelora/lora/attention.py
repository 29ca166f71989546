"""CogVideoX's attention with stacked branches: one product with A for query, key and value, on any attention backend.

The stock processor gives the same input to ``to_q``, ``to_k`` and ``to_v`` one after the other and calls torch's attention
itself, so that ``model.set_attention_backend`` does nothing. Import this only where a model is at hand: it needs diffusers.
"""

from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from einops import rearrange
from torch import Tensor

from .stacked import StackedLinear

__all__ = ["StackedAttention"]

Rotary = tuple[Tensor, Tensor]


class StackedAttention:
    """Takes the place of ``CogVideoXAttnProcessor2_0``, and computes the same.

    Text and video tokens attend to each other as one sequence; rotary positions turn the video's alone. ``_attention_backend``
    is what diffusers' ``set_attention_backend`` sets.
    """

    _attention_backend: AttentionBackendName | None = None
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[Tensor, Tensor]:
        """New video tokens ``(b, n, d)`` and text tokens ``(b, s, d)``."""
        num_text = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, tokens.shape[1], len(tokens))
            attention_mask = rearrange(attention_mask, "(b h) n m -> b h n m", h=attn.heads)
        query, key, value = (rearrange(x, "b n (h d) -> b h n d", h=attn.heads) for x in _projections(attn, tokens))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = (_turned(x, num_text, image_rotary_emb) for x in (query, key))
        query, key, value = (rearrange(x, "b h n d -> b n h d") for x in (query, key, value))
        mixed = dispatch_attention_fn(query, key, value, attn_mask=attention_mask, backend=self._attention_backend)
        dense, dropout = attn.to_out
        tokens = dropout(dense(rearrange(mixed, "b n h d -> b n (h d)")))
        text, video = tokens.split([num_text, tokens.shape[1] - num_text], dim=1)
        return video, text


def _projections(attn: Any, x: Tensor) -> list[Tensor]:
    """Query, key and value; where all three have branches, these share one product with A."""
    modules = [attn.to_q, attn.to_k, attn.to_v]
    are_open = all(isinstance(module, StackedLinear) and module.may_be_bypassed for module in modules)
    if not are_open or attn.to_q.shared_a is None:
        return [module(x) for module in modules]
    for module in modules:
        module.follow(x.device)
    ranks = [len(module.lora_a) for module in modules]
    hidden = attn.to_q.narrow(x, attn.to_q.shared_a).split(ranks, dim=-1)
    return [module.beside(x, part) for module, part in zip(modules, hidden, strict=True)]


def _turned(x: Tensor, num_text: int, rotary: Rotary) -> Tensor:
    turned: Any = apply_rotary_emb(x[:, :, num_text:], rotary)  # pyright: ignore[reportArgumentType]  (typed too narrowly)
    return torch.cat([x[:, :, :num_text], turned], dim=2)
