"""Which row a model is, told from its config; or facts read from the config where it is none of them."""

from collections.abc import Mapping
from dataclasses import replace
from math import gcd
from typing import Any

from reelora.errors import ConfigError, nearest

from .facts import ModelFacts
from .models import FAMILIES, MODELS, SIGNATURES, Family

__all__ = ["facts_for"]

_DEFAULT_SCALING_FACTOR = 1.15258426
"""What AutoencoderKLCogVideoX takes where its config says nothing."""


def facts_for(config: Mapping[str, Any], vae_config: Mapping[str, Any] | None = None) -> ModelFacts:
    """Facts of the model that a transformer's or unet's config describes.

    A published model is recognised by its depth, heads, channels and patch sizes. For any other model of these classes
    the facts are read from the config itself. What the VAE's config says of its latents goes before the row.

    Raises ConfigError where the config is of no class in the catalog.
    """
    model_class = _class_of(config)
    full = {**FAMILIES[model_class].defaults, **config}
    rows = (row for row in MODELS if row.model_class == model_class and _has(full, SIGNATURES[row.name]))
    facts = next(rows, None) or _DERIVE[model_class](full)
    return replace(facts, **_vae_facts(vae_config, facts)) if vae_config else facts


def _class_of(config: Mapping[str, Any]) -> str:
    """The class that the config names, or else the one whose marker it holds (a live model's config names none)."""
    if name := config.get("_class_name"):
        if name in FAMILIES:
            return name
        raise ConfigError(f"The config is of class {name!r}, which is not in the catalog: {nearest(str(name), FAMILIES)}.")
    for model_class, family in FAMILIES.items():
        if family.marker in config:
            return model_class
    raise ConfigError(
        f"The config names no _class_name and has none of {_markers(FAMILIES)}; pass the config of a transformer or unet."
    )


def _markers(families: Mapping[str, Family]) -> str:
    return ", ".join(family.marker for family in families.values())


def _has(config: Mapping[str, Any], signature: Mapping[str, Any]) -> bool:
    return all(_plain(config.get(key)) == value for key, value in signature.items())


def _plain(value: Any) -> Any:
    """JSON has lists where Python's defaults have tuples."""
    return tuple(value) if isinstance(value, list) else value


def _vae_facts(vae_config: Mapping[str, Any], facts: ModelFacts) -> dict[str, Any]:
    channels = vae_config.get("block_out_channels", ())
    return {
        "scaling_factor": vae_config.get("scaling_factor") or facts.scaling_factor,
        "latent_channels": vae_config.get("latent_channels") or facts.latent_channels,
        "invert_scale_latents": vae_config.get("invert_scale_latents", facts.invert_scale_latents),
        "temporal_stride": int(vae_config.get("temporal_compression_ratio") or facts.temporal_stride),
        "spatial_stride": 2 ** (len(channels) - 1) if channels else facts.spatial_stride,
    }


def _cogvideox_facts(config: Mapping[str, Any]) -> ModelFacts:
    """Facts of a CogVideoX of unknown size: its own frames and size are what it can do."""
    stride = config["temporal_compression_ratio"]
    groups_in_time = config["patch_size_t"] is not None
    default_frames = (config["sample_frames"] - 1) // stride * stride + 1
    height, width = config["sample_height"] * 8, config["sample_width"] * 8
    return ModelFacts(
        name=f"a CogVideoX of {config['num_layers']} blocks and {config['num_attention_heads']} heads",
        hub_id="",
        fps=16 if groups_in_time else 8,
        # A model of, say, 5 frames must obey a finer rule than 8n + 1: the coarsest that its own frames obey.
        frame_group=gcd(default_frames - 1, 16 if groups_in_time else 8),
        default_frames=default_frames,
        max_frames=2 * default_frames - 1 if groups_in_time else default_frames,
        default_height=height,
        default_width=width,
        max_side=max(height, width),
        is_size_fixed=config["use_learned_positional_embeddings"],
        num_text_tokens=config["max_text_seq_length"],
        scaling_factor=_DEFAULT_SCALING_FACTOR,
        in_channels=config["in_channels"],
        latent_channels=config["out_channels"],
        temporal_stride=stride,
        patch_size=config["patch_size"],
        patch_size_t=config["patch_size_t"],
    )


def _unet_facts(config: Mapping[str, Any]) -> ModelFacts:
    """Facts of a UNet for still images of unknown size, otherwise as SD 1.5."""
    side = (config["sample_size"] or 64) * 8
    like = next(row for row in MODELS if row.model_class == "UNet2DConditionModel")
    name = f"a UNet of width {config['block_out_channels'][0]}"
    sizes = {"default_height": side, "default_width": side, "max_side": 2 * side}
    return replace(like, name=name, hub_id="", in_channels=config["in_channels"], **sizes)


_DERIVE = {"CogVideoXTransformer3DModel": _cogvideox_facts, "UNet2DConditionModel": _unet_facts}
