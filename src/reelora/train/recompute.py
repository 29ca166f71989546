"""What blocks keep of their forward pass for the backward pass, and what this computes again.

Every way gives the same numbers bit for bit; they differ in memory and in work. A block that nobody knows keeps everything or
its inputs; a block of CogVideoX has two ways in between. Its last step, the gated sum, always lies outside of what is computed
again: inside, it would make the backward pass compute the second product of the feed-forward layers for nothing.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from reelora.lora import Remaking, is_hooked

__all__ = [
    "Kept",
    "Recomputing",
    "Way",
    "Ways",
    "before_feed_forward",
    "before_sum",
    "checkpointed",
    "summed",
    "ways_of",
]

Kept = Literal["everything", "products", "attention", "inputs"]
"""everything: nothing is computed again. products: results of matrix products and attention; norms, modulations and rotary
positions are computed again. attention: inputs and results of attention. inputs: these alone."""

Way = Callable[..., Any]
"""A block and what it is called with, to its result."""
Ways = Mapping[Kept, Way]

Streams = tuple[Tensor, Tensor]
"""Video tokens ``(b n d)`` and text tokens ``(b s d)``."""


def ways_of(block: nn.Module) -> Ways:
    """The ways in which a block can run, from the most memory to the least."""
    if type(block).__name__ != "CogVideoXBlock" or is_hooked(block):
        return _ANY_BLOCK
    is_remaking = type(block.get_submodule("attn1").processor).__name__ == "StackedAttention"
    return _COGVIDEOX_BLOCK if is_remaking else _COGVIDEOX_BLOCK_WITHOUT_BRANCHES


class Recomputing:
    """Runs each block in the way chosen for it, or for all others; diffusers calls this a gradient checkpointing function.

    ``ways`` tells the ways of a block: those of `ways_of`, or others that keep the same.
    """

    def __init__(
        self,
        chosen: Mapping[nn.Module, Kept],
        *,
        otherwise: Kept = "everything",
        ways: Callable[[nn.Module], Ways] = ways_of,
    ) -> None:
        self._chosen = chosen
        self._otherwise: Kept = otherwise
        self._ways = ways

    def __call__(self, block: nn.Module, *inputs: Any) -> Any:
        return self._ways(block)[self._chosen.get(block, self._otherwise)](block, *inputs)


def _called(block: nn.Module, *inputs: Any) -> Any:
    return block(*inputs)


def _again(block: nn.Module, *inputs: Any) -> Any:
    return checkpointed(block.__call__, *inputs)


def checkpointed(run: Callable[..., Any], *inputs: Any, is_attention_kept: bool = False) -> Any:
    """``run(*inputs)``, which keeps its inputs alone, or the results of attention too, and is computed again."""
    contexts: dict[str, Any] = {"context_fn": partial(create_selective_checkpoint_contexts, _keep_attention)}
    return checkpoint(run, *inputs, **_options(), **(contexts if is_attention_kept else {}))


def _all_kept(block: nn.Module, *inputs: Any) -> Streams:
    return summed(*before_sum(block, {"remaking": Remaking()}, *inputs))


def _products_kept(block: Any, *inputs: Any) -> Streams:
    remaking = Remaking(inputs=partial(_normed, block.norm1, *inputs[:3]))
    return summed(*before_sum(block, {"remaking": remaking}, *inputs))


def _attention_kept(block: nn.Module, *inputs: Any) -> Streams:
    # One context for each of the two times that it runs. Around the whole block they would cost what they save on small models.
    contexts = iter(create_selective_checkpoint_contexts(_keep_attention))
    return summed(*checkpoint(before_sum, block, {"attending": partial(next, contexts)}, *inputs, **_options()))


def _attention_kept_by_any(block: nn.Module, *inputs: Any) -> Streams:
    return summed(*checkpointed(before_sum, block, {}, *inputs, is_attention_kept=True))


def _inputs_kept(block: nn.Module, *inputs: Any) -> Streams:
    return summed(*checkpointed(before_sum, block, {}, *inputs))


def _options() -> dict[str, Any]:
    """Random numbers are drawn again as they were; a rehearsal draws none, and must not touch the generators of devices."""
    return {"use_reentrant": False, "preserve_rng_state": detect_fake_mode() is None}


_ANY_BLOCK: Ways = {"everything": _called, "inputs": _again}
_COGVIDEOX_BLOCK_WITHOUT_BRANCHES: Ways = {
    "everything": _called,
    "attention": _attention_kept_by_any,
    "inputs": _inputs_kept,
}
_COGVIDEOX_BLOCK: Ways = {
    "everything": _all_kept,
    "products": _products_kept,
    "attention": _attention_kept,
    "inputs": _inputs_kept,
}
"""The second of these where query, key and value of the block have no branches."""

_ATTENTIONS = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable.default,
)
"""torch's attentions that are one operation, on every device."""


def _keep_attention(context: object, operation: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _ATTENTIONS else CheckpointPolicy.PREFER_RECOMPUTE


def before_sum(block: Any, told: Mapping[str, Any], *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """diffusers' CogVideoXBlock up to its last sum: both streams, what is added to them, text first, and the gates of that.

    Its attention is ``told`` what only our processor understands.
    """
    video, text, shown, gate, text_gate = before_feed_forward(block, told, *inputs)
    return video, text, block.ff(shown), gate, text_gate


def before_feed_forward(
    block: Any,
    told: Mapping[str, Any],
    video: Tensor,
    text: Tensor,
    time: Tensor,
    rotary: Streams | None = None,
    attention_options: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same up to its feed-forward layers: in the middle what these are given."""
    options = {**(attention_options or {}), **told}
    shown, heard, gate, text_gate = block.norm1(video, text, time)
    seen, read = block.attn1(hidden_states=shown, encoder_hidden_states=heard, image_rotary_emb=rotary, **options)
    video, text = video + gate * seen, text + text_gate * read
    shown, heard, gate, text_gate = block.norm2(video, text, time)
    return video, text, torch.cat([heard, shown], dim=1), gate, text_gate


def summed(video: Tensor, text: Tensor, added: Tensor, gate: Tensor, text_gate: Tensor) -> Streams:
    """The last sum, of what `before_sum` gives."""
    num_text = text.shape[1]
    return video + gate * added[:, num_text:], text + text_gate * added[:, :num_text]


def _normed(norm: nn.Module, video: Tensor, text: Tensor, time: Tensor) -> Streams:
    shown, heard, _, _ = norm(video, text, time)
    return shown, heard
