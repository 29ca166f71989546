"""What each phase of a job takes beside the weights: prompts, a denoising step, pixels to latents and back."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from reelora.catalog import ModelFacts

from .sizes import RoleSize, skeleton
from .trace import Cost, trace

__all__ = [
    "Frame",
    "at_dtype",
    "decode_cost",
    "denoise_cost",
    "denoiser_batch",
    "denoiser_inputs",
    "encode_cost",
    "fits_a_tile",
    "text_cost",
]

_CHUNK = 2
"""Latent frames that CogVideoX's VAE decodes at once. Source: diffusers 0.42.1, AutoencoderKLCogVideoX."""
_FRAME_CHUNK = 8
"""Pixel frames that it encodes at once."""
_OUTPUT_COPIES = 3
"""Sets of pixels while tiles are blended into rows, and rows into the whole."""

Frame = tuple[int, int, int]
"""Pixel frames, height, width."""


def text_cost(size: RoleSize, facts: ModelFacts, dtype: torch.dtype) -> Cost:
    """One prompt through a text encoder: prompts are encoded one at a time."""
    return _text_cost(size.role, size.class_name, _json(size.config), facts.num_text_tokens, dtype)


def denoise_cost(size: RoleSize, facts: ModelFacts, frame: Frame, *, batch: int, dtype: torch.dtype) -> Cost:
    """One step on ``batch`` latents: twice the number of videos where guidance acts. Its inputs are counted."""
    return _denoise_cost(size.role, size.class_name, _json(size.config), facts, frame, batch, dtype)


def decode_cost(size: RoleSize, facts: ModelFacts, frame: Frame, *, dtype: torch.dtype, tiles: bool) -> Cost:
    """The latents of one video to pixels, whole or in overlapping tiles."""
    cost = partial(_decode_cost, size.role, size.class_name, _json(size.config), facts, dtype=dtype)
    return _in_tiles(size.network, cost, frame) if tiles else cost(frame)


def encode_cost(size: RoleSize, facts: ModelFacts, frame: Frame, *, dtype: torch.dtype, tiles: bool) -> Cost:
    """The pixels of one clip, or of a conditioning image (one frame), to latents."""
    cost = partial(_encode_cost, size.role, size.class_name, _json(size.config), facts, dtype=dtype)
    return _in_tiles(size.network, cost, frame) if tiles else cost(frame)


def fits_a_tile(size: RoleSize, frame: Frame) -> bool:
    """Whether a frame is no larger than one tile, so that tiles change nothing; also for a VAE that has none."""
    _, height, width = frame
    vae: Any = size.network
    tile = getattr(vae, "tile_sample_min_height", None)
    return tile is None or (height <= tile and width <= vae.tile_sample_min_width)


def at_dtype(size: RoleSize, dtype: torch.dtype, **changes: Any) -> nn.Module:
    """A network of one's own without memory, with ``changes`` in its config."""
    built = skeleton.__wrapped__(size.role, size.class_name, _json({**size.config, **changes}))
    return nn.Module.to(built, dtype)  # diffusers' own would look for layers to keep in float32


def denoiser_inputs(class_name: str, config: Any, facts: ModelFacts, frame: Frame, batch: int, dtype: torch.dtype) -> Any:
    """What a denoiser is called with, without memory."""
    return _INPUTS[class_name](config, facts, frame, batch, partial(torch.empty, dtype=dtype, device="meta"))


def denoiser_batch(
    class_name: str, config: Any, facts: ModelFacts, frame: Frame, batch: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """What training shows a denoiser, in float32: noisy latents ``(b f c h w)``, prompt states ``(b s d)``, timesteps ``(b)``
    and extras by name.
    """
    num_frames, height, width = frame
    frames = 1 if facts.fps == 1 else facts.padded_latent_frames(num_frames)
    clip = (frames, facts.latent_channels, height // facts.spatial_stride, width // facts.spatial_stride)
    told, extras = _TOLD[class_name](config, clip)
    empty = partial(torch.empty, device=device)
    states, timesteps = empty(batch, facts.num_text_tokens, told), empty(batch, dtype=torch.long)
    return empty(batch, *clip), states, timesteps, {name: empty(batch, *shape) for name, shape in extras.items()}


@lru_cache
def _text_cost(role: str, class_name: str, config: str, num_tokens: int, dtype: torch.dtype) -> Cost:
    network = _network(role, class_name, config, dtype)
    return _run(lambda: network(torch.empty(1, num_tokens, dtype=torch.long, device="meta"))[0])


@lru_cache
def _denoise_cost(
    role: str, class_name: str, config: str, facts: ModelFacts, frame: Frame, batch: int, dtype: torch.dtype
) -> Cost:
    """Of a stack of equal blocks two are run, and the others counted."""
    told = json.loads(config)
    num_layers = told.get("num_layers")

    def run(**changes: Any) -> Cost:
        network: Any = _network(role, class_name, json.dumps({**told, **changes}), dtype)
        return _run(
            lambda: network(**denoiser_inputs(class_name, network.config, facts, frame, batch, dtype), return_dict=False)[0]
        )

    if num_layers is None:
        return run()
    first = run(num_layers=1)
    return first.extended(run(num_layers=2), num_layers - 1)


@lru_cache
def _decode_cost(role: str, class_name: str, config: str, facts: ModelFacts, frame: Frame, *, dtype: torch.dtype) -> Cost:
    num_frames, height, width = frame
    vae: Any = _network(role, class_name, config, dtype)
    stride = facts.spatial_stride
    size = (ceil(height / stride), ceil(width / stride))
    is_video = class_name in _VIDEO_VAES

    def run(latent_frames: int) -> Cost:
        time = (latent_frames,) if is_video else ()
        return _run(lambda: vae.decode(_empty(1, facts.latent_channels, *time, *size, dtype=dtype), return_dict=False)[0])

    return _by_chunks(run, facts.latent_frames(num_frames), _CHUNK) if is_video else run(1)


@lru_cache
def _encode_cost(role: str, class_name: str, config: str, facts: ModelFacts, frame: Frame, *, dtype: torch.dtype) -> Cost:
    num_frames, height, width = frame
    vae: Any = _network(role, class_name, config, dtype)
    is_video = class_name in _VIDEO_VAES

    def run(frames: int) -> Cost:
        time = (frames,) if is_video else ()
        return _run(lambda: vae.encode(_empty(1, 3, *time, height, width, dtype=dtype)).latent_dist.mean)

    return _by_chunks(run, num_frames, _FRAME_CHUNK) if is_video else run(1)


def _by_chunks(run: Callable[[int], Cost], length: int, chunk: int) -> Cost:
    """A few chunks are run and the others counted: the first takes the odd frames, the second is as all that follow."""
    short = 2 * chunk + length % chunk
    if length <= short + chunk:
        return run(length)
    return run(short).extended(run(short + chunk), (length - short) / chunk)


def _in_tiles(vae: Any, cost: Callable[[Frame], Cost], frame: Frame) -> Cost:
    """Every tile, of which the largest is run: the memory of one, and the pixels of all before they are blended."""
    num_frames, height, width = frame
    tall, wide = vae.tile_sample_min_height, vae.tile_sample_min_width
    rows = _lengths(height, tall, int(tall * (1 - vae.tile_overlap_factor_height)))
    columns = _lengths(width, wide, int(wide * (1 - vae.tile_overlap_factor_width)))
    tile = cost((num_frames, rows[0], columns[0]))
    times = sum(rows) * sum(columns) / (rows[0] * columns[0])
    kept = round(times * tile.kept_bytes)
    peak = max(kept + tile.peak_bytes - tile.kept_bytes, _OUTPUT_COPIES * kept)
    all_tiles = tile.repeated(times)
    return Cost(peak_bytes=peak, kept_bytes=kept, flops=all_tiles.flops, calls=all_tiles.calls)


def _lengths(size: int, tile: int, step: int) -> list[int]:
    """Along one side: tiles begin every ``step``, also where only a sliver is left."""
    return [min(tile, size - start) for start in range(0, size, step)]


def _run(compute: Callable[[], Any]) -> Cost:
    with torch.no_grad():
        return trace(compute)


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


@lru_cache(maxsize=8)
def _network(role: str, class_name: str, config: str, dtype: torch.dtype) -> nn.Module:
    return nn.Module.to(skeleton.__wrapped__(role, class_name, config), dtype)


def _json(config: Mapping[str, Any]) -> str:
    return json.dumps(dict(config), sort_keys=True, default=list)


def _cogvideox(config: Any, facts: ModelFacts, frame: Frame, batch: int, empty: Callable[..., Tensor]) -> dict[str, Any]:
    num_frames, height, width = frame
    latent_frames = facts.padded_latent_frames(num_frames)
    size = (height // facts.spatial_stride, width // facts.spatial_stride)
    num_tokens = latent_frames // (config.patch_size_t or 1) * (size[0] // config.patch_size) * (size[1] // config.patch_size)
    positions = tuple(torch.empty(num_tokens, config.attention_head_dim, device="meta") for _ in range(2))
    return {
        "hidden_states": empty(batch, latent_frames, config.in_channels, *size),
        "encoder_hidden_states": empty(batch, facts.num_text_tokens, config.text_embed_dim),
        "timestep": torch.empty(batch, dtype=torch.long, device="meta"),
        "ofs": empty(1) if config.ofs_embed_dim else None,
        "image_rotary_emb": positions if config.use_rotary_positional_embeddings else None,
    }


def _unet(config: Any, facts: ModelFacts, frame: Frame, batch: int, empty: Callable[..., Tensor]) -> dict[str, Any]:
    _, height, width = frame
    size = (height // facts.spatial_stride, width // facts.spatial_stride)
    told = config.cross_attention_dim
    inputs = {
        "sample": empty(batch, config.in_channels, *size),
        "timestep": torch.empty((), dtype=torch.long, device="meta"),
        "encoder_hidden_states": empty(batch, facts.num_text_tokens, told if isinstance(told, int) else max(told)),
    }
    if config.addition_embed_type != "text_time":
        return inputs
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return {**inputs, "added_cond_kwargs": {"text_embeds": empty(batch, pooled), "time_ids": empty(batch, 6)}}


_INPUTS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "CogVideoXTransformer3DModel": _cogvideox,
    "UNet2DConditionModel": _unet,
}
_VIDEO_VAES = ("AutoencoderKLCogVideoX",)

Told = tuple[int, Mapping[str, Sequence[int]]]
"""The width of prompt states, and the shapes of extras by name, both without the axis of the batch."""


def _cogvideox_told(config: Any, clip: Sequence[int]) -> Told:
    return config.text_embed_dim, {"image": clip} if config.in_channels == 2 * config.out_channels else {}


def _unet_told(config: Any, clip: Sequence[int]) -> Told:
    width = config.cross_attention_dim
    width = width if isinstance(width, int) else max(width)
    if config.addition_embed_type != "text_time":
        return width, {}
    return width, {
        "pooled": [config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim],
        "time_ids": [6],
    }


_TOLD: Mapping[str, Callable[[Any, Sequence[int]], Told]] = {
    "CogVideoXTransformer3DModel": _cogvideox_told,
    "UNet2DConditionModel": _unet_told,
}
