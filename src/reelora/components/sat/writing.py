"""The settings of a SAT model, written from the configs of diffusers' classes: the inverse of `read_model`."""

from collections.abc import Iterator, Mapping
from typing import Any

from reelora.catalog import facts_for

from . import classes

__all__ = ["sat_settings", "transformer_obstacles", "vae_obstacles"]

_TABLE_SIDE = 300
"""Latents on each side of the rotary tables of CogVideoX 1.5, of which a clip takes a part."""

_TRANSFORMER_ONLY: Mapping[str, Any] = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_elementwise_affine": True,
    "timestep_activation_fn": "silu",
}
_VAE_ONLY: Mapping[str, Any] = {
    "act_fn": "silu",
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_SCHEDULER_ONLY: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "trained_betas": None,
}
"""Values that diffusers' classes may have otherwise and SAT's not."""


def transformer_obstacles(transformer: Mapping[str, Any], scheduler: Mapping[str, Any]) -> list[str]:
    """Why SAT cannot compute what this transformer and this schedule do; empty if it can."""
    return [*_other(transformer, _TRANSFORMER_ONLY), *_other(scheduler, _SCHEDULER_ONLY)]


def vae_obstacles(vae: Mapping[str, Any]) -> list[str]:
    """Why SAT cannot compute what this VAE does; empty if it can."""
    widths = vae["block_out_channels"]
    odd = [width for width in widths if width % widths[0]]
    uneven = [f"block_out_channels are {list(widths)}, no multiples of the first"] if odd else []
    return [*_other(vae, _VAE_ONLY), *uneven]


def _other(config: Mapping[str, Any], only: Mapping[str, Any]) -> list[str]:
    return [f"{name} is {config[name]}, in SAT {value}" for name, value in only.items() if config.get(name, value) != value]


def sat_settings(
    transformer: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    *,
    vae: Mapping[str, Any] | None,
    vae_path: str,
    text_folder: str,
    num_dead_positions: int,
) -> dict[str, Any]:
    """The sections ``model`` and ``args`` that `read_model` makes these configs of; empty paths leave a part out.

    Paths are relative to the file; the checkpoint lies beside it.
    """
    model = {
        "scale_factor": vae["scaling_factor"] if vae else 1.0,
        "disable_first_stage_autocast": True,
        "log_keys": ["txt"],
        "denoiser_config": _denoiser(scheduler),
        "network_config": _network(transformer, num_dead_positions),
        **({"conditioner_config": _conditioner(transformer, text_folder)} if text_folder else {}),
        "first_stage_config": _first_stage(vae, vae_path),
        "sampler_config": _sampler(scheduler),
    }
    return {"model": model, "args": _arguments(transformer)}


def _made(target: str, **params: Any) -> dict[str, Any]:
    return {"target": target, **({"params": params} if params else {})}


def _network(config: Mapping[str, Any], num_dead_positions: int) -> dict[str, Any]:
    heads, patch_t = config["num_attention_heads"], config["patch_size_t"]
    height, width = _table_sides(config)
    return _made(
        classes.NETWORK,
        time_embed_dim=config["time_embed_dim"],
        **({"ofs_embed_dim": config["ofs_embed_dim"]} if config["ofs_embed_dim"] else {}),
        elementwise_affine=True,
        num_frames=config["sample_frames"],
        time_compressed_rate=config["temporal_compression_ratio"],
        latent_width=width,
        latent_height=height,
        num_layers=config["num_layers"],
        patch_size=config["patch_size"] if patch_t is None else [patch_t, config["patch_size"], config["patch_size"]],
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        hidden_size=heads * config["attention_head_dim"],
        num_attention_heads=heads,
        transformer_args={
            "checkpoint_activations": True,
            "vocab_size": 1,
            "max_sequence_length": num_dead_positions,
            "layernorm_order": "pre",
            **({} if config["norm_eps"] == 1e-5 else {"layernorm_epsilon": config["norm_eps"]}),
            "skip_init": False,
            "model_parallel_size": 1,
            "is_decoder": False,
        },
        modules={
            "pos_embed_config": _positions(config),
            "patch_embed_config": _made(classes.PATCHES, text_hidden_size=config["text_embed_dim"]),
            "adaln_layer_config": _made(classes.ADALN, qk_ln=True),
            "final_layer_config": _made(classes.FINAL_LAYER),
        },
    )


def _table_sides(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the position tables, which for 1.5 are larger than a clip."""
    facts = facts_for({"_class_name": "CogVideoXTransformer3DModel", **config})
    if config["patch_size_t"] is not None and facts.hub_id:
        return _TABLE_SIDE, _TABLE_SIDE
    return config["sample_height"], config["sample_width"]


def _positions(config: Mapping[str, Any]) -> dict[str, Any]:
    length = config["max_text_seq_length"]
    if config["use_rotary_positional_embeddings"]:
        learned = {"learnable_pos_embed": True} if config["use_learned_positional_embeddings"] else {}
        return _made(classes.ROTARY, hidden_size_head=config["attention_head_dim"], text_length=length, **learned)
    scale = config["spatial_interpolation_scale"]
    return _made(
        classes.SINE_TABLE,
        text_length=length,
        height_interpolation=scale,
        width_interpolation=scale,
        time_interpolation=config["temporal_interpolation_scale"],
    )


def _discretization(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    return _made(
        classes.DISCRETIZATION,
        linear_start=scheduler["beta_start"],
        linear_end=scheduler["beta_end"],
        shift_scale=float(scheduler["snr_shift_scale"]),
    )


def _denoiser(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    return _made(
        classes.DENOISER,
        num_idx=1000,
        quantize_c_noise=False,
        weighting_config=_made(classes.WEIGHTING),
        scaling_config=_made(classes.SCALING),
        discretization_config=_discretization(scheduler),
    )


def _sampler(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    guider = _made(classes.DYNAMIC_GUIDER, scale=6, exp=5, num_steps=50)
    return _made(
        classes.DPM, num_steps=50, verbose=True, discretization_config=_discretization(scheduler), guider_config=guider
    )


def _conditioner(transformer: Mapping[str, Any], folder: str) -> dict[str, Any]:
    t5 = _made(classes.T5, model_dir=folder, max_length=transformer["max_text_seq_length"])
    return _made(classes.CONDITIONER, emb_models=[{"is_trainable": False, "input_key": "txt", "ucg_rate": 0.1, **t5}])


def _first_stage(vae: Mapping[str, Any] | None, path: str) -> dict[str, Any]:
    if not path:
        return _made(classes.IDENTITY_FIRST_STAGE)
    coders = dict(_coders(vae)) if vae and not vae_obstacles(vae) else {}
    return _made(classes.FIRST_STAGE, cp_size=1, ckpt_path=path, ignore_keys=["loss"], **coders)


def _coders(vae: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Encoder and decoder; nothing for a VAE that stays in diffusers' layout."""
    widths = vae["block_out_channels"]
    common = {
        "double_z": True,
        "z_channels": vae["latent_channels"],
        "resolution": 256,
        "in_channels": vae["in_channels"],
        "out_ch": vae["out_channels"],
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "attn_resolutions": [],
        "num_res_blocks": vae["layers_per_block"],
        "dropout": 0.0,
        "temporal_compress_times": int(vae["temporal_compression_ratio"]),
    }
    yield "regularizer_config", _made(classes.REGULARIZER)
    yield "encoder_config", _made(classes.ENCODER, **common, gather_norm=True)
    yield "decoder_config", _made(classes.DECODER, **common, gather_norm=False)


def _arguments(transformer: Mapping[str, Any]) -> dict[str, Any]:
    takes_image = transformer["in_channels"] == 2 * transformer["out_channels"]
    frames = (transformer["sample_frames"] - 1) // transformer["temporal_compression_ratio"] + 1
    group = transformer["patch_size_t"] or 1
    return {
        **({"image2video": True} if takes_image else {}),
        "latent_channels": transformer["out_channels"],
        "mode": "inference",
        "load": ".",
        "batch_size": 1,
        "sampling_num_frames": -(-frames // group) * group,
        "force_inference": True,
    }
