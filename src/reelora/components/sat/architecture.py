"""From a SAT config to the configs of diffusers' classes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reelora.catalog import facts_for
from reelora.errors import ConfigError
from reelora.tensorio import expanded

from .classes import DDIM, DYNAMIC_GUIDER, IDENTITY_FIRST_STAGE, MODEL, ROTARY, SINE_TABLE
from .reading import Read, read_class
from .settings import Setting, read_settings

__all__ = ["SatLora", "SatModel", "SatSampling", "SatText", "read_model"]

NORM_GROUPS = 32
"""Of every GroupNorm in SAT's VAE."""
_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class SatLora:
    """The LoRA of a config: every update is scaled by ``alpha / rank``."""

    rank: int
    alpha: float
    is_alpha_told: bool
    """SAT's alpha is 1 where the YAML says none."""
    layers: tuple[int, ...] | None
    """None for all."""

    def __str__(self) -> str:
        told = f"alpha {self.alpha:g}" if self.is_alpha_told else "no lora_alpha, so SAT's 1"
        return f"the YAML's lora_config: {told}, r {self.rank}"


@dataclass(frozen=True, kw_only=True)
class SatText:
    """Where prompts become states."""

    folder: Path
    where: str
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class SatSampling:
    """How SAT samples by default."""

    scheduler: str
    """``ddim`` or ``dpm`` (DPM-Solver++ 2M SDE)."""
    num_steps: int
    guidance: float
    is_dynamic: bool
    """Whether guidance follows a wave over the steps."""
    exponent: float
    """Of that wave."""

    @property
    def settings(self) -> dict[str, Any]:
        """The same in the words of a session's settings."""
        wave = {"guidance_schedule": "dynamic", "guidance_exponent": int(self.exponent)}
        guidance = wave if self.is_dynamic else {"guidance_schedule": "constant"}
        return {"scheduler": self.scheduler, "steps": self.num_steps, "guidance": self.guidance, **guidance}

    def __str__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in {"sampling": "sat", **self.settings}.items())


@dataclass(frozen=True, kw_only=True)
class SatModel:
    """What the YAML files of a SAT model say, in the words of diffusers."""

    files: tuple[Path, ...]
    transformer: Mapping[str, Any]
    """Config of a CogVideoXTransformer3DModel."""
    vae: Mapping[str, Any] | None
    """Config of an AutoencoderKLCogVideoX; None where the config names no VAE."""
    vae_file: Path | None
    vae_where: str
    """The line that names it."""
    scaling_factor: float
    """Latents are the VAE's output times this."""
    scheduler: Mapping[str, Any]
    """Config of a CogVideoXDPMScheduler."""
    text: SatText | None
    lora: SatLora | None
    sampling: SatSampling | None
    load: Path | None
    """The checkpoint that the config names."""
    num_dead_positions: int
    """Rows of the position table that SAT stores and never reads."""
    where: str
    """The file and line of the network."""

    def config(self, role: str) -> Mapping[str, Any] | None:
        """The config of a role; None for one that the YAML does not describe."""
        return {"transformer": self.transformer, "vae": self.vae, "scheduler": self.scheduler}.get(role)

    @property
    def pipeline_class(self) -> str:
        """The stock pipeline of such a model."""
        takes_image = self.transformer["in_channels"] == 2 * self.transformer["out_channels"]
        return "CogVideoXImageToVideoPipeline" if takes_image else "CogVideoXPipeline"


def read_model(paths: Sequence[str | Path]) -> SatModel:
    """The model that YAML files describe, the later ones over the earlier.

    Raises ConfigError with the line of everything that is unknown, impossible, or computed otherwise by diffusers' classes; and
    what `read_settings` raises.
    """
    settings = read_settings(paths)
    section = settings.get("model")
    if section is None:
        raise ConfigError(f"{_names(paths)}: there is no section model; pass the YAML of the model too.")
    problems: list[str] = []
    read = read_class(section, (MODEL,), problems)
    _refuse(paths, problems)
    assert read
    _refuse(paths, list(_contradictions(read)))
    return _model(paths, settings, read)


def _refuse(paths: Sequence[str | Path], problems: Sequence[str]) -> None:
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise ConfigError(f"{_names(paths)}: {len(problems)} settings cannot be followed:\n{listed}")


def _names(paths: Sequence[str | Path]) -> str:
    return ", ".join(map(str, paths))


def _model(paths: Sequence[str | Path], settings: Setting, read: Read) -> SatModel:
    network, load = read["network_config"], settings.get("args", "load")
    transformer = _transformer(network)
    first_stage = _first_stage(read)
    return SatModel(
        files=tuple(map(Path, paths)),
        transformer=transformer,
        vae=_vae(first_stage, read, transformer) if first_stage else None,
        vae_file=first_stage.path("ckpt_path") if first_stage else None,
        vae_where=first_stage.line("ckpt_path") if first_stage else "",
        scaling_factor=float(read["scale_factor"]),
        scheduler=_scheduler(read["denoiser_config"]["discretization_config"]),
        text=_text(read["conditioner_config"]),
        lora=_lora(network["modules"]["lora_config"]),
        sampling=_sampling(read["sampler_config"]),
        load=load.file.parent / expanded(load.value) if load and isinstance(load.value, str) else None,
        num_dead_positions=network["transformer_args"]["max_sequence_length"],
        where=network.where,
    )


def _transformer(network: Read) -> dict[str, Any]:
    """The config, sizes of the video among them: a config of 1.5 names the extent of its rotary tables instead, so that those
    are the published model's where it is one."""
    modules = network["modules"]
    position = modules["pos_embed_config"]
    patch_t, patch = _patch(network)
    is_rotary = position.target == ROTARY
    config = {
        "num_attention_heads": network["num_attention_heads"],
        "attention_head_dim": network["hidden_size"] // network["num_attention_heads"],
        "in_channels": network["in_channels"],
        "out_channels": network["out_channels"],
        "time_embed_dim": _time_width(network),
        "ofs_embed_dim": network["ofs_embed_dim"],
        "text_embed_dim": modules["patch_embed_config"]["text_hidden_size"],
        "num_layers": network["num_layers"],
        "sample_width": network["latent_width"],
        "sample_height": network["latent_height"],
        "sample_frames": network["num_frames"],
        "patch_size": patch,
        "patch_size_t": patch_t,
        "patch_bias": patch_t is None,
        "temporal_compression_ratio": network["time_compressed_rate"],
        "max_text_seq_length": position["text_length"],
        "norm_eps": network["transformer_args"]["layernorm_epsilon"],
        "use_rotary_positional_embeddings": is_rotary,
        "use_learned_positional_embeddings": is_rotary and position["learnable_pos_embed"],
        **({} if is_rotary else _interpolation(network)),
    }
    return config if patch_t is None else config | _published_sizes(config)


def _published_sizes(config: Mapping[str, Any]) -> dict[str, int]:
    facts = facts_for({"_class_name": "CogVideoXTransformer3DModel", **config})
    if not facts.hub_id:
        return {}
    return {
        "sample_height": facts.default_height // facts.spatial_stride,
        "sample_width": facts.default_width // facts.spatial_stride,
    }


def _patch(network: Read) -> tuple[int | None, int]:
    """Of time (None for one latent frame) and of each side."""
    size = network["patch_size"]
    time, _, side = size if isinstance(size, list) else (1, size, size)
    return (None if time == 1 else time), side


def _time_width(network: Read) -> int:
    return network["time_embed_dim"] or network["hidden_size"]


def _interpolation(network: Read) -> dict[str, float]:
    position = network["modules"]["pos_embed_config"]
    return {
        "spatial_interpolation_scale": float(position["height_interpolation"] or network["height_interpolation"]),
        "temporal_interpolation_scale": float(position["time_interpolation"] or network["time_interpolation"]),
    }


def _first_stage(read: Read) -> Read | None:
    first_stage = read["first_stage_config"]
    return None if first_stage is None or first_stage.target == IDENTITY_FIRST_STAGE else first_stage


def _vae(first_stage: Read, read: Read, transformer: Mapping[str, Any]) -> dict[str, Any] | None:
    coder = first_stage["encoder_config"]
    if coder is None:
        return None
    levels = len(coder["ch_mult"])
    stride = 2 ** (levels - 1)
    return {
        "in_channels": coder["in_channels"],
        "out_channels": coder["out_ch"],
        "down_block_types": ["CogVideoXDownBlock3D"] * levels,
        "up_block_types": ["CogVideoXUpBlock3D"] * levels,
        "block_out_channels": [coder["ch"] * factor for factor in coder["ch_mult"]],
        "latent_channels": coder["z_channels"],
        "layers_per_block": coder["num_res_blocks"],
        "norm_eps": _NORM_EPS,
        "norm_num_groups": NORM_GROUPS,
        "temporal_compression_ratio": coder["temporal_compress_times"],
        "sample_height": transformer["sample_height"] * stride,
        "sample_width": transformer["sample_width"] * stride,
        "scaling_factor": read["scale_factor"],
        # As published: the latents of a conditioning image of 1.5 are not scaled but unscaled.
        "invert_scale_latents": transformer["patch_size_t"] is not None,
    }


def _scheduler(discretization: Read) -> dict[str, Any]:
    return {
        "num_train_timesteps": discretization["num_timesteps"],
        "beta_start": discretization["linear_start"],
        "beta_end": discretization["linear_end"],
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
        "snr_shift_scale": discretization["shift_scale"],
    }


def _text(conditioner: Read | None) -> SatText | None:
    if conditioner is None:
        return None
    t5 = conditioner["emb_models"]
    return SatText(folder=t5.path("model_dir"), where=t5.line("model_dir"), num_tokens=t5["max_length"])


def _lora(lora: Read | None) -> SatLora | None:
    if lora is None:
        return None
    alpha, layers = lora["lora_alpha"], lora["layer_range"]
    return SatLora(
        rank=lora["r"],
        alpha=1.0 if alpha is None else float(alpha),
        is_alpha_told=alpha is not None,
        layers=None if layers is None else tuple(layers),
    )


def _sampling(sampler: Read | None) -> SatSampling | None:
    if sampler is None:
        return None
    guider = sampler["guider_config"]
    is_dynamic = guider.target == DYNAMIC_GUIDER
    return SatSampling(
        scheduler="ddim" if sampler.target == DDIM else "dpm",
        num_steps=sampler["num_steps"],
        guidance=float(guider["scale"]),
        is_dynamic=is_dynamic,
        exponent=float(guider["exp"]) if is_dynamic else 1.0,
    )


def _contradictions(read: Read) -> Iterator[str]:
    """What no network, or none of diffusers' networks, can be."""
    for check in (_network_problems, _position_problems, _vae_problems, _text_problems, _schedule_problems):
        yield from check(read)


def _network_problems(read: Read) -> Iterator[str]:
    network = read["network_config"]
    width, heads, offset = network["hidden_size"], network["num_attention_heads"], network["ofs_embed_dim"]
    if width % heads:
        yield f"{network.line('num_attention_heads')}: {width} channels are no multiple of {heads} heads"
    if offset not in (None, _time_width(network)):
        where = network.line("ofs_embed_dim")
        yield f"{where}: ofs_embed_dim is {offset}, it is added to a time_embed_dim of {_time_width(network)}"
    patch_t, patch = _patch(network)
    for side in ("latent_width", "latent_height"):
        if network[side] % patch:
            yield f"{network.line(side)}: {side} is {network[side]}, no multiple of the patch, {patch}"
    if patch_t is not None and network["modules"]["pos_embed_config"].target == SINE_TABLE:
        yield f"{network.line('patch_size')}: patches of {patch_t} frames go with rotary positions only"


def _position_problems(read: Read) -> Iterator[str]:
    network = read["network_config"]
    position = network["modules"]["pos_embed_config"]
    head_width = network["hidden_size"] // network["num_attention_heads"]
    if position.target == ROTARY and position["hidden_size_head"] != head_width:
        where = position.line("hidden_size_head")
        yield f"{where}: hidden_size_head is {position['hidden_size_head']}, a head has {head_width}"
    if position.target == SINE_TABLE:
        height, width = (position[name] or network[name] for name in ("height_interpolation", "width_interpolation"))
        if height != width:
            yield f"{position.where}: height_interpolation {height} and width_interpolation {width} must be one number"


def _vae_problems(read: Read) -> Iterator[str]:
    if first_stage := _first_stage(read):
        encoder, decoder = first_stage["encoder_config"], first_stage["decoder_config"]
        if encoder is None or decoder is None:
            yield from _undescribed(first_stage)
            return
        for name in ("z_channels", "ch", "ch_mult", "num_res_blocks", "temporal_compress_times", "in_channels", "out_ch"):
            if encoder[name] != decoder[name]:
                yield f"{decoder.line(name)}: {name} is {decoder[name]}, in the encoder {encoder[name]}"
        if encoder["ch_mult"][0] != 1:
            yield f"{encoder.line('ch_mult')}: ch_mult begins with {encoder['ch_mult'][0]}, in diffusers' VAE it is 1"
        if odd := [width * encoder["ch"] for width in encoder["ch_mult"] if width * encoder["ch"] % NORM_GROUPS]:
            yield f"{encoder.line('ch')}: {odd[0]} channels are no multiple of the {NORM_GROUPS} groups that are normed"


def _undescribed(first_stage: Read) -> Iterator[str]:
    """A VAE may stay undescribed where its path is a folder in diffusers' layout, which describes itself."""
    if not (first_stage.path("ckpt_path") / "config.json").is_file():
        yield f"{first_stage.where}: encoder_config or decoder_config is missing"


def _text_problems(read: Read) -> Iterator[str]:
    position, conditioner = read["network_config"]["modules"]["pos_embed_config"], read["conditioner_config"]
    if conditioner and (asked := conditioner["emb_models"]["max_length"]) != position["text_length"]:
        where = conditioner["emb_models"].line("max_length")
        yield f"{where}: prompts have max_length {asked}, the network takes text_length {position['text_length']}"


def _schedule_problems(read: Read) -> Iterator[str]:
    sampler = read["sampler_config"]
    if sampler is None:
        return
    ours, theirs = read["denoiser_config"]["discretization_config"], sampler["discretization_config"]
    for name in ("linear_start", "linear_end", "shift_scale"):
        if ours[name] != theirs[name]:
            yield f"{theirs.line(name)}: {name} is {theirs[name]} in the sampler and {ours[name]} in the denoiser"
