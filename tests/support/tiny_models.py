"""Tiny real models with random weights, in the published layout, built of diffusers' and transformers' own classes."""

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

NUM_TEXT_TOKENS = 8
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
    "max_text_seq_length": NUM_TEXT_TOKENS,
}
KINDS = {
    "2B": {"use_rotary_positional_embeddings": False},
    "5B": {"use_rotary_positional_embeddings": True},
    "5B-I2V": {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True, "in_channels": 8},
    "1.5-I2V": {
        "use_rotary_positional_embeddings": True,
        "patch_size_t": 2,
        "patch_bias": False,
        "sample_frames": 17,
        "in_channels": 8,
        "ofs_embed_dim": 8,
    },
    "1.5": {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False, "sample_frames": 17},
}
"""Which published model places its tokens so."""


def build_pipeline(
    kind: str = "5B", *, dtype: torch.dtype = torch.float32, scheduler: Any = CogVideoXDPMScheduler, **changes
) -> Any:
    """A whole model; ``changes`` are of the transformer's config."""
    torch.manual_seed(0)
    noise = scheduler(
        snr_shift_scale=3.0, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    parts = (build_tokenizer(), build_text_encoder(), build_vae(), build_transformer(kind, **changes), noise)
    return CogVideoXPipeline(*parts).to(dtype)


def build_tokenizer() -> Any:
    words = [("▁", -3.0), *((f"▁{word}", -2.0) for word in ("a", "red", "star", "moves")), *((c, -4.0) for c in "abcdefgh")]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*special, *words], extra_ids=0, model_max_length=NUM_TEXT_TOKENS)


def build_text_encoder() -> Any:
    sizes = {"vocab_size": 24, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config.from_dict(sizes | {"feed_forward_proj": "gated-gelu"}))


def build_transformer(kind: str = "5B", **changes) -> Any:
    """A transformer of two blocks; ``changes`` are of its config."""
    return CogVideoXTransformer3DModel.from_config(TRANSFORMER | KINDS[kind] | changes)


def build_vae() -> Any:
    sizes = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 4}
    vae: Any = AutoencoderKLCogVideoX.from_config(sizes | {"scaling_factor": 0.7, "sample_height": 96, "sample_width": 80})
    # A random VAE paints everything grey: give its output contrast, so that a wrong video cannot look right.
    vae.decoder.conv_out.conv.weight.data *= 4
    return vae


def build_unet() -> Any:
    """A UNet for still images with self- and cross-attention."""
    down, up = ["CrossAttnDownBlock2D", "DownBlock2D"], ["UpBlock2D", "CrossAttnUpBlock2D"]
    sizes = {"sample_size": 8, "block_out_channels": [16, 32], "cross_attention_dim": 16, "attention_head_dim": 4}
    return UNet2DConditionModel.from_config(_STILL | sizes | {"down_block_types": down, "up_block_types": up})


def build_still_vae() -> Any:
    down, up = ["DownEncoderBlock2D"] * 2, ["UpDecoderBlock2D"] * 2
    return AutoencoderKL.from_config(_STILL | {"latent_channels": 4, "down_block_types": down, "up_block_types": up})


def build_clip() -> Any:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig.from_dict(sizes | {"vocab_size": 16, "bos_token_id": 0, "eos_token_id": 1}))


_STILL = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 2}
