"""The configs of the networks that published models are made of, for whom no file is at hand: what tells their size.

Sources: the ``config.json`` of each part under the row's hub id. Values that are the default of the class are left out.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .models import SIGNATURES

__all__ = ["NETWORKS", "Network"]

Network = tuple[str, Mapping[str, Any]]
"""Class and config."""

_T5_XXL: Network = (
    "T5EncoderModel",
    {
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "vocab_size": 32128,
        "feed_forward_proj": "gated-gelu",
    },
)
_VIDEO_VAE: Network = (
    "AutoencoderKLCogVideoX",
    {
        "block_out_channels": [128, 256, 256, 512],
        "layers_per_block": 3,
        "latent_channels": 16,
        "sample_height": 480,
        "sample_width": 720,
        "down_block_types": ["CogVideoXDownBlock3D"] * 4,
        "up_block_types": ["CogVideoXUpBlock3D"] * 4,
    },
)
_STILL_VAE: Network = (
    "AutoencoderKL",
    {
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
)
_CLIP: Mapping[str, Any] = {"vocab_size": 49408, "hidden_act": "quick_gelu"}
_CLIP_L: Network = (
    "CLIPTextModel",
    _CLIP | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
)
_CLIP_G: Network = (
    "CLIPTextModelWithProjection",
    _CLIP
    | {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "hidden_act": "gelu",
    },
)
_GRID_15: Mapping[str, Any] = {
    "sample_height": 96,
    "sample_width": 170,
    "sample_frames": 81,
    "max_text_seq_length": 224,
    "patch_bias": False,
}
_ROTARY: Mapping[str, Any] = {"use_rotary_positional_embeddings": True}


def _video(name: str, **config: Any) -> Mapping[str, Network]:
    network = ("CogVideoXTransformer3DModel", {**SIGNATURES[name], **config})
    return {"text_encoder": _T5_XXL, "transformer": network, "vae": _VIDEO_VAE}


NETWORKS: Mapping[str, Mapping[str, Network]] = MappingProxyType(
    {
        "CogVideoX-2B": _video("CogVideoX-2B"),
        "CogVideoX-5B": _video("CogVideoX-5B", **_ROTARY),
        "CogVideoX-5B-I2V": _video("CogVideoX-5B-I2V", **_ROTARY, use_learned_positional_embeddings=True),
        "CogVideoX1.5-5B": _video("CogVideoX1.5-5B", **_ROTARY, **_GRID_15),
        "CogVideoX1.5-5B-I2V": _video("CogVideoX1.5-5B-I2V", **_ROTARY, **_GRID_15, ofs_embed_dim=512),
        "SD 1.5": {
            "text_encoder": _CLIP_L,
            "unet": ("UNet2DConditionModel", {**SIGNATURES["SD 1.5"], "sample_size": 64, "attention_head_dim": 8}),
            "vae": _STILL_VAE,
        },
        "SDXL": {
            "text_encoder": _CLIP_L,
            "text_encoder_2": _CLIP_G,
            "unet": (
                "UNet2DConditionModel",
                {
                    **SIGNATURES["SDXL"],
                    "sample_size": 128,
                    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                    "transformer_layers_per_block": [1, 2, 10],
                    "attention_head_dim": [5, 10, 20],
                    "use_linear_projection": True,
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 256,
                    "projection_class_embeddings_input_dim": 2816,
                },
            ),
            "vae": _STILL_VAE,
        },
    }
)
"""By the name of the row, then by role; only rows that are published."""
