"""Transformers at real widths with few blocks."""

from typing import Any

import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from torch import nn

__all__ = ["WIDTHS", "build_transformer"]

WIDTHS: dict[str, dict[str, Any]] = {
    "2B": {"num_attention_heads": 30},
    "5B": {"num_attention_heads": 48, "use_rotary_positional_embeddings": True},
}


def build_transformer(width: str, *, num_layers: int, dtype: torch.dtype = torch.bfloat16) -> CogVideoXTransformer3DModel:
    """A transformer of CogVideoX-2B's or 5B's width with random weights."""
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel(num_layers=num_layers, **WIDTHS[width])
    nn.Module.to(model, dtype).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02)
    return model.requires_grad_(False).eval()
