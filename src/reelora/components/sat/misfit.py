"""Why a checkpoint may not fit its config, told from shapes alone."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from reelora.tensorio import Tensors

__all__ = ["likely_cause"]

_LAYER = re.compile(r"transformer_blocks\.(\d+)\.")
_PATCH = "patch_embed.proj.weight"
Cause = Callable[[Mapping[str, tuple[int, ...]], Mapping[str, Any]], Iterator[str]]


def likely_cause(role: str, tensors: Tensors, config: Mapping[str, Any]) -> str:
    """What differs between the tensors of a role and its config, in sentences; empty where nothing known does."""
    return " ".join(sentence for cause in _CAUSES.get(role, ()) for sentence in cause(tensors.shapes, config))


def _depth(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Iterator[str]:
    layers = {int(match[1]) for name in shapes if (match := _LAYER.match(name))}
    if len(layers) != config["num_layers"]:
        yield f"The checkpoint has {len(layers)} layers, the config {config['num_layers']}."


def _width(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Iterator[str]:
    (found, *_), wanted = shapes.get("norm_final.weight", (0,)), config["num_attention_heads"] * config["attention_head_dim"]
    if found != wanted:
        yield f"The checkpoint is {found} wide, the config {wanted}."


def _shard(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Iterator[str]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    rows = shapes.get("transformer_blocks.0.ff.net.0.proj.weight", (0,))[0]
    is_whole = shapes.get("norm_final.weight") != (width,) or rows in (0, 4 * width)
    if not is_whole and 4 * width % rows == 0:
        yield f"It looks like one of {4 * width // rows} model-parallel shards: pass the folder that holds all of them."


def _channels(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Iterator[str]:
    shape = shapes.get(_PATCH, ())
    if len(shape) == 4 and config["patch_size_t"] is None and shape[1] != config["in_channels"]:
        image = "an image-to-video model" if shape[1] > config["in_channels"] else "a text-to-video model"
        yield f"The checkpoint takes {shape[1]} channels, the config {config['in_channels']}: it looks like {image}."


def _generation(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Iterator[str]:
    if len(shapes.get(_PATCH, ())) == 4 and config["patch_size_t"] is not None:
        yield "The checkpoint is of CogVideoX 1.0, the config of 1.5."
    if len(shapes.get(_PATCH, ())) == 2 and config["patch_size_t"] is None:
        yield "The checkpoint looks like CogVideoX 1.5, the config is of 1.0."


_CAUSES: Mapping[str, tuple[Cause, ...]] = {"transformer": (_depth, _width, _shard, _channels, _generation)}
