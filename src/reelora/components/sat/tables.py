"""What SAT computes otherwise than diffusers: an epsilon, and tables that it stores."""

from typing import Any

import torch
from torch import Tensor, nn

from reelora.components.positions import rotary_positions
from reelora.components.skeleton import computed_buffers, position_table
from reelora.tensorio import DeferredTensor

__all__ = ["FINAL_NORM_EPS", "TABLE", "rebuilt_tables"]

FINAL_NORM_EPS = 1e-6
"""Of SAT's norm before the last projection; diffusers has 1e-5, which is the whole of the 2e-5 between the two in float32.

Source: CogVideo, sat/dit_video_concat.py, FinalLayerMixin."""

TABLE = "patch_embed.pos_embedding"
"""Our name of the position table: a parameter of 5B-I2V, computed by diffusers for 2B."""
_THEIRS = "mixins.pos_embed"


def rebuilt_tables(network: nn.Module, dtype: torch.dtype, *, num_dead_positions: int) -> dict[str, DeferredTensor]:
    """What SAT stores of a transformer besides its weights, under SAT's names, computed as diffusers does.

    That is the position table of 2B, the rotary tables of 1.0, and a table of zeros that nothing reads.
    """
    config: Any = network.config
    if TABLE in computed_buffers(network):
        embed: Any = network.get_submodule("patch_embed")
        shape = tuple(embed.pos_embedding.shape)
        return {f"{_THEIRS}.pos_embedding": DeferredTensor(shape, dtype, lambda: position_table(embed, dtype))}
    dead = (num_dead_positions, config.num_attention_heads * config.attention_head_dim)
    tables = {"transformer.position_embeddings.weight": DeferredTensor(dead, dtype, lambda: torch.zeros(dead, dtype=dtype))}
    return tables if config.patch_size_t is not None else tables | _frequencies(config, dtype)


def _frequencies(config: Any, dtype: torch.dtype) -> dict[str, DeferredTensor]:
    frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
    num_tokens = frames * (config.sample_height // config.patch_size) * (config.sample_width // config.patch_size)

    def compute(side: int) -> Tensor:
        height, width = config.sample_height, config.sample_width
        sizes = {"num_latent_frames": frames, "height": height, "width": width}
        return rotary_positions(config, **sizes, device=torch.device("cpu"))[side].to(dtype)

    shape = (num_tokens, config.attention_head_dim)
    return {
        f"{_THEIRS}.freqs_cos": DeferredTensor(shape, dtype, lambda: compute(0)),
        f"{_THEIRS}.freqs_sin": DeferredTensor(shape, dtype, lambda: compute(1)),
    }
