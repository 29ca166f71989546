"""Model folders and adapter files at real shapes with random weights, as they lie on a user's disk."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from reelora import Adapter, LoraSpec, Pair, write_adapter
from reelora.pocket import MODEL
from reelora.tensorio import DeferredTensor, write_tensors

from .models import WIDTHS

__all__ = ["ALPHA", "RANK", "write_attention_adapter", "write_base", "write_model", "write_random_adapter"]

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


def write_model(folder: Path, width: str, *, num_layers: int) -> None:
    """A whole model in bfloat16: as `write_base`, with one layer of T5-XXL's width, a VAE of few channels, DDIM.

    Its tokenizer is the pocket model's.
    """
    write_base(folder, width, num_layers=num_layers)
    torch.manual_seed(0)
    few = {"block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4, "layers_per_block": 1}
    vae: Any = AutoencoderKLCogVideoX.from_config(few)
    shape = T5Config(
        d_model=4096, d_kv=64, d_ff=10240, num_heads=64, num_layers=1, vocab_size=236, feed_forward_proj="gated-gelu"
    )
    networks: dict[str, Any] = {"vae": vae, "text_encoder": T5EncoderModel(shape)}
    for role, network in networks.items():
        network.to(torch.bfloat16).save_pretrained(folder / role)
    noise = CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0)
    noise.save_pretrained(folder / "scheduler")
    shutil.copytree(MODEL / "tokenizer", folder / "tokenizer")
    classes = {
        "tokenizer": ["transformers", "T5Tokenizer"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
        "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
    }
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **classes}))


def write_random_adapter(path: Path, width: str, *, num_layers: int, seed: int, rank: int = RANK) -> None:
    """An adapter of a published width."""
    channels = 64 * WIDTHS[width]["num_attention_heads"]
    write_attention_adapter(path, channels=channels, num_layers=num_layers, seed=seed, rank=rank)


def write_attention_adapter(path: Path, *, channels: int, num_layers: int, seed: int, rank: int) -> None:
    """An adapter on the four projections of every attention, bfloat16, whose update is a hundredth of the weights or so."""
    draw = torch.Generator().manual_seed(seed)
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
