"""Which published models an adapter can be for, told from the shapes of its modules."""

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from .facts import ModelFacts
from .models import FAMILIES, MODELS, SIGNATURES

__all__ = ["SHAPE_FINGERPRINTS", "fitting_models", "num_layers_of"]

Shape = tuple[int, int]
"""(out, in) of a Linear; of a convolution, ``in`` times its kernel."""

_HEAD_DIM, _TIME_DIM, _SPATIAL_PATCH = 64, 512, 2 * 2
_TRANSFORMER_BLOCK = re.compile(r"transformer_blocks\.(?P<layer>\d+)\.(?P<leaf>.+)")
_UNET_BLOCK = re.compile(r"(?P<stage>down|mid|up)_block(s\.(?P<number>\d+))?\.attentions\.\d+\.(?P<leaf>.+)")
_UNET_UNTOLD = re.compile(
    r"conv_(in|out)|(time|add)_embedding\.linear_[12]"
    r"|(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(resnets|downsamplers|upsamplers)\..+"
)
_NUMBERS = re.compile(r"(?<=transformer_blocks\.)\d+")
_NO_LAYER = 0, 0

SHAPE_FINGERPRINTS: Mapping[str, str] = MappingProxyType(
    {
        "CogVideoX-5B": "d3c61d12f33080ad5736a5b586a71335b654914b5385d8edc2ca8ed03e231587",
        "CogVideoX-5B-I2V": "2a9c39b966f94f3e0bf8c89bf6ebf1ae42fae317ea2249d5cf024b5e66c2d569",
        "CogVideoX1.5-5B": "db5747f7b5ebbb1bba71849110e40a46638bb965dfd82cba60eb292646588060",
        "CogVideoX1.5-5B-I2V": "f91a4a4d300f767af474f5063d622bf9dd2ab822045eb27682951de4592a8b0e",
    }
)
"""`tensorio.shape_fingerprint` of the transformers whose attention is of one shape: an adapter that stores it tells its base.

Source: diffusers 0.42.1, CogVideoXTransformer3DModel at the published configs.
"""


def fitting_models(shapes: Mapping[str, Shape], model_class: str) -> tuple[ModelFacts, ...]:
    """The rows of a class in which every one of these paths is a layer, and every layer whose shape is told has this one.

    None fits paths of which no shape is told. Source: the configs under each row's hub id; diffusers 0.42.1,
    models/transformers/cogvideox_transformer_3d.py and models/unets/unet_2d_condition.py.
    """
    rows = (row for row in MODELS if row.model_class == model_class)
    return tuple(row for row in rows if _fits(row, shapes, _EXPECTED[model_class]))


def _fits(row: ModelFacts, shapes: Mapping[str, Shape], expected: Callable[[ModelFacts, str], Shape | None]) -> bool:
    told = [(shape, found) for path, shape in shapes.items() if (found := expected(row, path)) is not None]
    return bool(told) and all(shape == found for shape, found in told)


def num_layers_of(row: ModelFacts) -> int | None:
    """Transformer blocks of a CogVideoX row; None for a UNet."""
    return SIGNATURES[row.name].get("num_layers")


def _cogvideox(row: ModelFacts, path: str) -> Shape:
    """The shape of a layer; `_NO_LAYER` for a path that is none."""
    config = {**FAMILIES[row.model_class].defaults, **SIGNATURES[row.name]}
    width = config["num_attention_heads"] * config.get("attention_head_dim", _HEAD_DIM)
    block = _TRANSFORMER_BLOCK.fullmatch(path)
    if block and int(block["layer"]) >= config["num_layers"]:
        return _NO_LAYER
    has_offset = row.patch_size_t and row.in_channels > row.latent_channels
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
        **dict.fromkeys(("ofs_embedding.linear_1", "ofs_embedding.linear_2") if has_offset else (), (_TIME_DIM, _TIME_DIM)),
        "norm_out.linear": (2 * width, _TIME_DIM),
        "proj_out": (row.latent_channels * _SPATIAL_PATCH * (row.patch_size_t or 1), width),
    }
    return shapes.get(block["leaf"] if block else path, _NO_LAYER)


def _unet(row: ModelFacts, path: str) -> Shape | None:
    """The shape of a layer; None for one of which no fact tells it, `_NO_LAYER` for a path that is none."""
    config = SIGNATURES[row.name]
    block = _UNET_BLOCK.fullmatch(path)
    if block is None:
        return None if _UNET_UNTOLD.fullmatch(path) else _NO_LAYER
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
    return shapes.get(leaf, _NO_LAYER)


def _width_at(stage: str, number: int, widths: Iterable[int]) -> int:
    """Channels of one block; 0 where the model has not that many."""
    widths = list(widths)
    order = {"down": widths, "mid": widths[-1:], "up": widths[::-1]}[stage]
    return order[number] if number < len(order) else 0


_EXPECTED = {"CogVideoXTransformer3DModel": _cogvideox, "UNet2DConditionModel": _unet}
