"""A tiny text-to-video pipeline with random weights, built of diffusers' and transformers' own classes."""

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from reelora.adapters import Adapter, LoraSpec, Pair

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
    "1.5": {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False, "sample_frames": 17},
    "I2V": {"use_rotary_positional_embeddings": True, "in_channels": 8},
}
"""Which published model places its tokens so."""

NAMES = [f"transformer.transformer_blocks.{i}.attn1.{leaf}" for i in range(2) for leaf in ("to_q", "to_v", "to_out.0")]
SPEC = LoraSpec(rank=4, alpha=2, target_modules=("to_q", "to_v", "to_out.0"))


def build_pipeline(kind: str = "5B") -> Any:
    torch.manual_seed(0)
    scheduler = CogVideoXDPMScheduler(
        snr_shift_scale=1.0, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    transformer: Any = CogVideoXTransformer3DModel.from_config(TRANSFORMER | KINDS[kind])
    return CogVideoXPipeline(_tokenizer(), _text_encoder(), _vae(), transformer, scheduler)  # pyright: ignore


def make_adapter(*, seed: int) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    pairs = {name: Pair(torch.randn(4, 32, generator=draw), torch.randn(32, 4, generator=draw), 0.5) for name in NAMES}
    return Adapter(pairs=pairs, spec=SPEC, layout="memory", scale_source="the test")


def _tokenizer() -> Any:
    words = [("▁", -3.0), *((f"▁{word}", -2.0) for word in ("a", "red", "star", "moves")), *((c, -4.0) for c in "abcdefgh")]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*special, *words], extra_ids=0, model_max_length=NUM_TEXT_TOKENS)


def _text_encoder() -> Any:
    sizes = {"vocab_size": 24, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return T5EncoderModel(T5Config.from_dict(sizes | {"feed_forward_proj": "gated-gelu"}))


def _vae() -> Any:
    sizes = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 4}
    vae: Any = AutoencoderKLCogVideoX.from_config(sizes | {"scaling_factor": 0.7})
    # A random VAE paints everything grey: give its output contrast, so that a wrong video cannot look right.
    vae.decoder.conv_out.conv.weight.data *= 4
    return vae
