"""CogVideoX's attention with branches: one product with A for query, key and value, on any attention backend.

The stock processor gives the same input to ``to_q``, ``to_k`` and ``to_v`` one after the other and calls torch's attention
itself, so that ``model.set_attention_backend`` does nothing. Import this only where a model is at hand: it needs diffusers.

Axes move by torch's own words here: einops keeps a table of the types that it has met, and whenever that grows, code that was
compiled with a look at it would be made anew.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from .remaking import NOTHING_REMADE, Remaking, share_memory
from .stacked import StackedLinear
from .together import project_together, why_not_together

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
        remaking: Remaking | None = None,
        attending: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> tuple[Tensor, Tensor]:
        """New video tokens ``(b, n, d)`` and text tokens ``(b, s, d)``.

        With ``remaking`` some of what autograd would keep is made again in the backward pass: always the mixed values in the
        order of tokens, a copy of the attention's result; also these inputs and the normed and turned queries and keys where it
        knows how to make the inputs. None of it takes a product of matrices. ``attending`` gives what the attention proper is
        to run in, and nothing else.
        """
        num_text = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        if attention_mask is not None:
            masks = attn.prepare_attention_mask(attention_mask, tokens.shape[1], len(tokens))
            attention_mask = masks.unflatten(0, (-1, attn.heads))
        remaking = remaking or NOTHING_REMADE
        is_placing_again = remaking.inputs is not None
        if remaking.inputs is not None:
            remaking.later(tokens, partial(_joined, remaking.inputs))
        with remaking.hooks():
            projected = _projections(attn, tokens)
        query, key, value = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in projected)
        placed = []
        for x, norm in ((query, attn.norm_q), (key, attn.norm_k)):
            place = partial(_placed, x, norm, num_text, image_rotary_emb)
            placed.append(place())
            if is_placing_again:
                remaking.later(placed[-1], place)
        query, key, value = (x.transpose(1, 2) for x in (*placed, value))
        with remaking.hooks(), attending():
            mixed = dispatch_attention_fn(query, key, value, attn_mask=attention_mask, backend=self._attention_backend)
        tokens = _in_one_row(mixed)
        if remaking is not NOTHING_REMADE and not share_memory(tokens, mixed):  # asking would break a compiled block in two
            remaking.later(tokens, partial(_in_one_row, mixed.detach()))
        dense, dropout = attn.to_out
        with remaking.hooks():
            tokens = dropout(dense(tokens))
        text, video = tokens.split([num_text, tokens.shape[1] - num_text], dim=1)
        return video, text


def _joined(inputs: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:
    video, text = inputs()
    return torch.cat([text, video], dim=1)


def _in_one_row(mixed: Tensor) -> Tensor:
    return mixed.flatten(2)


def _projections(attn: Any, x: Tensor) -> list[Tensor]:
    """Query, key and value; where all three have branches, these share one product with A."""
    modules = [attn.to_q, attn.to_k, attn.to_v]
    if not why_not_together(attn) and all(module.suits(x) for module in modules):
        return project_together(modules, x)
    are_open = all(isinstance(module, StackedLinear) and module.may_be_bypassed for module in modules)
    if not are_open or attn.to_q.shared_a is None:
        return [module(x) for module in modules]
    for module in modules:
        module.follow(x.device)
    ranks = [len(module.lora_a) for module in modules]
    hidden = attn.to_q.narrow(x, attn.to_q.shared_a).split(ranks, dim=-1)
    return [module.beside(x, part) for module, part in zip(modules, hidden, strict=True)]


def _placed(x: Tensor, norm: Any, num_text: int, rotary: Rotary | None) -> Tensor:
    """Queries or keys, normed, those of the video turned by their positions."""
    x = x if norm is None else norm(x)
    if rotary is None:
        return x
    turned: Any = apply_rotary_emb(x[:, :, num_text:], rotary)  # pyright: ignore[reportArgumentType]  (typed too narrowly)
    return torch.cat([x[:, :, :num_text], turned], dim=2)
