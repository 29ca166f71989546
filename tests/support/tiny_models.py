"""Tiny real models in the published layout, saved by diffusers and transformers themselves."""

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "time_embed_dim": 8,
    "text_embed_dim": 16,
    "sample_width": 4,
    "sample_height": 4,
    "sample_frames": 9,
    "max_text_seq_length": 8,
}
KINDS = {
    "rotary": {"use_rotary_positional_embeddings": True},
    "sincos": {"use_rotary_positional_embeddings": False},
    "learned": {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True},
    "pairs": {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False},
}
"""As the 5B, the 2B, the 5B-I2V and the 1.5 place their tokens."""


def build_tokenizer() -> Any:
    words = [("▁", -3.0), *((f"▁{word}", -2.0) for word in ("a", "red", "star", "moves")), *((c, -4.0) for c in "abcdefgh")]
    return T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *words], extra_ids=0, model_max_length=8)


def build_text_encoder() -> Any:
    sizes = {"vocab_size": 24, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config.from_dict(sizes | {"feed_forward_proj": "gated-gelu"}))


def build_transformer(kind) -> Any:
    return CogVideoXTransformer3DModel.from_config(TRANSFORMER | KINDS[kind])


def build_vae() -> Any:
    sizes = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 4}
    return AutoencoderKLCogVideoX.from_config(sizes | {"scaling_factor": 0.7})


def build_pipeline(kind="rotary") -> Any:
    torch.manual_seed(0)
    scheduler = CogVideoXDDIMScheduler(
        snr_shift_scale=3.0, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    return CogVideoXPipeline(build_tokenizer(), build_text_encoder(), build_vae(), build_transformer(kind), scheduler).to(
        torch.bfloat16
    )


def build_unet() -> Any:
    down, up = ["DownBlock2D", "CrossAttnDownBlock2D"], ["CrossAttnUpBlock2D", "UpBlock2D"]
    sizes = {"sample_size": 8, "cross_attention_dim": 8, "attention_head_dim": 2}
    return UNet2DConditionModel.from_config(_STILL | sizes | {"down_block_types": down, "up_block_types": up})


def build_still_vae() -> Any:
    down, up = ["DownEncoderBlock2D"] * 2, ["UpDecoderBlock2D"] * 2
    return AutoencoderKL.from_config(_STILL | {"latent_channels": 4, "down_block_types": down, "up_block_types": up})


def build_clip() -> Any:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig.from_dict(sizes | {"vocab_size": 16, "bos_token_id": 0, "eos_token_id": 1}))


_STILL = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 2}
