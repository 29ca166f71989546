"""Model folders and adapter files at real shapes with random weights, as they lie on a user's disk."""

import json
from functools import partial
from pathlib import Path

import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from torch import Tensor

from reelora import Adapter, LoraSpec, Pair, write_adapter
from reelora.tensorio import DeferredTensor, write_tensors

from .models import WIDTHS

__all__ = ["ALPHA", "RANK", "write_base", "write_random_adapter"]

RANK, ALPHA = 128, 64.0
_SLAB = 1 << 24
_STD = 0.02


def write_base(folder: Path, width: str, *, num_layers: int) -> None:
    """A model folder that holds a transformer of a published width, bfloat16, in one safetensors file."""
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel(num_layers=num_layers, **WIDTHS[width])
    model.save_config(folder / "transformer")
    slab = torch.randn(_SLAB, generator=torch.Generator().manual_seed(0)).mul_(_STD).bfloat16()
    tensors = {
        name: DeferredTensor(tuple(value.shape), torch.bfloat16, partial(_drawn, slab, tuple(value.shape), seed))
        for seed, (name, value) in enumerate(model.state_dict().items())
    }
    write_tensors(folder / "transformer" / "diffusion_pytorch_model.safetensors", tensors, metadata={"format": "pt"})
    index = {"_class_name": "CogVideoXPipeline", "transformer": ["diffusers", "CogVideoXTransformer3DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))


def write_random_adapter(path: Path, width: str, *, num_layers: int, seed: int, rank: int = RANK) -> None:
    """An adapter on the four projections of every attention, bfloat16, whose update is a hundredth of the weights or so."""
    draw = torch.Generator().manual_seed(seed)
    channels = 64 * WIDTHS[width]["num_attention_heads"]
    pairs = {}
    for layer in range(num_layers):
        for leaf in ("to_q", "to_k", "to_v", "to_out.0"):
            a = torch.randn(rank, channels, generator=draw).div_(channels**0.5).bfloat16()
            b = torch.randn(channels, rank, generator=draw).mul_(0.01).bfloat16()
            pairs[f"transformer.transformer_blocks.{layer}.attn1.{leaf}"] = Pair(a, b, ALPHA / RANK)
    spec = LoraSpec(rank=rank, alpha=rank * ALPHA / RANK)
    write_adapter(Adapter(pairs=pairs, spec=spec, layout="memory", scale_source="a benchmark"), path)


def _drawn(slab: Tensor, shape: tuple[int, ...], seed: int) -> Tensor:
    """Part of a slab of random numbers, another part for every tensor; the slab repeats where it is too short."""
    size = torch.Size(shape).numel()
    start = 7919 * seed % _SLAB
    return torch.cat([slab[start:], slab[:start]]).repeat(1 + size // _SLAB)[:size].view(shape)
