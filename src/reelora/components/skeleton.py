"""A network with shapes but no memory, and the buffers that no file holds.

Everything is built on torch's meta device, so that no initialiser runs for a value that a file overwrites, and nothing
large is computed twice: the position table of CogVideoX-2B alone takes diffusers half a second and 270 MB in float64.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from reelora.errors import ComponentError

from .folder import Source
from .roles import library_of

__all__ = ["build_skeleton", "computed_buffers", "fill_computed", "position_table"]


def build_skeleton(source: Source) -> nn.Module:
    """The frozen network that a source's config describes, its parameters without memory.

    Raises ComponentError where the config describes no network of its class.
    """
    network = _build(source, torch.device("meta"))
    if all(name.rpartition(".")[2] in _FORMULAS for name in computed_buffers(network)):
        return network.requires_grad_(False)
    from accelerate import init_empty_weights

    # Buffers that we have no formula for are computed by the class itself, as always; only its parameters stay empty.
    network = _build(source, init_empty_weights(include_buffers=False))
    if tie := getattr(network, "tie_weights", None):
        tie()
    return network.requires_grad_(False)


def computed_buffers(network: nn.Module) -> set[str]:
    """Names of the buffers that no file holds."""
    return {name for name, _ in network.named_buffers()} - set(network.state_dict())


@torch.no_grad()
def fill_computed(network: nn.Module, *, device: torch.device) -> None:
    """Compute the buffers that no file holds, in the network's dtype where they are floating: then no forward casts them."""
    dtype = next((p.dtype for p in network.parameters() if p.dtype.is_floating_point), torch.float32)
    for name in computed_buffers(network):
        path, _, leaf = name.rpartition(".")
        owner = network.get_submodule(path)
        buffer = getattr(owner, leaf)
        wanted = dtype if buffer.is_floating_point() else buffer.dtype
        setattr(owner, leaf, (_FORMULAS[leaf](owner, wanted) if buffer.is_meta else buffer).to(device, wanted))


def _build(source: Source, context: Any) -> nn.Module:
    library = library_of(source.role)[0]
    model_class = getattr(import_module(library), source.class_name)
    try:
        with context:
            return _BUILDERS[library](model_class, dict(source.config))
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise ComponentError(f"{source.role}: {source.description} describes no {source.class_name}: {error}") from error


def _build_transformers(model_class: Any, config: dict[str, Any]) -> nn.Module:
    expected = model_class.config_class.model_type
    if config.get("model_type") not in (expected, None):
        raise ValueError(f"it is of model type {config['model_type']!r}, not {expected!r}")
    return model_class(model_class.config_class.from_dict(config))


def _build_diffusers(model_class: Any, config: dict[str, Any]) -> nn.Module:
    return model_class.from_config(config)


def position_table(embed: Any, dtype: torch.dtype) -> Tensor:
    """CogVideoX-2B's table ``(1, text + f h w, d)``: zeros for text; for video a quarter time, the rest place.

    Both parts are diffusers' own float64 values, each computed once and rounded once instead of for every token.
    Source: CogVideoXPatchEmbed.
    """
    from diffusers.models.embeddings import get_3d_sincos_pos_embed

    height, width = embed.sample_height // embed.patch_size, embed.sample_width // embed.patch_size
    frames = (embed.sample_frames - 1) // embed.temporal_compression_ratio + 1
    scales = (embed.spatial_interpolation_scale, embed.temporal_interpolation_scale)
    num_time = embed.embed_dim // 4
    time = get_3d_sincos_pos_embed(embed.embed_dim, (1, 1), frames, *scales)[:, :, :num_time]
    place = get_3d_sincos_pos_embed(embed.embed_dim, (width, height), 1, *scales)[:, :, num_time:]
    table = torch.zeros(1, embed.max_text_seq_length + frames * height * width, embed.embed_dim, dtype=dtype)
    video = table[0, embed.max_text_seq_length :].unflatten(0, (frames, height * width))
    video[:, :, :num_time] = time.to(dtype)
    video[:, :, num_time:] = place.to(dtype)
    return table


_BUILDERS: Mapping[str, Callable[[Any, dict[str, Any]], nn.Module]] = {
    "transformers": _build_transformers,
    "diffusers": _build_diffusers,
}
_FORMULAS: Mapping[str, Callable[[Any, torch.dtype], Tensor]] = {"pos_embedding": position_table}
