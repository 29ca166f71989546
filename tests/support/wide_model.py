"""A model of CogVideoX-2B's width with few blocks, the published VAE, and a small text encoder; random weights."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from tiny_models import build_tokenizer
from torch import nn
from transformers import T5Config, T5EncoderModel

from reelora.catalog import NETWORKS

__all__ = ["save_wide_model"]

_TEXT = {"vocab_size": 24, "d_model": 4096, "d_kv": 64, "d_ff": 1024, "num_layers": 2, "num_heads": 8}


def save_wide_model(folder: Path, *, num_layers: int) -> Path:
    """Write about a gigabyte in bfloat16."""
    text: Any = T5EncoderModel(T5Config.from_dict(_TEXT | {"feed_forward_proj": "gated-gelu"}))
    with torch.device("meta"):
        grid: dict[str, Any] = {"sample_frames": 9, "sample_height": 12, "sample_width": 16, "max_text_seq_length": 226}
        transformer = CogVideoXTransformer3DModel(num_layers=num_layers, use_rotary_positional_embeddings=True, **grid)
        vae = AutoencoderKLCogVideoX.from_config(dict(NETWORKS["CogVideoX-2B"]["vae"][1]))
    noise = CogVideoXDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    parts = (build_tokenizer(), text.to(torch.bfloat16), _filled(vae), _filled(transformer), noise)
    CogVideoXPipeline(*parts).save_pretrained(folder)
    return folder


def _filled(network: Any) -> Any:
    nn.Module.to(network, torch.bfloat16).to_empty(device="cpu")
    draw = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.02, generator=draw)
    return network
