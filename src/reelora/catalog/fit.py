"""Which published models an adapter can be for, told from the shapes of its modules."""

import re
from collections.abc import Iterable, Mapping

from .facts import ModelFacts
from .models import FAMILIES, MODELS, SIGNATURES

__all__ = ["fitting_models", "num_layers_of"]

Shape = tuple[int, int]
"""(out, in) of a Linear; of a convolution, ``in`` times its kernel."""

_HEAD_DIM, _TIME_DIM, _SPATIAL_PATCH = 64, 512, 2 * 2
_TRANSFORMER_BLOCK = re.compile(r"transformer_blocks\.(?P<layer>\d+)\.(?P<leaf>.+)")
_UNET_BLOCK = re.compile(r"(?P<stage>down|mid|up)_block(s\.(?P<number>\d+))?\.attentions\.\d+\.(?P<leaf>.+)")
_NUMBERS = re.compile(r"(?<=transformer_blocks\.)\d+")


def fitting_models(shapes: Mapping[str, Shape], model_class: str) -> tuple[ModelFacts, ...]:
    """The rows of a class in which every one of these paths is a layer of that shape; paths that no row tells are passed over.

    Source: the configs under each row's hub id; diffusers 0.42.1, models/transformers/cogvideox_transformer_3d.py.
    """
    expected = _EXPECTED[model_class]
    rows = [row for row in MODELS if row.model_class == model_class]
    return tuple(row for row in rows if all(expected(row, path) in (shape, None) for path, shape in shapes.items()))


def num_layers_of(row: ModelFacts) -> int | None:
    """Transformer blocks of a CogVideoX row; None for a UNet."""
    return SIGNATURES[row.name].get("num_layers")


def _cogvideox(row: ModelFacts, path: str) -> Shape | None:
    """The shape of a layer; (0, 0) where the model has not that many blocks, None where no fact tells it."""
    config = {**FAMILIES[row.model_class].defaults, **SIGNATURES[row.name]}
    width = config["num_attention_heads"] * config.get("attention_head_dim", _HEAD_DIM)
    block = _TRANSFORMER_BLOCK.fullmatch(path)
    if block and int(block["layer"]) >= config["num_layers"]:
        return 0, 0
    if path.startswith("ofs_embedding") and not (row.patch_size_t and row.in_channels > row.latent_channels):
        return 0, 0
    patch = row.in_channels * _SPATIAL_PATCH * (row.patch_size_t or 1)
    shapes: dict[str, Shape] = {
        **dict.fromkeys(("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"), (width, width)),
        **dict.fromkeys(("norm1.linear", "norm2.linear"), (6 * width, _TIME_DIM)),
        "ff.net.0.proj": (4 * width, width),
        "ff.net.2": (width, 4 * width),
        "patch_embed.proj": (width, patch),
        "patch_embed.text_proj": (width, config["text_embed_dim"]),
        "time_embedding.linear_1": (_TIME_DIM, width),
        "time_embedding.linear_2": (_TIME_DIM, _TIME_DIM),
        "norm_out.linear": (2 * width, _TIME_DIM),
        "proj_out": (row.latent_channels * _SPATIAL_PATCH * (row.patch_size_t or 1), width),
    }
    return shapes.get(block["leaf"] if block else path)


def _unet(row: ModelFacts, path: str) -> Shape | None:
    config = SIGNATURES[row.name]
    block = _UNET_BLOCK.fullmatch(path)
    if block is None:
        return None
    width = _width_at(block["stage"], int(block["number"] or 0), config["block_out_channels"])
    leaf = _NUMBERS.sub("#", block["leaf"])
    context = config["cross_attention_dim"]
    shapes: dict[str, Shape] = {
        **{f"transformer_blocks.#.attn{n}.{leaf}": (width, width) for n in "12" for leaf in ("to_q", "to_out.0")},
        **{f"transformer_blocks.#.attn1.{leaf}": (width, width) for leaf in ("to_k", "to_v")},
        **{f"transformer_blocks.#.attn2.{leaf}": (width, context) for leaf in ("to_k", "to_v")},
        "transformer_blocks.#.ff.net.0.proj": (8 * width, width),
        "transformer_blocks.#.ff.net.2": (width, 4 * width),
        "proj_in": (width, width),
        "proj_out": (width, width),
    }
    return shapes.get(leaf)


def _width_at(stage: str, number: int, widths: Iterable[int]) -> int:
    """Channels of one block; 0 where the model has not that many."""
    widths = list(widths)
    order = {"down": widths, "mid": widths[-1:], "up": widths[::-1]}[stage]
    return order[number] if number < len(order) else 0


_EXPECTED = {"CogVideoXTransformer3DModel": _cogvideox, "UNet2DConditionModel": _unet}
