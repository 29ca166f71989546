"""The rows: one per published model, with the config values that tell it from all others.

Sources: the model cards and configs under each ``hub_id``; CogVideoX README, section "Model Introduction"; the
training configs in ``sat/configs`` of zai-org/CogVideo at 7a1af71 (scale factors, shifts, text lengths).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from .facts import ModelFacts

__all__ = ["FAMILIES", "MODELS", "SIGNATURES", "Family"]

_COGVIDEOX_10: Mapping[str, Any] = {
    "fps": 8,
    "frame_group": 8,
    "default_frames": 49,
    "max_frames": 49,
    "default_height": 480,
    "default_width": 720,
    "max_side": 720,
    "num_text_tokens": 226,
}
_COGVIDEOX_15: Mapping[str, Any] = {
    "fps": 16,
    "frame_group": 16,
    "default_frames": 81,
    "max_frames": 161,
    "default_height": 768,
    "default_width": 1360,
    "max_side": 1360,
    "num_text_tokens": 224,
    "scaling_factor": 0.7,
    "invert_scale_latents": True,
    "patch_size_t": 2,
}
_STILL: Mapping[str, Any] = {
    "model_class": "UNet2DConditionModel",
    "dtype": torch.float16,
    "fps": 1,
    "frame_group": 1,
    "default_frames": 1,
    "max_frames": 1,
    "num_text_tokens": 77,
    "in_channels": 4,
    "latent_channels": 4,
    "temporal_stride": 1,
    "patch_size": 1,
}

MODELS: tuple[ModelFacts, ...] = (
    ModelFacts(
        name="CogVideoX-2B",
        hub_id="zai-org/CogVideoX-2b",
        dtype=torch.float16,
        scheduler="CogVideoXDDIMScheduler",
        snr_shift_scale=3.0,
        scaling_factor=1.15258426,
        **_COGVIDEOX_10,
    ),
    ModelFacts(name="CogVideoX-5B", hub_id="zai-org/CogVideoX-5b", scaling_factor=0.7, **_COGVIDEOX_10),
    ModelFacts(
        name="CogVideoX-5B-I2V",
        hub_id="zai-org/CogVideoX-5b-I2V",
        scaling_factor=0.7,
        in_channels=32,
        text_to_video="zai-org/CogVideoX-5b",
        is_size_fixed=True,
        **_COGVIDEOX_10,
    ),
    ModelFacts(name="CogVideoX1.5-5B", hub_id="zai-org/CogVideoX1.5-5B", **_COGVIDEOX_15),
    ModelFacts(
        name="CogVideoX1.5-5B-I2V",
        hub_id="zai-org/CogVideoX1.5-5B-I2V",
        in_channels=32,
        text_to_video="zai-org/CogVideoX1.5-5B",
        **_COGVIDEOX_15,
    ),
    ModelFacts(
        name="SD 1.5",
        hub_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
        default_height=512,
        default_width=512,
        max_side=1024,
        default_guidance=7.5,
        scheduler="PNDMScheduler",
        scaling_factor=0.18215,
        **_STILL,
    ),
    ModelFacts(
        name="SDXL",
        hub_id="stabilityai/stable-diffusion-xl-base-1.0",
        default_height=1024,
        default_width=1024,
        max_side=2048,
        default_guidance=5.0,
        scheduler="EulerDiscreteScheduler",
        scaling_factor=0.13025,
        **_STILL,
    ),
    ModelFacts(
        name="pocket",
        hub_id="",
        fps=8,
        frame_group=8,
        default_frames=17,
        max_frames=17,
        default_height=64,
        default_width=64,
        max_side=64,
        default_steps=20,
        default_guidance=4.0,
        num_text_tokens=24,
        scaling_factor=1.0,
    ),
)

_COGVIDEOX_5B: Mapping[str, Any] = {"num_layers": 42, "num_attention_heads": 48, "text_embed_dim": 4096}

SIGNATURES: Mapping[str, Mapping[str, Any]] = {
    "CogVideoX-2B": {
        "num_layers": 30,
        "num_attention_heads": 30,
        "in_channels": 16,
        "patch_size_t": None,
        "text_embed_dim": 4096,
    },
    "CogVideoX-5B": _COGVIDEOX_5B | {"in_channels": 16, "patch_size_t": None},
    "CogVideoX-5B-I2V": _COGVIDEOX_5B | {"in_channels": 32, "patch_size_t": None},
    "CogVideoX1.5-5B": _COGVIDEOX_5B | {"in_channels": 16, "patch_size_t": 2},
    "CogVideoX1.5-5B-I2V": _COGVIDEOX_5B | {"in_channels": 32, "patch_size_t": 2},
    "SD 1.5": {"cross_attention_dim": 768, "block_out_channels": (320, 640, 1280, 1280), "in_channels": 4},
    "SDXL": {"cross_attention_dim": 2048, "block_out_channels": (320, 640, 1280), "in_channels": 4},
    "pocket": {
        "num_layers": 6,
        "num_attention_heads": 6,
        "attention_head_dim": 32,
        "in_channels": 16,
        "patch_size_t": None,
        "text_embed_dim": 64,
        "max_text_seq_length": 24,
        "sample_frames": 17,
        "sample_height": 8,
        "sample_width": 8,
    },
}
"""The config values that all must hold for a model to be that row."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models of one class: how their config is to be read where a value is not written, and what tells the class."""

    marker: str
    """A config name that no other family has."""

    defaults: Mapping[str, Any]
    """The values that the class takes where a config leaves them out, as old configs do."""


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "CogVideoXTransformer3DModel": Family(
            marker="max_text_seq_length",
            defaults={
                "num_layers": 30,
                "num_attention_heads": 30,
                "attention_head_dim": 64,
                "in_channels": 16,
                "out_channels": 16,
                "patch_size": 2,
                "patch_size_t": None,
                "text_embed_dim": 4096,
                "max_text_seq_length": 226,
                "sample_frames": 49,
                "sample_height": 60,
                "sample_width": 90,
                "temporal_compression_ratio": 4,
                "use_learned_positional_embeddings": False,
            },
        ),
        "UNet2DConditionModel": Family(
            marker="cross_attention_dim",
            defaults={
                "sample_size": None,
                "in_channels": 4,
                "cross_attention_dim": 1280,
                "block_out_channels": (320, 640, 1280, 1280),
            },
        ),
    }
)
